"""Factorizing from options to bundle: the bundle loads again, merges, is quantized, and says what was left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from net_folder import write_net
from safetensors.torch import load_file
from torch import nn

from compresskit.data.opening import open_source
from compresskit.errors import InputError, UsageError
from compresskit.runner.api import method, run
from compresskit.runner.loading import load
from compresskit.stages import shared_latency

NET = """
from torch import nn

class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()
    def forward(self, x):
        return x + self.act(self.norm(self.conv(x)))

def net():
    return nn.Sequential(nn.Conv2d(3, 16, 3), Residual(), Residual(), nn.Conv2d(16, 32, 1), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 4))

def bare():
    return nn.Sequential(nn.LayerNorm(8))
"""
ALL = ["auto", "svd", "whitened", "fisher", "tucker", "spatial", "cp"]
LINEAR = {"svd", "whitened", "fisher"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a net of random weights, and labelled pictures."""
    folder = tmp_path_factory.mktemp("factorize")
    write_net(folder, NET, 8)
    return folder


def run_on(made: Path, out: Path, name: str, *, source: str = "net.pt", data: bool = True, **options: Any) -> Any:
    export = options.pop("export", False)
    model = load(made / source, arch=f"{made / 'net.py'}:net", input_shape=(1, 3, 8, 8))
    known = open_source(str(made / "data.npz")) if data else None
    options = {"round_to": 4, **options} if name.startswith("factorize") else options
    return run(model, [method(name, **options)], out, data=known, export=export, bench=False, force=True)


def again(made: Path, out: Path) -> nn.Module:
    body = load(out, arch=f"{made / 'net.py'}:net").body
    assert isinstance(body, nn.Module)
    return body.eval()


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", ALL)
def test_the_bundle_rebuilds_what_was_measured(made: Path, tmp_path: Path, name: str) -> None:
    pytest.importorskip("tensorly")
    report = run_on(made, tmp_path / "out", f"factorize.{name}", budget=0.9, samples=32)
    facts = report.history[-1]["facts"]
    module = again(made, tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(module.state_dict()[key], value) for key, value in stored.items())
    assert facts["share"]["params"] <= 0.9
    weights = {n: m.weight.numel() for n, m in module.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    whole = {n: int(np.prod(fact["shape"])) for n, fact in facts["layers"].items()}
    for layer, size in whole.items():
        assert sum(n for part, n in weights.items() if part.startswith(f"{layer}.")) < size
    kinds = {type(load_plain(made).get_submodule(n)) for n in facts["layers"]}
    assert kinds <= ({nn.Linear, nn.Conv2d} if name in {*LINEAR, "auto"} else {nn.Conv2d})
    missed = {n: why for n, why in report.coverage.skipped.items() if "method" in why}
    assert (
        set(missed)
        == {"auto": set(), "linear": {"0", "1.conv", "2.conv"}, "conv": {"3", "7", "9"}}[
            name if name == "auto" else "linear" if name in LINEAR else "conv"
        ]
    )


def load_plain(made: Path) -> nn.Module:
    body = load(made / "net.pt", arch=f"{made / 'net.py'}:net").body
    assert isinstance(body, nn.Module)
    return body.eval()


def test_factors_are_exported_merged_and_quantized(made: Path, tmp_path: Path) -> None:
    report = run_on(made, tmp_path / "out", "factorize.auto", budget=0.6, export=True)
    assert report.verdict.value in ("PASS", "UNVERIFIED")
    assert any(gate.name == "ONNX parity" and gate.passed for gate in report.gates)
    assert report.models[1].parameters < report.models[0].parameters
    assert report.models[1].macs < report.models[0].macs
    module = again(made, tmp_path / "out")
    source = str(tmp_path / "out")
    merged = run_on(made, tmp_path / "merged", "factorize.auto", source=source, data=False, merge=True, round_to=8)
    assert set(merged.history[-1]["facts"]["layers"]) == set(report.history[-1]["facts"]["layers"])
    dense = again(made, tmp_path / "merged")
    assert dense.state_dict().keys() == load_plain(made).state_dict().keys()
    with torch.no_grad():
        wanted = module(X)
        assert float((dense(X) - wanted).norm() / wanted.norm()) <= 1e-6
    small = run_on(made, tmp_path / "small", "quantize.rtn", source=source, data=False, bits=8)
    assert any(layer.startswith("7.") for layer in small.coverage.done)
    with torch.no_grad():
        assert float((again(made, tmp_path / "small")(X) - wanted).norm() / wanted.norm()) <= 0.05
    with pytest.raises(UsageError, match=r"quantize\.rtn already") as caught:
        run_on(made, tmp_path / "no", "factorize.auto", source=str(tmp_path / "small"), budget=0.9)
    assert caught.value.hint == "factorize first, then quantize"
    with pytest.raises(UsageError, match="are quantized"):
        run_on(made, tmp_path / "no", "factorize.auto", source=str(tmp_path / "small"), merge=True, round_to=8)
    model = load(made / "net.pt", arch=f"{made / 'net.py'}:net", input_shape=(1, 3, 8, 8))
    order = [method("quantize.rtn", bits=8), method("factorize.auto", budget=0.9)]
    with pytest.raises(UsageError, match="comes after quantize"):
        run(model, order, tmp_path / "no", export=False)
    cut = run_on(made, tmp_path / "cut", "prune.structured", source=source, data=False, ratio=0.3)
    assert cut.coverage.done
    twice = run_on(made, tmp_path / "twice", "factorize.svd", source=source, data=False, rank=1, include=("9",))
    assert set(twice.history[-1]["facts"]["layers"]) == {"9"}
    again(made, tmp_path / "twice")


def test_the_same_twice(made: Path, tmp_path: Path) -> None:
    for out in ("a", "b"):
        run_on(made, tmp_path / out, "factorize.auto", budget=0.6, samples=32)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_all_energy_of_a_layer_of_low_rank_is_kept_exactly(made: Path, tmp_path: Path) -> None:
    model = load(made / "net.pt", arch=f"{made / 'net.py'}:net", input_shape=(1, 3, 8, 8))
    assert isinstance(model.body, nn.Module)
    with torch.no_grad():
        model.body[7].weight.copy_(torch.randn(64, 8) @ torch.randn(8, 128) / 30)
        wanted = model.body.eval()(X)
    stage = method("factorize.svd", energy=1 - 1e-9, round_to=8)
    report = run(model, [stage], tmp_path / "out", export=False, bench=False)
    layers = report.history[-1]["facts"]["layers"]
    assert {name: fact["ranks"] for name, fact in layers.items()} == {"7": [8]}
    assert "keeps 1 of its energy" in report.coverage.skipped["3"]
    with torch.no_grad():
        assert float((again(made, tmp_path / "out")(X) - wanted).norm() / wanted.norm()) <= 1e-5


def test_training_follows_with_the_original_as_teacher(made: Path, tmp_path: Path) -> None:
    report = run_on(made, tmp_path / "out", "factorize.auto", budget=0.5, epochs=1, batch_size=16)
    facts = report.history[-1]["facts"]
    assert len(facts["training"]["curve"]) == 1
    assert any("the teacher's outputs" in note for note in report.notes)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(again(made, tmp_path / "out").state_dict()[k], v) for k, v in stored.items())


def test_without_data_it_says_what_is_missing(made: Path, tmp_path: Path) -> None:
    report = run_on(made, tmp_path / "out", "factorize.auto", data=False, budget=0.7, budget_of="macs")
    assert report.history[-1]["facts"]["share"]["macs"] <= 0.7
    assert any("by the singular values of the weights" in note for note in report.notes)


@pytest.mark.parametrize("target", [{"budget": 0.9}, {"target_latency": 0.9}], ids=["budget", "target-latency"])
def test_factors_that_are_no_faster_are_not_taken(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: dict[str, float]
) -> None:
    """What is timed is made up: factors of the last but one Linear layer take longer, all others less."""

    def ratio(module: nn.Module, *_: object) -> float:
        if not isinstance(module, nn.Sequential) or len(module) > 4:
            return 0.5
        return 1.2 if isinstance(module[0], nn.Linear) and module[0].in_features == 128 else 0.8

    monkeypatch.setattr(shared_latency, "_ratio", ratio)
    report = run_on(made, tmp_path / "out", "factorize.auto", data=False, guard="latency", **target)
    assert "7" not in report.history[-1]["facts"]["layers"]
    if "budget" in target:
        assert "no faster: 1.20 of its time" in report.coverage.skipped["7"]
    else:
        assert report.history[-1]["facts"]["timed"][-1][1] == 0.5


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("auto", {}, "no target is given. Give one of `energy`, `budget`, `rank`, `target_latency`"),
        ("auto", {"budget": 0.5, "rank": 4}, "`budget` and `rank`: factorize takes one target"),
        ("auto", {"energy": 0.5, "budget_of": "macs"}, "there is no `budget`"),
        ("auto", {"merge": True, "budget": 0.5}, "`merge` with `budget`"),
        ("auto", {"merge": True}, "nothing to merge"),
        ("auto", {"budget": 0.001}, "`budget` 0.001 can't be met"),
        ("svd", {"rank": 200, "include": ("7",)}, "`rank` 200 is above the rank of '7', whose matrix has 64"),
        ("svd", {"rank": 4, "include": ("nothing",)}, "no layer matches 'nothing'"),
    ],
)
def test_options_that_cannot_be_are_refused(
    made: Path, tmp_path: Path, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        run_on(made, tmp_path / "out", f"factorize.{name}", data=False, **options)
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_model_without_layers_is_refused(made: Path, tmp_path: Path) -> None:
    model = load(made / "bare.pt", arch=f"{made / 'net.py'}:bare", input_shape=(1, 8))
    with pytest.raises(InputError, match="no Linear layer and no convolution"):
        run(model, [method("factorize.auto", budget=0.5)], tmp_path / "out", export=False)


@pytest.mark.parametrize("name", ["whitened", "fisher"])
def test_without_data_the_calibrated_ones_are_refused(made: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="needs calibration data"):
        run_on(made, tmp_path / "out", f"factorize.{name}", data=False, budget=0.5)


@pytest.mark.filterwarnings("ignore")
def test_layers_the_other_way_round_come_back_from_the_bundle(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "in")
    ids = np.random.default_rng(0).integers(0, 40, (16, 12))
    np.savez(tmp_path / "data.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    data = open_source(str(tmp_path / "data.npz"))
    stage = method("factorize.auto", budget=0.7)
    report = run(load(tmp_path / "in"), [stage], tmp_path / "out", data=data, export=False)
    layers = report.history[-1]["facts"]["layers"]
    assert any(fact.get("conv1d") for fact in layers.values())
    assert "lm_head" not in layers
    assert "its weight is that of" in report.coverage.skipped["lm_head"]
    assert any("transformers alone cannot load" in note for note in report.notes)
    stored, body = load_file(tmp_path / "out" / "model.safetensors"), load(tmp_path / "out").body
    assert isinstance(body, nn.Module)
    assert all(torch.equal(body.state_dict()[key], value) for key, value in stored.items())
    run(load(tmp_path / "out"), [method("factorize.auto", merge=True)], tmp_path / "merged", export=False)
    plain = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "merged").eval()
    merged = load(tmp_path / "merged").body
    assert isinstance(merged, nn.Module)
    with torch.no_grad():
        wanted, *found = (net.eval()(torch.from_numpy(ids)).logits for net in (body, plain, merged))
    assert all(torch.allclose(each, wanted, rtol=1e-4, atol=1e-5) for each in found)
