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


def vision_language(place: Path) -> Path:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**sizes, "model_type": "clip_vision_model", "image_size": 28, "patch_size": 14}
    text = {**sizes, "model_type": "llama", "num_key_value_heads": 1, "vocab_size": 100}
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=99)
    LlavaForConditionalGeneration(config).save_pretrained(place)
    return place


def encoder(place: Path) -> Path:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(**sizes, vocab_size=100)).save_pretrained(place)
    return place


@pytest.mark.parametrize("make", [vision_language, encoder])
def test_any_model_of_linear_layers_goes_to_compressed_tensors(make: Any, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    model = quantized(make(tmp_path / "folder"), tmp_path / "out", bits=4, symmetric=True)
    report = export_to(model, get("compressed-tensors"), tmp_path / "ct")
    (gate,) = report.gates
    assert gate.passed and gate.value is not None and gate.value < 2e-3
    floats = next(note for note in report.notes if "float16" in note)
    assert "embeddings" in floats and "q_proj" not in floats and "query" not in floats
    size = sum(file.stat().st_size for file in (tmp_path / "ct").glob("*.safetensors"))
    assert size < 0.5 * sum(file.stat().st_size for file in (tmp_path / "folder").glob("*.safetensors"))


def test_layers_without_a_form_in_compressed_tensors_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    model = quantized(make_folder(tmp_path, "gpt2"), tmp_path / "out", bits=4)
    with pytest.raises(InputError, match=r"can't carry transformer\.h\.0\.attn\.c_attn\.weight: .*Linear"):
        export_to(model, get("compressed-tensors"), tmp_path / "ct")


def test_what_a_folder_cannot_carry_is_named(tmp_path: Path) -> None:
    assert "4 or 8" in str(get("genai").reason_against(Grid(3)))
    assert "`group_size`" in str(get("genai").reason_against(Grid(4, 0)))
    pytest.importorskip("onnxruntime_genai")
    model = quantized(make_folder(tmp_path, "llama"), tmp_path / "out", bits=4, exclude=("*down_proj",))
    with pytest.raises(InputError, match=r"can't carry model\.layers\.0\.mlp\.down_proj .* it isn't quantized"):
        export_to(model, get("genai"), tmp_path / "genai")
