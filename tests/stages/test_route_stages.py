"""Early exits from options to bundle: module and ONNX file leave alike, the bundle loads again, and is quantized."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from net_folder import write_encoder, write_net
from safetensors.torch import load_file
from torch import nn

from compresskit.benchmark.plan import Plan
from compresskit.data.opening import open_source
from compresskit.errors import InputError, MachineError, UsageError
from compresskit.exporter.branches import flatten
from compresskit.ops.route.exits import WithExits, closed
from compresskit.runner.api import method, run
from compresskit.runner.loading import load
from compresskit.runner.timing import Timing
from compresskit.runtimes.onnxruntime import OnnxRuntime
from compresskit.runtimes.saturating import SaturatingOnnxRuntime
from compresskit.runtimes.saturation import analyse

NET = """
from torch import nn
from torch.nn import functional as F

class Block(nn.Module):
    def __init__(self, inside, outside, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.stride, self.extra = stride, outside - inside
    def forward(self, x):
        out = self.conv2(F.relu(self.bn1(self.conv1(x))))
        if self.extra:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.extra))
        return F.relu(out + x)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(Block(8, 8), Block(8, 8), Block(8, 16, 2), Block(16, 16))
        self.head = nn.Linear(16, 4)
    def forward(self, x):
        return self.head(self.blocks(F.relu(self.stem(x))).mean((2, 3)))

def net():
    return Net()

def bare():
    return nn.Sequential(nn.Flatten(), nn.Linear(432, 16), nn.ReLU(), nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64),
                         nn.ReLU(), nn.Linear(64, 2))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nets of random weights, and pictures some of which are easy."""
    folder = tmp_path_factory.mktemp("route")
    x, _ = write_net(folder, NET, 12, 512)
    x *= np.linspace(0.1, 3, len(x), dtype="float32").reshape(-1, 1, 1, 1)[np.random.default_rng(1).permutation(len(x))]
    np.savez(folder / "data.npz", x=x)
    scope: dict[str, Any] = {}
    exec(NET, scope)
    module = scope["net"]().eval()
    module.load_state_dict(torch.load(folder / "net.pt"))
    with torch.no_grad():
        np.savez(folder / "labelled.npz", x=x, y=module(torch.from_numpy(x)).argmax(1).numpy())
    return folder


def run_on(made: Path, out: Path, *stages: Any, source: str = "net.pt", net: str = "net", **how: Any) -> Any:
    model = load(made / source, arch=f"{made / 'net.py'}:{net}", input_shape=(1, 3, 12, 12))
    how = {"data": open_source(str(made / "data.npz")), "bench": False, "force": True, **how}
    return run(model, list(stages), out, **how)


def exits(**options: Any) -> Any:
    return method("route.exits", **{"epochs": 30, "batch_size": 32, **options})


def again(made: Path, out: Path, net: str = "net") -> nn.Module:
    body = load(out, arch=f"{made / 'net.py'}:{net}").body
    assert isinstance(body, nn.Module)
    return body.eval()


@pytest.mark.parametrize(
    ("net", "options"),
    [
        ("net", {}),
        ("bare", {}),
        pytest.param("net", {"convolutions": 2, "hidden": 0}, marks=pytest.mark.slow),
    ],
)
def test_module_and_file_leave_at_the_same_exits(made: Path, tmp_path: Path, net: str, options: dict[str, Any]) -> None:
    allowed: dict[str, Any] = {}
    if "convolutions" in options:
        labelled = open_source(str(made / "labelled.npz"))
        allowed = {"data": labelled, "eval_data": labelled, "max_drop": "12pt"}
    stage = exits(calibrate_on="last", **options)
    report = run_on(made, tmp_path / "out", stage, source=f"{net}.pt", net=net, **allowed)
    facts = report.history[-1]["facts"]
    assert facts["share"]["macs"] < 1 and facts["drop"] <= (12 if allowed else 0.5)
    assert any(gate.name == "ONNX parity" and gate.passed for gate in report.gates)
    module, before = again(made, tmp_path / "out", net), again(made, made / f"{net}.pt", net)
    assert isinstance(module, WithExits)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert module.state_dict().keys() == stored.keys()
    x = np.load(made / "data.npz")["x"][:64]
    session = OnnxRuntime().open(tmp_path / "out" / "model.onnx", 1)
    name = session.inputs[0].name
    with torch.no_grad():
        whole = module(torch.from_numpy(x))
        one = torch.cat([module(torch.from_numpy(x[i : i + 1])) for i in range(len(x))])
        with closed(module):
            last = module(torch.from_numpy(x))
        original = before(torch.from_numpy(x))
    assert torch.equal(last, original)
    left = (one - last).abs().amax(1) > 1e-4
    assert 0 < int(left.sum()) < len(x)
    assert torch.allclose(whole, one, atol=1e-5)
    for size in (1, 5, 64):
        found = np.concatenate([next(iter(session.run({name: x[i : i + size]}).values())) for i in range(0, 64, size)])
        assert np.abs(found - one.numpy()).max() <= 1e-5


@pytest.fixture(scope="module")
def routed(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with two exits, between which the width of the blocks changes."""
    folder = tmp_path_factory.mktemp("routed")
    run_on(made, folder / "a", exits(exits=2), export=False)
    return folder / "a"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rtn", {"bits": 8}),
        ("gptq", {"bits": 8, "samples": 32}),
        ("awq", {"bits": 8, "samples": 32}),
        ("hqq", {"bits": 8}),
        ("palette", {"bits": 8, "samples": 32}),
        pytest.param("adaround", {"samples": 32, "steps": 20}, marks=pytest.mark.slow),
        pytest.param("nf4", {}, marks=pytest.mark.slow),
        pytest.param("bnb-int8", {}, marks=pytest.mark.slow),
    ],
)
def test_what_is_quantized_afterwards_keeps_its_exits(
    made: Path, routed: Path, tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    report = run_on(made, tmp_path / "b", method(f"quantize.{name}", **options), source=str(routed))
    assert any(gate.name == "ONNX parity" and gate.passed for gate in report.gates)
    layers = report.history[-1]["facts"]["layers"]
    assert any(".exit." in name for name in layers)
    assert name in ("nf4", "bnb-int8") or "stem" in layers
    body = again(made, tmp_path / "b")
    assert isinstance(body, WithExits) and len(body.exits.thresholds) == 2


@pytest.mark.parametrize("stage", [method("quantize.int8-static", samples=64), method("quantize.int8-dynamic")])
def test_exits_in_8_bit_are_those_of_the_whole_graph(made: Path, routed: Path, tmp_path: Path, stage: Any) -> None:
    """Each answer is that of the first exit that is sure in 8 bit, and codes enter the branches."""
    report = run_on(made, tmp_path / "b", stage, source=str(routed))
    assert any(".exit." in name for name in report.history[-1]["facts"]["layers"])
    path = tmp_path / "b" / "model.onnx"
    whole = ir.load(path)
    thresholds = flatten(whole)
    ir.save(whole, tmp_path / "whole.onnx")
    x = np.load(made / "data.npz")["x"][:64]
    session, every = (OnnxRuntime().open(p, 1) for p in (path, tmp_path / "whole.onnx"))
    name = session.inputs[0].name
    last, *early = every.run({name: x}).values()
    expected, open_ = last.copy(), np.ones(len(x), bool)
    for logits, threshold in zip(early, thresholds, strict=True):
        sure = open_ & (np.exp(logits - logits.max(1, keepdims=True)).sum(1) ** -1 >= threshold)
        expected[sure], open_ = logits[sure], open_ & ~sure
    assert 0 < open_.sum() < len(x) and len(thresholds) == 2
    for size in (1, 4, 64):
        found = np.concatenate([next(iter(session.run({name: x[i : i + size]}).values())) for i in range(0, 64, size)])
        if stage.method == "int8-static":  # a scale of its own for each call moves with what is in the call
            np.testing.assert_allclose(found, expected, atol=1e-5)
        assert (found.argmax(1) == expected.argmax(1)).all()
    if stage.method == "int8-static":
        graph = ir.load(path).graph
        inner = next(n for n in graph if n.op_type == "If").attributes["else_branch"].as_graph()
        entering = next(node for node in inner if node.op_type == "Compress").inputs[0]
        assert entering is not None and entering.producer().op_type == "QuantizeLinear"  # type: ignore[union-attr]
        assert analyse(path).branches
        with pytest.raises(MachineError, match="behind early exits can't be emulated"):
            SaturatingOnnxRuntime().open(path, 1)


def test_auto_takes_what_knows_exits(made: Path, tmp_path: Path) -> None:
    later = method("quantize.auto", bits=8, samples=32)
    report = run_on(made, tmp_path / "b", exits(), later, source="bare.pt", net="bare")
    assert report.history[-1]["name"] == "quantize.int8-static"


def test_all_of_the_model_can_be_trained_with_them(made: Path, tmp_path: Path) -> None:
    report = run_on(made, tmp_path / "out", exits(body="trained", body_epochs=1))
    assert any(gate.name == "ONNX parity" and gate.passed for gate in report.gates)
    assert not report.history[-1]["facts"]["frozen"]
    assert any("the last exit is not the original's any more" in note for note in report.notes)
    module, before = again(made, tmp_path / "out"), again(made, made / "net.pt")
    name = "blocks.0.conv1.weight"
    assert not torch.equal(module.state_dict()[name], before.state_dict()[name])


@pytest.mark.slow
def test_the_same_twice(made: Path, tmp_path: Path) -> None:
    for out in ("a", "b"):
        run_on(made, tmp_path / out, exits())
    for name in ("model.safetensors", "model.onnx"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    "later", [method("prune.structured", ratio=0.3), method("factorize.svd", rank=2), method("route.exits")]
)
def test_other_kinds_cannot_follow(made: Path, tmp_path: Path, later: Any) -> None:
    with pytest.raises(UsageError, match=r"can't work on what route\.exits gives: only quantize\.rtn, ") as caught:
        run_on(made, tmp_path / "out", exits(), later)
    assert caught.value.hint == f"{later.kind.name} first, then route"
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match=r"quantize\.smoothquant can't work on what route\.exits gives"):
        run_on(made, tmp_path / "out", exits(), method("quantize.smoothquant"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration": 8}, "thresholds need 32 held-out samples or more, and 8 of 512 can be held out"),
        ({"body_epochs": 2}, "`body_epochs` is for `body` trained"),
        ({"augment": "crop"}, "the heads see each sample as it is"),
        ({"include": ("nothing",)}, "no layer matches 'nothing'"),
        ({"include": ("blocks.1",), "exclude": ("blocks.*",)}, "no block of the model can get an exit"),
    ],
)
def test_options_that_cannot_be_are_refused(made: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises((UsageError, InputError, ValueError)) as caught:
        run_on(made, tmp_path / "out", exits(**options))
    assert message in str(caught.value)


def test_a_changed_card_is_refused(made: Path, routed: Path, tmp_path: Path) -> None:
    shutil.copytree(routed, tmp_path / "out")
    card = tmp_path / "out" / "compresskit.json"
    text = card.read_text()
    for old, new in (('"threshold": 0.', '"threshold": 7.'), ('"blocks.', '"nothing.')):
        assert old in text
        card.write_text(text.replace(old, new))
        with pytest.raises(InputError):
            again(made, tmp_path / "out")


@pytest.mark.usefixtures("forked_workers")
def test_speed_is_that_on_real_samples(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = Plan(rounds=1, warmup_s=0.05).exactly(2)
    monkeypatch.setattr(Timing, "plan", lambda _: short)
    report = run_on(made, tmp_path / "out", exits(), bench=True)
    names = {m.name for m in report.measurements if m.model == "out"}
    assert {"latency_mean", "latency_p50", "latency_p99", "speedup", "leave_1"} <= names
    shares = [m.value for m in report.measurements if m.name.startswith("leave_")]
    assert sum(shares) == pytest.approx(100) and 0 < shares[0] < 100
    assert any(note.startswith("timed on 256 samples of") for note in report.notes)
    facts = report.history[-1]["facts"]
    planned = [100 * fact["share"] for fact in facts["layers"].values()]
    assert shares[0] == pytest.approx(planned[0], abs=15)
    assert not any(gate.name == "size" for gate in report.gates)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_layers_of_an_encoder_get_exits(tmp_path: Path) -> None:
    """Texts of several lengths: what is padding in a batch changes no answer."""
    pytest.importorskip("transformers")
    ids, mask = write_encoder(tmp_path, 4, 256)
    data = open_source(str(tmp_path / "data.npz"))
    report = run(load(tmp_path / "in"), [exits(exits=2)], tmp_path / "out", data=data, bench=False)
    assert any(gate.name == "ONNX parity" and gate.passed for gate in report.gates)
    layers = report.history[-1]["facts"]["layers"]
    assert {fact["form"] for fact in layers.values()} == {"tokens"}
    module = load(tmp_path / "out").body
    assert isinstance(module, WithExits)
    module.eval()
    given = {"input_ids": torch.from_numpy(ids)[:32], "attention_mask": torch.from_numpy(mask)[:32]}
    session = OnnxRuntime().open(tmp_path / "out" / "model.onnx", 1)
    feeds = {spec.name: given.get(spec.name, torch.zeros(32, 12, dtype=torch.int64)).numpy() for spec in session.inputs}
    found = session.run(feeds)["logits"]
    with torch.no_grad():
        for i in range(32):
            alone = {name: value[i : i + 1, : int(mask[i].sum())] for name, value in given.items()}
            assert np.abs(module(**alone).logits.numpy() - found[i : i + 1]).max() <= 1e-5
