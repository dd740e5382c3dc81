"""Substituting from options to bundle: the bundle loads again, is shrunk and quantized, and tells what it left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from net_folder import run_net, write_net
from safetensors.torch import load_file
from torch import nn

from compresskit.data.opening import open_source
from compresskit.errors import InputError, UsageError
from compresskit.ops.substitute.bottleneck import Bottleneck
from compresskit.ops.substitute.stand_in import StandIn
from compresskit.runner.api import method, run
from compresskit.runner.loading import load
from compresskit.stages import shared_latency

NET = """
from torch import nn
from torch.nn import functional as F

class Block(nn.Module):
    def __init__(self, inside, outside, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.stride, self.extra = stride, outside - inside
    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.extra:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.extra))
        return F.relu(out + x)

def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(Block(8, 8), Block(8, 8)),
                         nn.Sequential(Block(8, 16, 2), Block(16, 16)),
                         nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 4))

def units():
    net = nn.Sequential(nn.Identity(), nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 1),
                        nn.Flatten(), nn.Linear(400, 4))
    net[2].bias.data[:4], net[2].bias.data[4:12] = -50.0, 50.0
    return net

def wide():
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.Sequential(Block(16, 16)),
                         nn.Sequential(Block(16, 16), Block(16, 16)), nn.Conv2d(16, 16, 3),
                         nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 4))

def bare():
    return nn.Sequential(nn.Linear(8, 8))
"""
BLOCKS = ["1.0", "1.1", "2.0", "2.1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a net of random weights, and labelled pictures."""
    folder = tmp_path_factory.mktemp("substitute")
    write_net(folder, NET, 12)
    return folder


def collapse(**options: Any) -> Any:
    return method("substitute.collapse", **{"guard": "size", "samples": 64, **options})


def again(made: Path, out: Path) -> nn.Module:
    body = load(out, arch=f"{made / 'net.py'}:net").body
    assert isinstance(body, nn.Module)
    return body.eval()


def stood_in(module: nn.Module) -> list[str]:
    return [name for name, part in module.named_modules() if isinstance(part, StandIn)]


@pytest.mark.parametrize(
    "options", [{"count": 2}, {"count": 3, "stand_in": "1x1"}, {"budget": 0.7, "stand_in": "3x3"}, {"budget": 0.4}]
)
def test_the_bundle_rebuilds_what_was_measured(made: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    report = run_net(made, tmp_path / "out", collapse(**options))
    facts = report.history[-1]["facts"]
    module = again(made, tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert module.state_dict().keys() == stored.keys()
    assert all(torch.equal(module.state_dict()[key], value) for key, value in stored.items())
    assert stood_in(module) == sorted(facts["layers"]) and len(facts["layers"]) == options.get(
        "count", len(facts["layers"])
    )
    assert facts["share"]["macs"] <= options.get("budget", 1)
    assert {fact["kind"] for fact in facts["layers"].values()} <= (
        {options["stand_in"]} if "stand_in" in options else {"1x1", "3x3"}
    )
    left = {"other blocks lose less for the target"}
    assert {report.coverage.skipped[name] for name in BLOCKS if name not in facts["layers"]} <= left


def test_a_stand_in_is_exported_trained_shrunk_and_quantized(made: Path, tmp_path: Path) -> None:
    report = run_net(made, tmp_path / "out", collapse(count=2, epochs=1, batch_size=16), export=True)
    assert any(gate.name == "ONNX parity" and gate.passed for gate in report.gates)
    assert report.models[1].parameters < report.models[0].parameters
    assert report.models[1].macs < report.models[0].macs
    assert any("the teacher's outputs" in note for note in report.notes)
    source, gone = str(tmp_path / "out"), stood_in(again(made, tmp_path / "out"))
    twice = run_net(made, tmp_path / "twice", collapse(count=1), source=source)
    assert not set(twice.history[-1]["facts"]["layers"]) & {f"{name}.layer" for name in gone}
    for later in (
        method("prune.structured", ratio=0.3, round_to=4),
        method("factorize.svd", rank=2, round_to=2),
        method("quantize.rtn", bits=8),
        method("prune.depth", drop=1),
    ):
        run_net(made, tmp_path / "later", later, source=source)
        stored = load_file(tmp_path / "later" / "model.safetensors")
        assert again(made, tmp_path / "later").state_dict().keys() == stored.keys()
    with pytest.raises(UsageError, match=r"substitute\.collapse comes after quantize") as caught:
        run_net(made, tmp_path / "no", method("quantize.rtn", bits=8), collapse(count=1))
    assert caught.value.hint == "substitute first, then quantize"


def test_the_same_twice(made: Path, tmp_path: Path) -> None:
    for out in ("a", "b"):
        run_net(made, tmp_path / out, collapse(count=2))
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("options", [{"count": 2}, {"budget": 0.6}, {"target_latency": 0.8}])
def test_what_is_no_faster_is_not_taken(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """What is timed is made up: a 1×1 in the place of a block of 16 channels takes longer, all else less."""

    def share(layer: nn.Module, other: nn.Module, *_: object) -> float:
        weight = next(other.parameters())
        return 1.2 if tuple(weight.shape[:2]) == (16, 16) else 0.5

    def ratio(module: nn.Module, *_: object) -> float:
        return 1 - 0.15 * len(stood_in(module))

    monkeypatch.setattr(shared_latency, "share_of_time", share)
    monkeypatch.setattr(shared_latency, "_ratio", ratio)
    report = run_net(made, tmp_path / "out", collapse(guard="latency", stand_in="1x1", **options))
    facts = report.history[-1]["facts"]
    assert "2.1" not in facts["layers"] and {fact["time"] for fact in facts["layers"].values()} == {0.5}
    if "2.1" in report.coverage.skipped and "faster" in report.coverage.skipped["2.1"]:
        told = "a fitted layer is no faster: 1.20 of the block's time under onnxruntime"
        assert report.coverage.skipped["2.1"] == told
    if "target_latency" in options:
        assert facts["timed"][-1][1] <= 0.8 and any("of the original's time" in note for note in report.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no target is given. Give one of `count`, `budget`, `target_latency`"),
        ({"budget": 0.5, "target_latency": 0.5}, "`budget` and `target_latency`: give one of them"),
        ({"budget": 0.01}, "`budget` 0.01 can't be met: with every block replaced"),
        ({"count": 5}, "`count` 5: 4 blocks of this model can be replaced by something smaller"),
        ({"count": 2, "include": ("1.0",)}, "`count` 2: 1 block of this model"),
        ({"count": 1, "exclude": ("nothing",)}, "no layer matches 'nothing'"),
        ({"count": 1, "recover": "lora"}, "`recover` is for training"),
    ],
)
def test_options_that_cannot_be_are_refused(made: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        run_net(made, tmp_path / "out", collapse(**options))
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_without_data_or_blocks_it_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs calibration data"):
        run_net(made, tmp_path / "out", collapse(count=1), data=False)
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 8), "float32"))
    model = load(made / "bare.pt", arch=f"{made / 'net.py'}:bare", input_shape=(1, 8))
    with pytest.raises(InputError, match="no sequence of blocks"):
        run(model, [collapse(count=1)], tmp_path / "out", data=open_source(str(tmp_path / "d.npz")), export=False)


def test_pruned_blocks_get_a_stand_in_by_the_same_code(made: Path, tmp_path: Path) -> None:
    run_net(made, tmp_path / "a", method("prune.depth", drop=2, stand_in="1x1", samples=64))
    run_net(made, tmp_path / "b", collapse(count=2, stand_in="1x1"))
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    named = run_net(made, tmp_path / "c", method("prune.depth", blocks=("1.*",), stand_in="3x3", samples=64))
    assert stood_in(again(made, tmp_path / "c")) == ["1.0", "1.1"]
    assert [step["name"] for step in named.history] == ["substitute.collapse"]
    with pytest.raises(UsageError, match="`stand_in` ranks blocks by the model's output"):
        run_net(made, tmp_path / "no", method("prune.depth", drop=1, stand_in="auto", ranking="influence"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ("blocks", "Bert"),
        pytest.param("halves", "Bert", marks=pytest.mark.slow),
        pytest.param("halves", "GPT2", marks=pytest.mark.slow),
    ],
)
def test_a_folder_of_transformers_comes_back(tmp_path: Path, parts: str, name: str) -> None:
    """GPT-2 has layers the other way round, which come back so."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = transformers.BertConfig(vocab_size=40, max_position_embeddings=24, **sizes)
    if name == "GPT2":
        config = transformers.GPT2Config(vocab_size=40, n_embd=32, n_layer=3, n_head=4, n_positions=24)
    getattr(transformers, f"{name}Model")(config).save_pretrained(tmp_path / "in")
    ids = np.random.default_rng(0).integers(0, 40, (64, 12))
    np.savez(tmp_path / "data.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    data = open_source(str(tmp_path / "data.npz"))
    report = run(load(tmp_path / "in"), [collapse(count=2, parts=parts)], tmp_path / "out", data=data, bench=False)
    layers = report.history[-1]["facts"]["layers"]
    assert len(layers) == 2 and {fact["kind"] for fact in layers.values()} == {"linear"}
    assert any("transformers alone cannot load" in note for note in report.notes)
    assert any(gate.name == "ONNX parity" and gate.passed for gate in report.gates)
    stored, body = load_file(tmp_path / "out" / "model.safetensors"), load(tmp_path / "out").body
    assert isinstance(body, nn.Module) and stood_in(body) == sorted(layers)
    assert all(torch.equal(body.state_dict()[key], value) for key, value in stored.items())


@pytest.mark.filterwarnings("ignore")
def test_a_folder_of_transformers_with_bottlenecks_comes_back(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.BertConfig(vocab_size=40, max_position_embeddings=24, **sizes)
    transformers.BertModel(config).save_pretrained(tmp_path / "in")
    ids = np.random.default_rng(0).integers(0, 40, (64, 12))
    np.savez(tmp_path / "data.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    data, stage = (
        open_source(str(tmp_path / "data.npz")),
        method("substitute.bottleneck", width=0.25, guard="size", count=3),
    )
    report = run(load(tmp_path / "in"), [stage], tmp_path / "out", data=data, export=False, bench=False)
    layers, body = report.history[-1]["facts"]["layers"], load(tmp_path / "out").body
    assert isinstance(body, nn.Module) and sorted(narrowed(body)) == sorted(layers) and len(layers) == 3
    assert report.models[1].parameters < report.models[0].parameters
    assert any("transformers alone cannot load" in note for note in report.notes)


def test_folded_layers_come_back_from_the_bundle(made: Path, tmp_path: Path) -> None:
    report = run_net(made, tmp_path / "out", method("substitute.fold"), data=False, export=True)
    assert any(gate.name == "ONNX parity" and gate.passed for gate in report.gates)
    module, before = again(made, tmp_path / "out"), again(made, Path(made / "net.pt"))
    assert not any(isinstance(part, nn.BatchNorm2d) for part in module.modules())
    x = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert float((module(x) - before(x)).norm() / before(x).norm()) <= 1e-6
    assert report.history[-1]["facts"]["layers"]["1.0.conv1"]["gone"] == ["bn1"]
    assert report.notes[0] == "8 layers were merged exactly into 8; the model's output stays the same"
    later = run_net(made, tmp_path / "later", collapse(count=1), source=str(tmp_path / "out"))
    assert len(later.history) == 2 and stood_in(again(made, tmp_path / "later"))
    with pytest.raises(InputError, match="no layers that can be merged exactly"):
        run_net(made, tmp_path / "no", method("substitute.fold"), source=str(tmp_path / "out"), data=False)
    with pytest.raises(UsageError, match="no layer matches 'nothing'"):
        run_net(made, tmp_path / "no", method("substitute.fold", exclude=("nothing",)), data=False)


def test_units_that_never_or_always_switch_on_are_gone_from_the_bundle(made: Path, tmp_path: Path) -> None:
    model = load(made / "units.pt", arch=f"{made / 'net.py'}:units", input_shape=(1, 3, 12, 12))
    data = open_source(str(made / "data.npz"))
    with pytest.raises(UsageError, match="needs calibration data"):
        run(model, [method("substitute.fold", units=True)], tmp_path / "no")
    report = run(model, [method("substitute.fold", units=True)], tmp_path / "out", data=data, bench=False)
    facts = report.history[-1]["facts"]
    assert facts["layers"]["1"]["gone"] == ["2"] and facts["layers"]["1"]["cut"]["out"] == [16, 12]
    assert facts["layers"]["4"]["bypass"]["kept"] == 4 and facts["firing"]["always"] == 8
    assert "merged with '2'; Conv2d, 16 → 12" in report.coverage.done["1"]
    assert "4 units still pass through its ReLU" in report.coverage.done["4"]
    assert "4 of 20 units never switch on in 48 samples of" in report.notes[1] and "; 8 units are" in report.notes[1]
    assert any(gate.name == "ONNX parity" and gate.passed for gate in report.gates)
    assert report.models[1].macs < report.models[0].macs
    stored, body = (
        load_file(tmp_path / "out" / "model.safetensors"),
        load(tmp_path / "out", arch=str(made / "net.py") + ":units").body,
    )
    assert isinstance(body, nn.Module) and body.state_dict().keys() == stored.keys()


def test_depthwise_layers_come_back_from_the_bundle(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is timed is made up: convolutions of 16 channels gain nothing."""
    monkeypatch.setattr(shared_latency, "share_of_time", lambda layer, *_: 1.1 if layer.in_channels == 16 else 0.5)
    stage = method("substitute.depthwise", multiplier=1, samples=64, exclude=("1.1.*",))
    report = run_net(made, tmp_path / "out", stage, export=True)
    layers, skipped = report.history[-1]["facts"]["layers"], report.coverage.skipped
    assert sorted(layers) == ["0", "1.0.conv1", "1.0.conv2", "2.0.conv1"]
    assert skipped["1.1.conv1"] == "excluded" and skipped["2.1.conv1"].startswith("no faster: 1.10")
    assert any(gate.name == "ONNX parity" and gate.passed for gate in report.gates)
    assert report.models[1].macs < report.models[0].macs
    stored = load_file(tmp_path / "out" / "model.safetensors")
    state = again(made, tmp_path / "out").state_dict()
    assert state.keys() == stored.keys() and all(torch.equal(state[key], value) for key, value in stored.items())
    assert set(skipped) == {"1.1.conv1", "1.1.conv2", "2.0.conv2", "2.1.conv1", "2.1.conv2"}
    with pytest.raises(InputError, match="no convolution of this model can be made depthwise"):
        wide = method("substitute.depthwise", multiplier=9, guard="size")
        run_net(made, tmp_path / "no", wide)


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, 5), ({"count": 2}, 2), ({"budget": 0.8}, None), ({"target_latency": 0.9, "count": 3}, None)],
)
def test_bottlenecks_come_back_from_the_bundle(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], expected: int | None
) -> None:
    """What is timed is made up: each bottleneck takes off 7 % of the model's time."""
    monkeypatch.setattr(shared_latency, "share_of_time", lambda *_: 0.5)
    monkeypatch.setattr(shared_latency, "_ratio", lambda module, *_: 1 - 0.07 * len(narrowed(module)))
    stage = method("substitute.bottleneck", samples=64, exclude=("0", "1.*"), width=0.5, **options)
    wide = load(made / "wide.pt", arch=f"{made / 'net.py'}:wide", input_shape=(1, 3, 12, 12))
    report = run(wide, [stage], tmp_path / "out", data=open_source(str(made / "data.npz")), bench=False, export=False)
    facts, skipped = report.history[-1]["facts"], report.coverage.skipped
    layers = facts["layers"]
    assert len(layers) == (expected or len(layers)) > 0 and {fact["width"] for fact in layers.values()} == {8}
    assert facts["share"]["macs"] <= options.get("budget", 1) and facts["share"]["macs"] < 1
    left = set(skipped.values()) - {"excluded"}
    assert left <= {"other layers lose less for the target", "it has 4 channels, too few for a bottleneck of 8"}
    if options:
        assert all(fact["loss"] > 0 for fact in layers.values()) and "other layers lose less for the target" in left
    if "target_latency" in options:
        assert facts["timed"][-1][1] <= 0.9 and len(layers) <= 3
    stored = load_file(tmp_path / "out" / "model.safetensors")
    body = load(tmp_path / "out", arch=f"{made / 'net.py'}:wide").body
    assert isinstance(body, nn.Module) and sorted(narrowed(body)) == sorted(layers)
    assert all(torch.equal(body.state_dict()[key], value) for key, value in stored.items())


def narrowed(module: nn.Module) -> list[str]:
    return [name for name, part in module.named_modules() if isinstance(part, Bottleneck)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0.5, "target_latency": 0.5}, "`budget` and `target_latency`: give one of them"),
        ({"budget": 0.01}, "`budget` 0.01 can't be met: with every layer replaced"),
        ({"count": 9}, "`count` 9: 5 layers of this model can be made bottlenecks"),
    ],
)
def test_targets_of_bottlenecks_that_cannot_be_are_refused(
    made: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    wide = load(made / "wide.pt", arch=f"{made / 'net.py'}:wide", input_shape=(1, 3, 12, 12))
    data = open_source(str(made / "data.npz"))
    with pytest.raises(UsageError) as caught:
        stage = method("substitute.bottleneck", samples=64, guard="size", exclude=("0", "1.*"), **options)
        run(wide, [stage], tmp_path / "out", data=data, export=False, bench=False)
    assert message in str(caught.value)
