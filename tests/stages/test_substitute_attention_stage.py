"""Cheaper attention from options to bundle, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from net_folder import write_net
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
    model = load(made / "net.pt", arch=f"{made / 'net.py'}:net", input_shape=(1, 3, 12, 12))
    stage = method("substitute.attention", **{"guard": "size", **options})
    return run(model, [stage], out, data=open_source(str(made / "data.npz")), export=export, bench=False, force=True)


@pytest.mark.parametrize(
    "options",
    [
        {"window": 4},
        {"pattern": "linformer", "rank": 8, "epochs": 1, "batch_size": 16},
        {"pattern": "performer", "features": 16, "epochs": 1, "batch_size": 16, "transfer": 0.0},
        {"pattern": "linear", "epochs": 1, "batch_size": 16, "recover": "lora", "recover_rank": 2},
    ],
)
def test_the_bundle_rebuilds_what_was_measured(made: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    report = run_on(
        made, tmp_path / "out", export=options.get("pattern") != "linformer", exclude=("blocks.1.*",), **options
    )
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
    if options.get("pattern") != "linformer":
        assert any(gate.name == "ONNX parity" and gate.passed for gate in report.gates)


def test_layers_learn_the_outputs_of_the_originals(made: Path, tmp_path: Path) -> None:
    def attended(where: Path) -> torch.Tensor:
        module: Any = load(where, arch=f"{made / 'net.py'}:net", input_shape=(1, 3, 12, 12)).body
        found: list[torch.Tensor] = []
        module.blocks[0].attn.register_forward_hook(lambda _part, _given, out: found.append(out.detach()))
        module.eval()(torch.ones(1, 3, 12, 12) * torch.linspace(-1, 1, 12))
        return found[0]

    wanted, off = attended(made / "net.pt"), []
    for transfer in (0.0, 30.0):
        options = {"epochs": 6, "batch_size": 16, "lr": 1e-3, "optimizer": "adamw", "transfer": transfer}
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "linformer", "rank": 99}, "`rank` 99: the model has 37 tokens"),
        ({"exclude": ("nothing",)}, "no layer matches 'nothing'"),
        ({"transfer": 2.0}, "`transfer` is for training, and `epochs` is 0"),
    ],
)
def test_options_that_cannot_be_are_refused(made: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        run_on(made, tmp_path / "out", **options)
    assert message in str(caught.value)
