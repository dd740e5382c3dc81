"""Folders for onnxruntime-genai and for compressed-tensors: behind gates of their own, and refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lm_folders import PROMPT, make_folder

import compresskit
from compresskit.errors import InputError
from compresskit.exporter.targets import get
from compresskit.ops.packed.layout import Grid
from compresskit.runner.generating import generate
from compresskit.runner.targets import export_to


def quantized(folder: Path, place: Path, **options: Any) -> compresskit.Model:
    steps = [compresskit.method("quantize.rtn", **options)]
    compresskit.run(folder, steps, place, export=False, bench=False)
    return compresskit.load(place)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [("llama", {"bits": 4}), ("qwen3", {"bits": 8, "symmetric": True}), ("llama", None)],
    ids=["4 bit", "8 bit symmetric", "float"],
)
def test_genai_gives_the_modules_logits_with_a_cache(name: str, options: dict[str, Any] | None, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_genai")
    folder = make_folder(tmp_path, name)
    model = compresskit.load(folder) if options is None else quantized(folder, tmp_path / "out", **options)
    report = export_to(model, get("genai"), tmp_path / "out-genai")
    values = {gate.name: gate.value for gate in report.gates}
    assert values["prefill logits"] < 1e-5 and values["cached logits"] < 1e-5 and values["greedy tokens"] == 16
    assert generate(tmp_path / "out-genai", PROMPT, tokens=8)


@pytest.mark.parametrize(
    "options",
    [{"bits": 4}, {"bits": 3, "symmetric": True, "layer_bits": ("*mlp*=8/64",)}],
    ids=["zero points", "bits by layer"],
)
def test_transformers_loads_compressed_tensors(options: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    model = quantized(make_folder(tmp_path, "llama"), tmp_path / "out", exclude=("*embed*",), **options)
    report = export_to(model, get("compressed-tensors"), tmp_path / "ct")
    (gate,) = report.gates
    assert gate.passed and gate.value is not None
    assert gate.value < (2e-3 if options["bits"] == 4 else 1e-5)  # transformers unpacks by zero points in float16
    assert any("dequantize=True" in note for note in report.notes) == (options["bits"] == 4)


def test_what_a_folder_cannot_carry_is_named(tmp_path: Path) -> None:
    assert "4 or 8" in str(get("genai").reason_against(Grid(3)))
    assert "`group_size`" in str(get("genai").reason_against(Grid(4, 0)))
    pytest.importorskip("onnxruntime_genai")
    model = quantized(make_folder(tmp_path, "llama"), tmp_path / "out", bits=4, exclude=("*down_proj",))
    with pytest.raises(InputError, match=r"can't carry model\.layers\.0\.mlp\.down_proj .* it isn't quantized"):
        export_to(model, get("genai"), tmp_path / "genai")
