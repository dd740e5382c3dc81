"""Merged tokens from options to bundle: what is kept, what is refused with its reason, and what comes back."""

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
from compresskit.ops.substitute.merged import MergedBlocks, Passed
from compresskit.runner.api import method, run
from compresskit.runner.loading import load
from compresskit.stages import shared_latency

NET = """
import torch
from torch import nn

class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_heads, self.qkv, self.proj = 2, nn.Linear(16, 48), nn.Linear(16, 16)
    def forward(self, x):
        n, t, w = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(((q @ k.transpose(2, 3) * 8 ** -0.5).softmax(-1) @ v).transpose(1, 2).reshape(n, t, w))

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2, self.attn = nn.LayerNorm(16), nn.LayerNorm(16), Attention()
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.first = nn.Conv2d(3, 16, 2, 2), nn.Parameter(torch.randn(1, 1, 16))
        self.blocks, self.head = nn.ModuleList([Block() for _ in range(3)]), nn.Linear(16, 4)
    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])

def net():
    return Net()
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small vision transformer of random weights, and labelled pictures."""
    folder = tmp_path_factory.mktemp("tokens")
    write_net(folder, NET, 12)
    return folder


def run_on(made: Path, out: Path, *stages: Any, data: bool = False, **how: Any) -> Any:
    return run_net(made, out, *stages, data=data, **how)


def tokens(**options: Any) -> Any:
    return method("substitute.tokens", **{"guard": "size", **options})


def again(made: Path, out: Path) -> nn.Module:
    body = load(out, arch=f"{made / 'net.py'}:net").body
    assert isinstance(body, nn.Module)
    return body.eval()


def counts(report: Any) -> list[int]:
    layers = report.history[-1]["facts"]["layers"]
    return [layers[f"blocks.{i}"].get("merged", 0) for i in range(3)]


@pytest.mark.parametrize(
    ("options", "merged"),
    [
        ({"tokens": 5}, [5, 5, 5]),
        ({"tokens": 30}, [18, 9, 4]),
        ({"share": 0.25}, [9, 7, 5]),
        ({"tokens": 6, "exclude": ("blocks.0", "blocks.2")}, [0, 6, 0]),
        ({"reduction": "prune", "tokens": 5}, [5, 5, 5]),
        ({"reduction": "fuse", "tokens": 30}, [18, 9, 4]),
    ],
)
def test_the_bundle_rebuilds_what_was_measured(
    made: Path, tmp_path: Path, options: dict[str, Any], merged: list[int]
) -> None:
    report = run_on(made, tmp_path / "out", tokens(**options))
    assert counts(report) == merged
    facts = report.history[-1]["facts"]
    assert facts["tokens"] == [37, 37 - sum(merged)] and facts["protected"] == 1 and facts["left"]["macs"] < 1
    module, stored = again(made, tmp_path / "out"), load_file(tmp_path / "out" / "model.safetensors")
    assert isinstance(module.blocks[0], MergedBlocks) and isinstance(module.blocks[2], Passed)  # type: ignore[index]
    assert module.state_dict().keys() == stored.keys()
    assert all(torch.equal(module.state_dict()[key], value) for key, value in stored.items())
    assert {name for name, why in report.coverage.skipped.items() if why == "excluded"} == set(
        options.get("exclude", ())
    )


def test_the_size_asked_for_is_met(made: Path, tmp_path: Path) -> None:
    report = run_on(made, tmp_path / "out", tokens(budget=0.8))
    assert 0.75 < report.history[-1]["facts"]["left"]["macs"] <= 0.8
    assert (
        report.models[1].macs <= 0.8 * report.models[0].macs
        and report.models[1].parameters == report.models[0].parameters
    )


@pytest.mark.slow
def test_merged_tokens_are_exported_trained_and_quantized(made: Path, tmp_path: Path) -> None:
    report = run_on(made, tmp_path / "out", tokens(tokens=5, epochs=1, batch_size=16), export=True, data=True)
    assert any(gate.name == "ONNX parity" and gate.passed for gate in report.gates)
    assert not any(gate.name == "size" for gate in report.gates), "the merging itself takes space in the file"
    assert any("the teacher's outputs" in note for note in report.notes)
    source = str(tmp_path / "out")
    for later in (
        method("quantize.gptq", bits=4, group_size=16, samples=32),
        method("factorize.svd", rank=4, round_to=2),
    ):
        run_on(made, tmp_path / "later", later, source=source, data=True)
        stored = load_file(tmp_path / "later" / "model.safetensors")
        assert again(made, tmp_path / "later").state_dict().keys() == stored.keys()
    with pytest.raises(InputError, match="no sequence of transformer blocks was recognized"):
        run_on(made, tmp_path / "no", tokens(tokens=2), source=source)


@pytest.mark.parametrize(("time", "kept"), [(0.8, True), (1.07, False)])
def test_what_is_no_faster_is_refused_with_its_figure(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, time: float, kept: bool
) -> None:
    monkeypatch.setattr(shared_latency, "share_of_model", lambda *_args, **_more: time)
    if not kept:
        with pytest.raises(InputError, match=r"gains nothing with 37 tokens: the model took 1\.07 of the original's"):
            run_on(made, tmp_path / "out", tokens(tokens=4, guard="latency"))
        assert not (tmp_path / "out").exists()
        return
    report = run_on(made, tmp_path / "out", tokens(tokens=4, guard="latency"))
    assert report.history[-1]["facts"]["time"] == 0.8
    assert any("0.800 of the original's time" in note for note in report.notes)


def test_a_latency_is_aimed_at(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is timed is made up: the time follows the tokens of the last block."""

    def ratio(module: Any, *_: object) -> float:
        return 1.1 - 0.02 * float(sum(module.blocks[0]._counts))

    monkeypatch.setattr(shared_latency, "_ratio", ratio)
    report = run_on(made, tmp_path / "out", tokens(target_latency=0.8, guard="latency"))
    facts = report.history[-1]["facts"]
    assert facts["time"] <= 0.8 and facts["timed"][-1][1] == facts["time"] and sum(counts(report)) >= 15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no target is given. Give one of `tokens`, `share`, `budget`, `target_latency`"),
        ({"tokens": 2, "share": 0.1}, "several targets are given"),
        ({"budget": 0.2}, "`budget` 0.2 can't be met: with every pair merged"),
        ({"tokens": 2, "exclude": ("nothing",)}, "no layer matches 'nothing'"),
    ],
)
def test_options_that_cannot_be_are_refused(made: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        run_on(made, tmp_path / "out", tokens(**options))
    assert message in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["merge", "prune", "fuse"])
@pytest.mark.filterwarnings("ignore")
def test_an_encoder_of_transformers_takes_texts_of_any_length(tmp_path: Path, reduction: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.BertConfig(vocab_size=40, max_position_embeddings=48, **sizes)
    transformers.BertModel(config).save_pretrained(tmp_path / "in")
    ids = np.random.default_rng(0).integers(2, 40, (8, 24))
    mask = np.ones_like(ids)
    mask[1::2, 15:] = 0
    np.savez(tmp_path / "data.npz", input_ids=ids, attention_mask=mask)
    data = open_source(str(tmp_path / "data.npz"))
    with pytest.raises(UsageError, match="`tokens` is for inputs of one length"):
        run(load(tmp_path / "in"), [tokens(tokens=3)], tmp_path / "out", data=data, bench=False)
    report = run(
        load(tmp_path / "in"), [tokens(share=0.25, reduction=reduction)], tmp_path / "out", data=data, bench=False
    )
    facts = report.history[-1]["facts"]
    assert [fact["merged"] for fact in facts["layers"].values()] == [2, 2] and facts["window"] == 8
    assert any("transformers alone cannot load" in note for note in report.notes)
    assert any(gate.name == "ONNX parity" and gate.passed for gate in report.gates)
    body = load(tmp_path / "out").body
    assert isinstance(body, nn.Module)
    session: Any = pytest.importorskip("onnxruntime").InferenceSession(str(tmp_path / "out" / "model.onnx"))
    for length in (3, 9, 24, 40):
        given = {"input_ids": ids[:2].repeat(2, 1)[:, :length], "attention_mask": np.ones((2, length), np.int64)}
        more = {i.name: np.zeros((2, length), np.int64) for i in session.get_inputs() if i.name not in given}
        with torch.no_grad():
            wanted = body(**{name: torch.from_numpy(array) for name, array in given.items()})[0].numpy()
        np.testing.assert_allclose(session.run(None, {**given, **more})[0], wanted, atol=2e-5)
