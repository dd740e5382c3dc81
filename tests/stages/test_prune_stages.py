"""Pruning from options to bundle: what is reported is what lies in the file, and the bundle loads again."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from net_folder import write_net
from safetensors.torch import load_file

from compresskit.data.opening import open_source
from compresskit.errors import InputError, UsageError
from compresskit.runner.api import method, run
from compresskit.runner.loading import load

NET = """
from torch import nn

class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()
    def forward(self, x):
        return x + self.act(self.norm(self.conv(x)))

def net():
    return nn.Sequential(nn.Conv2d(3, 16, 3), *(Residual() for _ in range(4)),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
"""


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder with a net of random weights, and labelled pictures."""
    x, y = write_net(tmp_path, NET, 8, 48)
    x[3, 0, 0, 0] = np.nan
    np.savez(tmp_path / "nan.npz", x=x, y=y)
    return tmp_path


def pruned(made: Path, name: str, *, data: str | None = None, export: bool = False, **options: Any) -> Any:
    model = load(made / "net.pt", arch=f"{made / 'net.py'}:net", input_shape=(1, 3, 8, 8))
    source = open_source(str(made / data)) if data else None
    stage = method(f"prune.{name}", **options)
    return run(model, [stage], made / "out", data=source, export=export, bench=False, force=True)


def test_what_can_be_cut_is_found_once_for_all_targets(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compresskit.ops.prune import structured
    from compresskit.stage import Context

    plan, planned = structured.plan, []
    monkeypatch.setattr(structured, "plan", lambda *args: planned.append(args) or plan(*args))
    kept: dict[str, Any] = {}

    def once(name: str, make: Any) -> Any:
        kept.setdefault(name, None)
        kept[name] = kept[name] or make()
        return kept[name]

    def cut(share: float, once: Any = None) -> dict[str, torch.Tensor]:
        model = load(made / "net.pt", arch=f"{made / 'net.py'}:net", input_shape=(1, 3, 8, 8))
        ctx = Context(made, open_source(str(made / "data.npz")), **({"once": once} if once else {}))
        return method("prune.structured", target_macs=share).run(model, ctx).module.state_dict()

    found = [cut(0.8, once), cut(0.6, once)]
    assert len(planned) == 1
    for share, tensors in zip((0.8, 0.6), found, strict=True):
        alone = cut(share)
        assert all(torch.equal(tensor, alone[name]) for name, tensor in tensors.items())
    assert len(planned) == 3


def test_a_clock_that_jumps_changes_no_byte(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pruned(made, "structured", data="data.npz", target_macs=0.6)
    weights = (made / "out" / "model.safetensors").read_bytes()
    hours = itertools.count(0.0, 3600.0)
    for clock in ("monotonic", "perf_counter", "process_time", "time"):
        monkeypatch.setattr(time, clock, lambda: next(hours))
    pruned(made, "structured", data="data.npz", target_macs=0.6)
    assert (made / "out" / "model.safetensors").read_bytes() == weights


def again(made: Path) -> Any:
    return load(made / "out", arch=f"{made / 'net.py'}:net").body


@pytest.mark.parametrize("options", [{}, {"pattern": "2:4"}, {"epochs": 2, "batch_size": 16, "ema": 0.5}], ids=str)
@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt"])
def test_the_zeros_reported_are_those_in_the_file(made: Path, name: str, options: dict[str, Any]) -> None:
    report = pruned(made, name, data="data.npz" if name != "magnitude" or options.get("epochs") else None, **options)
    facts = report.history[-1]["facts"]
    stored = load_file(made / "out" / "model.safetensors")
    layers = facts["layers"]
    found = {layer: int((stored[f"{layer}.weight"] == 0).sum()) for layer in layers}
    assert found == {layer: fact["zeros"] for layer, fact in layers.items()}
    assert facts["zeros"] == sum(found.values()) == pytest.approx(facts["of"] / 2, rel=0.02)
    assert ("0" in layers) == ("pattern" not in options)  # 3 input channels don't fill groups of 4
    state = again(made).state_dict()
    assert all(torch.equal(state[key], value) for key, value in stored.items())
    assert any("this gives no speed-up" in note for note in report.notes)
    assert any("2:4" in note for note in report.notes) == ("pattern" in options)


@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt"])
def test_no_sparsity_changes_nothing(made: Path, name: str) -> None:
    report = pruned(made, name, data=None if name == "magnitude" else "data.npz", sparsity=0.0)
    before = torch.load(made / "net.pt")
    after = load_file(made / "out" / "model.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert "no weight was set to zero" in report.notes


def test_blocks_go_by_data_and_come_back_from_the_bundle(made: Path) -> None:
    report = pruned(made, "depth", data="data.npz", drop=2, export=True, epochs=1, batch_size=16)
    facts = report.history[-1]["facts"]
    assert len(facts["layers"]) == 2
    assert len(facts["stacks"][""]["kept"]) == 6
    assert facts["training"]
    module = again(made)
    x = torch.randn(2, 3, 8, 8)
    from compresskit.runtimes.onnxruntime import OnnxRuntime

    with torch.no_grad():
        wanted = module(x).numpy()
    found = OnnxRuntime(exact=True).open(made / "out" / "model.onnx", 1).run({"input": x.numpy()})
    np.testing.assert_allclose(next(iter(found.values())), wanted, atol=1e-5)


def test_influence_ranks_blocks_too(made: Path) -> None:
    report = pruned(made, "depth", data="data.npz", drop=1, ranking="influence")
    assert any(note.startswith("influence of each block") for note in report.notes)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("magnitude", {"sparsity": 1.0}, "less than 1"),
        ("magnitude", {"pattern": "4:4"}, "N < M"),
        ("magnitude", {"pattern": "half"}, "N:M"),
        ("magnitude", {"pattern": "2:4", "sparsity": 0.5}, "no `sparsity`"),
        ("magnitude", {"pattern": "2:4", "scope": "global"}, "layer"),
        ("magnitude", {"include": ("head*",)}, "no layer matches 'head*'"),
        ("wanda", {"exclude": ("nothing",)}, "no layer matches 'nothing'"),
        ("depth", {}, "no target is given. Give `drop` N or `blocks` GLOB"),
        ("depth", {"drop": 4}, "4 blocks can't be dropped of 4"),
        ("depth", {"blocks": ("7",)}, "no layer matches '7'"),
        ("width", {}, "for Hugging Face folders"),
    ],
)
def test_options_that_cannot_be_are_refused(made: Path, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        pruned(made, name, data=None if name == "magnitude" else "data.npz", **options)
    assert message in str(caught.value)
    assert not (made / "out").exists()


@pytest.mark.parametrize("name", ["wanda", "sparsegpt", "width"])
def test_without_data_the_calibrated_ones_are_refused(made: Path, name: str) -> None:
    with pytest.raises(UsageError, match="needs calibration data"):
        pruned(made, name)
    with pytest.raises(UsageError, match="ranking the blocks needs data"):
        pruned(made, "depth", drop=1)


@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
def test_data_with_nan_are_refused(made: Path, name: str) -> None:
    with pytest.raises(InputError, match="NaN"):
        pruned(made, name, data="nan.npz")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
def test_layers_the_other_way_round_are_pruned_by_data_too(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "in")
    ids = np.random.default_rng(0).integers(0, 40, (16, 12))
    np.savez(tmp_path / "data.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    stage, data = method(f"prune.{name}", pattern="2:4"), open_source(str(tmp_path / "data.npz"))
    report = run(load(tmp_path / "in"), [stage], tmp_path / "out", data=data, export=False)
    facts = report.history[-1]["facts"]
    assert not any("by magnitude" in note for note in report.notes)
    weight = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out").transformer.h[1].mlp.c_fc.weight
    assert weight.shape == (32, 128)
    assert ((weight.reshape(8, 4, 128) == 0).sum(1) == 2).all()
    assert facts["layers"]["transformer.h.1.mlp.c_fc"]["zeros"] == 32 * 64
