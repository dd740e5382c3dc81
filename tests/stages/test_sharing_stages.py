"""Palettes and tied layers from options to bundle: the bundle loads again, and tells what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from net_folder import run_net, write_net
from pydantic import ValidationError
from torch import nn

from compresskit.errors import InputError, UsageError
from compresskit.ops.packed.modules import PackedLayer
from compresskit.runner.api import method
from compresskit.runner.loading import load

NET = """
from torch import nn
from torch.nn import functional as F

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, 1, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1)
    def forward(self, x):
        return F.relu(self.conv2(F.relu(self.bn1(self.conv1(x)))) + x)

def net():
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.Sequential(*(Block(16) for _ in range(4))),
                         nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 4))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a net of random weights, and labelled pictures."""
    folder = tmp_path_factory.mktemp("sharing")
    write_net(folder, NET, 12)
    return folder


def again(made: Path, out: Path) -> Any:
    return load(out, arch=f"{made / 'net.py'}:net")


def weights(out: Path) -> int:
    return (out / "model.safetensors").stat().st_size


def test_a_palette_bundle_loads_again_and_is_compared_with_rtn(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = run_net(made, out, method("quantize.palette", bits=3, samples=32), export=True)
    parity = next(gate for gate in report.gates if "parity" in gate.name.lower())
    assert parity.passed
    model = again(made, out)
    packed = {n: layer for n, layer in model.module.named_modules() if isinstance(layer, PackedLayer)}
    assert "1.0.conv1" in packed and packed["1.0.conv1"].levels is not None
    assert packed["1.0.conv1"].levels.shape == (1, 1, 8)
    facts = model.card.history[-1].facts
    assert facts["entropy_bytes"] < facts["stored_bytes"] and facts["rtn_gain"] > 0
    assert any("smaller on disk only" in note for note in facts["notes"])


@pytest.mark.parametrize("options", [{"layer_bits": ("1.*=9",)}, {"bits": 9}, {"codebook": "layer"}])
def test_palettes_that_there_are_not_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises((UsageError, ValidationError)):
        method("quantize.palette", **options)


def test_tied_blocks_are_stored_once_and_load_as_one(made: Path, tmp_path: Path) -> None:
    run_net(made, tmp_path / "out", method("share.tie", samples=32), export=True)
    model = again(made, tmp_path / "out")
    block, other = model.module.get_submodule("1.0"), model.module.get_submodule("1.1")
    assert other.conv1.weight is block.conv1.weight and other.bn1.running_mean is not block.bn1.running_mean
    facts = model.card.history[-1].facts
    assert facts["layers"]["1.1"]["owner"] == "1.0" and facts["fitted"] == 4
    assert any("as fast as before" in note for note in facts["notes"])
    before = weights_before(made)
    assert weights(tmp_path / "out") < 0.62 * before
    assert (tmp_path / "out" / "model.onnx").stat().st_size < 0.7 * before


def weights_before(made: Path) -> int:
    state = torch.load(made / "net.pt", weights_only=True)
    return sum(t.numel() * t.element_size() for t in state.values())


def test_tied_blocks_are_trained_and_quantized_as_one(made: Path, tmp_path: Path) -> None:
    stages = (method("share.tie", samples=16, epochs=1, run_length=4), method("quantize.palette", samples=16))
    run_net(made, tmp_path / "out", *stages)
    model = again(made, tmp_path / "out")
    first, last = (model.module.get_submodule(f"1.{n}.conv1") for n in (0, 3))
    assert isinstance(first, PackedLayer) and torch.equal(first.codes, last.codes)
    assert "training" in model.card.history[0].facts


def test_what_cannot_be_tied_is_an_error(made: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no layers with such similar weights"):
        run_net(made, tmp_path / "out", method("share.tie", alike=0.99))
    with pytest.raises(UsageError, match="`alike` ties single layers"):
        method("share.tie", alike=0.5, run_length=3)


def test_layers_of_a_list_left_out_stay(made: Path, tmp_path: Path) -> None:
    run_net(made, tmp_path / "out", method("share.tie", exclude=("1.2",)), data=False)
    model = again(made, tmp_path / "out")
    blocks: Any = model.module.get_submodule("1")
    assert isinstance(blocks, nn.Sequential)
    assert blocks[1].conv1.weight is blocks[0].conv1.weight and blocks[3].conv1.weight is not blocks[2].conv1.weight
