"""Cheaper attention from options to bundle, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from net_folder import run_net, write_net
from safetensors.torch import load_file
from test_substitute_tokens_stage import NET
from torch import nn

from compresskit.data.opening import open_source
from compresskit.errors import InputError, UsageError
from compresskit.ops.substitute.sparse import SparseAttention
from compresskit.runner.api import method, run
from compresskit.runner.loading import load
from compresskit.stages import shared_latency

NAMES = [f"blocks.{i}.attn" for i in range(3)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small vision transformer of random weights, and labelled pictures."""
    folder = tmp_path_factory.mktemp("attention")
    write_net(folder, NET, 12)
    return folder


def run_on(made: Path, out: Path, *, export: bool = False, **options: Any) -> Any:
    stage = method("substitute.attention", **{"guard": "size", **options})
    return run_net(made, out, stage, export=export)


@pytest.mark.parametrize(
    "options",
    [
        {"window": 4},
        {"pattern": "linformer", "rank": 8, "epochs": 1, "batch_size": 16},
        pytest.param(
            {"pattern": "performer", "features": 16, "epochs": 1, "batch_size": 16, "transfer": 0.0},
            marks=pytest.mark.slow,
        ),
        {"pattern": "linear", "epochs": 1, "batch_size": 16, "recover": "lora", "recover_rank": 2},
    ],
)
def test_the_bundle_rebuilds_what_was_measured(made: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    export = options.get("pattern", "window") in ("window", "performer")
    report = run_on(made, tmp_path / "out", export=export, exclude=("blocks.1.*",), **options)
    layers = report.history[-1]["facts"]["layers"]
    assert list(layers) == [NAMES[0], NAMES[2]] and report.coverage.skipped[NAMES[1]] == "excluded"
    body: Any = load(tmp_path / "out", arch=f"{made / 'net.py'}:net").body
    assert isinstance(body, nn.Module)
    assert [n for n, m in body.named_modules() if isinstance(m, SparseAttention)] == [NAMES[0], NAMES[2]]
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert body.state_dict().keys() == stored.keys()
    assert all(torch.equal(body.state_dict()[key], value) for key, value in stored.items())
    if "window" in options:
        assert all(fact["everywhere"] == 1 for fact in layers.values())
    if export:
        assert any(gate.name == "ONNX parity" and gate.passed for gate in report.gates)


def test_layers_learn_the_outputs_of_the_originals(made: Path, tmp_path: Path) -> None:
    def attended(where: Path) -> torch.Tensor:
        module: Any = load(where, arch=f"{made / 'net.py'}:net", input_shape=(1, 3, 12, 12)).body
        found: list[torch.Tensor] = []
        module.blocks[0].attn.register_forward_hook(lambda _part, _given, out: found.append(out.detach()))
        module.eval()(torch.ones(1, 3, 12, 12) * torch.linspace(-1, 1, 12))
        return found[0]

    wanted, off = attended(made / "net.pt"), list[float]()
    for transfer in (0.0, 30.0):
        options: dict[str, Any] = {
            "epochs": 6,
            "batch_size": 16,
            "lr": 1e-3,
            "optimizer": "adamw",
            "transfer": transfer,
        }
        report = run_on(made, tmp_path / "out", pattern="linear", **options)
        assert any("attention transfer: 3 layers" in note for note in report.notes) == (transfer > 0)
        off.append(float((attended(tmp_path / "out") - wanted).norm() / wanted.norm()))
    assert off[1] < 0.9 * off[0], off


def test_what_is_no_faster_is_refused_with_its_figure(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_latency, "share_of_model", lambda *_args, **_more: 1.31)
    with pytest.raises(InputError, match=r"gains nothing with 37 tokens: the model took 1\.31 of the original's time"):
        run_on(made, tmp_path / "out", window=4, guard="latency")
    monkeypatch.setattr(shared_latency, "share_of_model", lambda *_args, **_more: 0.6)
    report = run_on(made, tmp_path / "out", window=4, guard="latency")
    assert report.history[-1]["facts"]["time"] == 0.6


def replaced(report: Any) -> list[str]:
    return list(report.history[-1]["facts"]["layers"])


def test_the_layers_that_change_the_output_least_are_replaced(made: Path, tmp_path: Path) -> None:
    """The first layer is made to attend almost evenly, so a kernel changes it least; the last one sharply."""
    state = torch.load(made / "net.pt", weights_only=True)
    for number, gain in enumerate((0.01, 3.0, 30.0)):
        state[f"blocks.{number}.attn.qkv.weight"][:32] *= gain
    torch.save(state, tmp_path / "net.pt")
    model = load(tmp_path / "net.pt", arch=f"{made / 'net.py'}:net", input_shape=(1, 3, 12, 12))
    stage = method("substitute.attention", guard="size", pattern="performer", count=1)
    data = open_source(str(made / "data.npz"))
    report = run(model, [stage], tmp_path / "out", data=data, export=False, bench=False)
    assert replaced(report) == NAMES[:1]
    assert [report.coverage.skipped[name] for name in NAMES[1:]] == ["other layers change the output less"] * 2
    assert any(note.startswith("1 of 3 attention layers: each token") for note in report.notes)


def made_up_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer saves a tenth, and nothing is exported for it."""

    def ratio(module: nn.Module, *_: object) -> float:
        return 0.99 - 0.1 * sum(isinstance(part, SparseAttention) for part in module.modules())

    monkeypatch.setattr(shared_latency, "_ratio", ratio)
    monkeypatch.setattr("compresskit.exporter.checked.export_checked", lambda *_args: None)


@pytest.mark.parametrize(("target", "count"), [(0.9, 1), (0.8, 2), (0.7, 3)])
def test_a_latency_is_aimed_at_with_few_layers(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: float, count: int
) -> None:
    made_up_times(monkeypatch)
    facts = run_on(made, tmp_path / "out", window=4, target_latency=target, guard="latency").history[-1]["facts"]
    assert len(facts["layers"]) == count and facts["time"] <= target
    assert facts["timed"][-1] == [round(1 - count / 3, 4), facts["time"]]


@pytest.mark.parametrize(
    ("count", "reached"),
    [
        (None, "0.69 was measured at the most layers replaced (3)"),
        (2, "0.79 was measured at the most layers replaced (2)"),
    ],
)
def test_a_latency_out_of_reach_is_refused_with_what_was_measured(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int | None, reached: str
) -> None:
    made_up_times(monkeypatch)
    with pytest.raises(UsageError) as caught:
        run_on(made, tmp_path / "out", window=4, target_latency=0.6, count=count)
    assert reached in str(caught.value) and "a smaller `window`" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 4}, "`count` 4: the model has 3 layers of attention"),
        ({"exclude": ("*",)}, "`include` and `exclude` leave no layer of attention"),
        ({"pattern": "linformer", "rank": 99}, "`rank` 99: the model has 37 tokens"),
        ({"exclude": ("nothing",)}, "no layer matches 'nothing'"),
        ({"transfer": 2.0}, "`transfer` is for training, and `epochs` is 0"),
    ],
)
def test_options_that_cannot_be_are_refused(made: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        run_on(made, tmp_path / "out", **options)
    assert message in str(caught.value)
