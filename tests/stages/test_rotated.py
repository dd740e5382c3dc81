"""The option that rotates weights first: the same from disk and in memory, on record, and carried by every target."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_folders import make_folder

import compresskit
from compresskit.checkpoint.tensors import open_tensors
from compresskit.data.opening import open_source
from compresskit.errors import UsageError
from compresskit.exporter.targets import get
from compresskit.runner.targets import export_to
from compresskit.stage import Context

pytest.importorskip("transformers")
IDS = torch.arange(3, 43).reshape(2, 20)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("lm"), "llama-3", louder=2)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ids") / "ids.npz"
    np.savez(path, input_ids=np.random.default_rng(0).integers(3, 500, (32, 24)))
    return path


def logits(folder: Path) -> Any:
    module: Any = compresskit.load(folder).body
    with torch.no_grad():
        return module(input_ids=IDS).logits


def off(folder: Path, out: Path) -> float:
    before = logits(folder)
    return float((logits(out) - before).norm() / before.norm())


def test_from_disk_and_in_memory_the_codes_are_the_same(tied: Path, tmp_path: Path) -> None:
    stage = compresskit.method("quantize.rtn", bits=8, rotate=True, exclude=("*.1.mlp.*",))
    report = compresskit.run(tied, [stage], tmp_path / "out", export=False, bench=False, seed=7)
    model = stage.run(compresskit.load(tied), Context(tmp_path, seed=7))
    stored = open_tensors(tmp_path / "out" / "model.safetensors")
    for name, value in model.module.state_dict().items():
        assert torch.equal(stored.get(name), value), name
    assert off(tied, tmp_path / "out") < 0.03
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    facts = compresskit.load(tmp_path / "out").card.history[-1].facts
    assert facts["rotation"] == {"kind": "hadamard", "size": 64, "head": 16, "seed": 7, "untied": "lm_head"}
    assert "lm_head" in facts["layers"] and not facts["ties"]
    notes = " ".join(report.notes)
    assert "Hadamard matrix (64 columns, 16 in each head's values, seed 7)" in notes
    head = sum(stored.get(n).nbytes for n in stored.names() if n.startswith("lm_head."))
    assert f"'lm_head' no longer shares the weight of the embeddings: {head:,} bytes more" in notes


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("quantize.hqq", {"bits": 8}),
        ("quantize.gptq", {"bits": 8}),
        ("quantize.awq", {"bits": 8}),
        ("quantize.rtn", {"bits": 8, "repair": 8}),
        ("quantize.auto", {"bits": 4, "target_bits": 8}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_method_that_has_it_rounds_the_rotated_model(
    tied: Path, samples: Path, tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    data = open_source(str(samples))
    stage = compresskit.method(name, rotate=True, **options)
    compresskit.run(tied, [stage], tmp_path / "out", data=data, export=False, bench=False)
    step = compresskit.load(tmp_path / "out").card.history[-1]
    assert step.options["rotate"] and step.facts["rotation"]["untied"] == "lm_head"
    assert off(tied, tmp_path / "out") < 0.05


def test_bits_by_layer_are_measured_on_the_rotated_model(tied: Path, samples: Path, tmp_path: Path) -> None:
    model = compresskit.load(tied)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    auto = compresskit.method("quantize.auto", rotate=True, target_bits=4.9, preset="fast")
    notes = " ".join(auto.choose(model, Context(tmp_path, data=open_source(str(samples)))).notes)
    assert "of 16 layers wider than 4 bit" in notes, "15 share their weights with none in the original"
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items()), "only a copy"


@pytest.mark.parametrize("target", ["gguf", "compressed-tensors"])
def test_targets_carry_a_head_of_its_own(tied: Path, tmp_path: Path, target: str) -> None:
    pytest.importorskip(target.replace("-", "_"))
    keep = {"exclude": ("*embed*",)} if target == "compressed-tensors" else {}
    stage = compresskit.method("quantize.rtn", bits=4, symmetric=True, rotate=True, **keep)
    model = stage.run(compresskit.load(tied), Context(tmp_path))
    report = export_to(model, get(target), tmp_path / f"out{get(target).ending}")
    assert [gate.passed for gate in report.gates] == [True]


def test_what_has_no_architecture_is_not_rotated(tied: Path, tmp_path: Path) -> None:
    stage = compresskit.method("quantize.rtn", rotate=True)
    with pytest.raises(UsageError, match="`rotate` needs the architecture"):
        compresskit.run(tied / "model.safetensors", [stage], tmp_path / "out", export=False)
