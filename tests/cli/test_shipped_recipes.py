"""Every recipe that ships runs whole on a small model of its kind."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_material import Cli

from compresskit.recipe import shipped
from compresskit.report import read_report

NET = """\
from torch import nn


def cnn():
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 4),
    )


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)
        )

    def forward(self, x):
        return (x + self.inner(x)).relu()


def residual():
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), *(Block() for _ in range(4)), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(128, 4),
    )
"""
HF = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers")


def cnn(name: str = "cnn") -> tuple[str, ...]:
    import torch

    Path("net.py").write_text(NET, encoding="utf-8")
    space: dict[str, Callable[[], torch.nn.Module]] = {}
    exec(NET, space)
    torch.manual_seed(0)
    module = space[name]().eval()
    torch.save(module.state_dict(), "m.pt")
    x = np.random.default_rng(0).normal(size=(96, 3, 8, 8)).astype(np.float32)
    with torch.no_grad():
        np.savez("d.npz", x=x, y=module(torch.from_numpy(x)).argmax(1).numpy())
    return "m.pt", "--arch", f"net.py:{name}", "--input-shape", "1,3,8,8"


def residual() -> tuple[str, ...]:
    return cnn("residual")


def bert(layers: int = 1) -> tuple[str, ...]:
    import torch
    import transformers as t

    torch.manual_seed(0)
    small = {"hidden_size": 64, "num_hidden_layers": layers, "num_attention_heads": 4, "intermediate_size": 96}
    t.BertModel(t.BertConfig(vocab_size=99, max_position_embeddings=64, **small)).save_pretrained("m")
    return tokens("m")


def deep_bert() -> tuple[str, ...]:
    return bert(3)


def llama() -> tuple[str, ...]:
    import torch
    import transformers as t

    torch.manual_seed(0)
    small = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 96}
    config = t.LlamaConfig(
        vocab_size=99, max_position_embeddings=64, num_key_value_heads=2, tie_word_embeddings=True, **small
    )
    t.LlamaForCausalLM(config).save_pretrained("m")
    return tokens("m")


def mixture() -> tuple[str, ...]:
    import torch
    import transformers as t

    torch.manual_seed(0)
    small = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    config = t.MixtralConfig(
        vocab_size=99, max_position_embeddings=64, num_key_value_heads=2, num_local_experts=4, **small
    )
    t.MixtralForCausalLM(config).save_pretrained("m")
    return tokens("m")


def tokens(name: str) -> tuple[str, ...]:
    np.savez("d.npz", input_ids=np.random.default_rng(0).integers(0, 99, (64, 12)))
    return (name,)


CASES = {
    "edge-int8": (cnn, ("steps.0.samples=32",)),
    "edge-4bit": (cnn, ("steps.0.preset=fast",)),
    "cpu-fast": (bert, ("steps.0.samples=32",)),
    "prune-distill-int8": (
        residual,
        ("steps.0.samples=32", "steps.1.samples=32", "steps.2.epochs=1", "steps.3.samples=32"),
    ),
    "collapse-int8": (residual, ("steps.0.samples=32", "steps.0.guard=size", "steps.1.samples=32")),
    "bert-small": (deep_bert, ("steps.0.student-depth=2", "steps.0.epochs=1", "steps.2.samples=32")),
    "llm-4bit": (llama, ("steps.0.samples=32",)),
    "tiny": (
        cnn,
        ("steps.0.epochs=1", "steps.0.samples=32", "steps.1.epochs=1", "steps.2.epochs=1", "steps.3.samples=32"),
    ),
    "exits-int8": (
        residual,
        (
            "steps.0.epochs=1",
            "steps.0.exit-drop=30pt",
            "steps.0.calibration=40",
            "steps.0.convolutions=1",
            "steps.1.samples=32",
        ),
    ),
    "palette-small": (cnn, ("steps.0.samples=32",)),
    "moe-half": (mixture, ("steps.0.samples=32", "steps.0.epochs=1", "steps.1.samples=32")),
    "qlora": (llama, ("steps.1.epochs=1", "steps.1.rank=4")),
}


def test_each_is_tried() -> None:
    assert set(CASES) == set(shipped.names())


SLOW = ("bert-small", "moe-half", "qlora")
"""Tried on request: a quarter of a minute each."""


@HF
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in CASES])
def test_a_recipe_that_ships_runs(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    make, sets = CASES[name]
    model = make()
    evaluated = (
        ("--eval-data", "d.npz") if make not in (bert, deep_bert) else ()
    )  # embeddings of numbers have no metric
    changes = [word for change in (*sets, "checks.max-drop=~") for word in ("--set", change)]
    done = cli("run", name, *model, "--data", "d.npz", *evaluated, *changes, "--no-bench", "--no-cache", "-o", "out")
    assert done.code in (0, 1), done
    found = read_report(Path("out/report.json"))
    kept = [step.name.partition(".")[0] for step in found.steps if step.state != "undone"]
    applied = iter(entry["name"].partition(".")[0] for entry in found.history)
    assert kept and all(stage in applied for stage in kept), "in this order, whatever else a step did"
    assert Path("out/model.onnx").is_file()
