"""``share --method symmetrize``: module and file are symmetric alike, and the bundle loads again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from net_folder import write_net
from safetensors.torch import load_file

from compresskit.data.opening import open_source
from compresskit.errors import InputError, UsageError
from compresskit.ops.share.averaged import Symmetric
from compresskit.ops.share.moves import GROUPS
from compresskit.runner.api import method, run
from compresskit.runner.loading import load
from compresskit.runtimes.onnxruntime import OnnxRuntime

NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3, padding=1), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4))

def bare():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))

def long():
    return nn.Sequential(nn.Conv2d(3, 4, (3, 1), padding=(1, 0)), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def tokens():
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten(2))

def plain():
    return nn.Linear(12, 4)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nets of random weights, and labelled pictures."""
    folder = tmp_path_factory.mktemp("symmetric")
    write_net(folder, NET, 12)
    scope: dict[str, Any] = {}
    exec(NET, scope)
    for name in ("long", "tokens", "plain"):
        torch.save(scope[name]().state_dict(), folder / f"{name}.pt")
    return folder


def run_on(made: Path, out: Path, *stages: Any, net: str = "net", shape: Any = (1, 3, 12, 12), **how: Any) -> Any:
    source = how.pop("source", made / f"{net}.pt")
    model = load(source, arch=f"{made / 'net.py'}:{net}", input_shape=shape)
    how = {"bench": False, "force": True, **how}
    return run(model, list(stages), out, **how)


def symmetrize(**options: Any) -> Any:
    return method("share.symmetrize", **options)


def data(made: Path) -> Any:
    return open_source(str(made / "data.npz"))


@pytest.mark.parametrize("form", ["average", "tie"])
def test_module_and_file_are_symmetric_and_load_again(made: Path, tmp_path: Path, form: str) -> None:
    report = run_on(made, tmp_path / "out", symmetrize(form=form, samples=32), data=data(made))
    assert any(gate.name == "ONNX parity" and gate.passed for gate in report.gates)
    facts = report.history[-1]["facts"]
    assert [row["move"] for row in facts["moves"]] == ["quarter turn", "half turn", "quarter turn back"]
    assert all(row["before"] > 1e-2 and row["after"] <= 1e-5 for row in facts["moves"])
    told = "computes 4 times as much" if form == "average" else "3 layers have symmetric kernels: as fast and as large"
    assert any(told in note for note in report.notes)
    assert any("quarter turn: the output changes by" in note for note in report.notes)
    macs = [entry.macs for entry in report.models]
    assert macs[1] == (4 if form == "average" else 1) * macs[0]
    stored = load_file(tmp_path / "out" / "model.safetensors")
    module = load(tmp_path / "out", arch=f"{made / 'net.py'}:net").module.eval()
    assert isinstance(module, Symmetric) == (form == "average")
    assert module.state_dict().keys() == stored.keys()
    x = torch.from_numpy(np.load(made / "data.npz")["x"][:5])
    session = OnnxRuntime().open(tmp_path / "out" / "model.onnx", 1)
    with torch.no_grad():
        plain = module(x)
        for move in GROUPS["c4"]:
            assert torch.allclose(module(move(x)), plain, atol=1e-5)
            (found,) = session.run({session.inputs[0].name: move(x).contiguous().numpy()}).values()
            assert np.abs(found - plain.numpy()).max() <= 1e-5


@pytest.mark.parametrize("form", ["average", "tie"])
def test_it_is_trained_and_quantized_as_what_it_is(made: Path, tmp_path: Path, form: str) -> None:
    stages = (symmetrize(form=form, group="flip", epochs=1, lr=0.01, batch_size=16), method("quantize.rtn", bits=8))
    report = run_on(made, tmp_path / "out", *stages, data=data(made))
    facts = report.history[0]["facts"]
    assert facts["training"]["epochs"] == 1 and facts["moves"][0]["after"] <= 1e-5
    assert any(gate.name == "ONNX parity" and gate.passed for gate in report.gates)
    module = load(tmp_path / "out", arch=f"{made / 'net.py'}:net").module.eval()
    x = torch.from_numpy(np.load(made / "data.npz")["x"][:5])
    with torch.no_grad():
        assert torch.allclose(module(x.flip(-1)), module(x), atol=1e-5)


def test_other_stages_can_follow(made: Path, tmp_path: Path) -> None:
    run_on(made, tmp_path / "a", symmetrize(), export=False)
    for name, options in (("quantize.int8-static", {"samples": 16}), ("prune.structured", {"ratio": 0.5})):
        report = run_on(made, tmp_path / "b", method(name, **options), source=tmp_path / "a", data=data(made))
        assert [one["name"] for one in report.history] == ["share.symmetrize", name]
        assert not any(gate.name == "ONNX parity" and not gate.passed for gate in report.gates)


def test_what_is_symmetric_already_is_left(made: Path, tmp_path: Path) -> None:
    run_on(made, tmp_path / "tied", symmetrize(form="tie"), export=False)
    for form in ("tie", "average"):
        with pytest.raises(InputError, match=r"the output changes by \S+ at most under c2 already"):
            run_on(made, tmp_path / "out", symmetrize(form=form, group="c2"), source=tmp_path / "tied")


@pytest.mark.parametrize(
    ("net", "shape", "options", "message"),
    [
        (
            "bare",
            (1, 3, 12, 12),
            {"form": "tie"},
            "'0' (Conv2d) gives something else after a quarter turn: with stride 2 it reads other pixels of a turned "
            "picture; its input of 12 × 12 would have to be 13 × 13",
        ),
        ("net", (1, 3, 12, 16), {}, "needs square ones: this model takes images of 12 × 16"),
        ("net", (1, 3, 12, 16), {"group": "d4"}, "`group` d4 turns images by quarters"),
        ("long", (1, 3, 12, 12), {"form": "tie"}, "'0' has kernels of 3×1, which can't be turned"),
        ("tokens", (1, 3, 12, 12), {}, "an output of 8 × 3 × 144 is neither a vector a sample nor a picture"),
        ("plain", (1, 12), {}, "for models that take one image, this one takes input [8, 12]"),
    ],
)
def test_what_cannot_be_symmetric_is_refused(
    made: Path, tmp_path: Path, net: str, shape: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        run_on(made, tmp_path / "out", symmetrize(**options), net=net, shape=shape)
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_terms_that_are_not_symmetric_are_not_trained() -> None:
    with pytest.raises(UsageError, match="not symmetric"):
        symmetrize(form="tie", recover="lora", epochs=1)
