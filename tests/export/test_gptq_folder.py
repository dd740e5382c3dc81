"""Folders in GPTQ's checkpoint format: unpacked here from the format's description, and refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_folders import make_folder
from safetensors.torch import load_file

import compresskit
from compresskit.errors import CompressKitError, GateError, UsageError
from compresskit.exporter.targets import get, gptq
from compresskit.ops.packed.grid import unpack
from compresskit.ops.packed.k_quant import K_QUANT
from compresskit.ops.packed.layout import Grid
from compresskit.ops.packed.modules import PackedLinear
from compresskit.runner.targets import check_targets, export_to


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("lm"), "llama")


def quantized(folder: Path, place: Path, **options: Any) -> compresskit.Model:
    steps = [compresskit.method("quantize.rtn", **options)]
    compresskit.run(folder, steps, place, export=False, bench=False)
    return compresskit.load(place)


def codes_of(words: list[int], bits: int) -> list[int]:
    """The format's description: words of 32 bits follow each other, and codes in them, all from the lowest bit on."""
    number = int.from_bytes(b"".join((word & 0xFFFFFFFF).to_bytes(4, "little") for word in words), "little")
    return [number >> at & (1 << bits) - 1 for at in range(0, 32 * len(words), bits)]


def read(folder: Path, layer: str, bits: int) -> tuple[list[list[int]], list[list[int]], torch.Tensor]:
    """Codes by output, zero points by group, and the weight that they stand for, ``(out, in)``."""
    told = json.loads((folder / "config.json").read_text())["quantization_config"]
    stored = load_file(folder / "model.safetensors")
    part = {kind: stored[f"{layer}.{kind}"] for kind in ("qweight", "qzeros", "scales", "g_idx")}
    assert [str(value.dtype) for value in part.values()] == [
        "torch.int32",
        "torch.int32",
        "torch.float16",
        "torch.int32",
    ]
    codes = [codes_of(column, bits) for column in part["qweight"].T.tolist()]
    less = {"gptq": 1, "gptq_v2": 0}[told["checkpoint_format"]]
    zeros = [[point + less for point in codes_of(row, bits)] for row in part["qzeros"].tolist()]
    groups = part["g_idx"].long()
    steps = torch.tensor(codes).T - torch.tensor(zeros)[groups]
    return codes, zeros, (part["scales"].float()[groups] * steps).T


CASES = [
    ({"bits": 2, "symmetric": True}, {}),
    ({"bits": 3}, {}),
    ({"bits": 3, "symmetric": True, "group_size": 0}, {}),
    ({"bits": 4, "symmetric": True}, {}),
    ({"bits": 8, "group_size": 32}, {}),
    ({"bits": 4, "layer_bits": ("*.1.mlp.down_proj=8/64",)}, {"model.layers.1.mlp.down_proj": (8, 64)}),
]


@pytest.mark.parametrize(("options", "others"), CASES, ids=["2", "3", "3 by row", "4", "8", "mixed"])
def test_codes_are_those_of_the_module(
    options: dict[str, Any], others: dict[str, tuple[int, int]], llama: Path, tmp_path: Path
) -> None:
    model = quantized(llama, tmp_path / "out", **options)
    report = export_to(model, get("gptq"), tmp_path / "gptq")
    assert [(gate.name, gate.passed) for gate in report.gates] == [("gptq values", True)]
    told = json.loads((tmp_path / "gptq" / "config.json").read_text())["quantization_config"]
    symmetric = options.get("symmetric", False)
    usual = options["bits"], options.get("group_size", 32) or -1
    assert (told["quant_method"], told["bits"], told["group_size"]) == ("gptq", *usual)
    assert (told["sym"], told["desc_act"]) == (symmetric, False)
    assert told["checkpoint_format"] == ("gptq" if symmetric else "gptq_v2")
    for name in ("model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj"):
        layer = model.module.get_submodule(name)
        assert isinstance(layer, PackedLinear)
        packed, (bits, _) = layer.packed, others.get(name, usual)
        codes, zeros, weight = read(tmp_path / "gptq", name, bits)
        _, size, _ = packed.grid.layout(packed.shape[1])
        assert codes == unpack(packed.codes, bits, size).flatten(1).tolist()
        if packed.zeros is None:
            assert {point for row in zeros for point in row} == {1 << (bits - 1)}
        torch.testing.assert_close(weight, layer.weight, rtol=0, atol=0)
    rules = {f"+:^{re.escape(name)}$": {"bits": kind[0], "group_size": kind[1]} for name, kind in others.items()}
    assert told.get("dynamic", {}) == rules
    assert any("differ by layer" in note for note in report.notes) == bool(others)


def test_what_has_no_codes_keeps_its_dtype(llama: Path, tmp_path: Path) -> None:
    """Embeddings and the head have no codes in the format, and other programs are told of layers that were left."""
    from transformers import LlamaForCausalLM

    half = tmp_path / "half"
    LlamaForCausalLM.from_pretrained(llama, dtype=torch.bfloat16).save_pretrained(half)
    model = quantized(half, tmp_path / "out", bits=4, exclude=("*down_proj", "lm_head"))
    report = export_to(model, get("gptq"), tmp_path / "gptq")
    stored, original = load_file(tmp_path / "gptq" / "model.safetensors"), load_file(half / "model.safetensors")
    for name in ("model.layers.0.mlp.down_proj.weight", "model.norm.weight", "lm_head.weight"):
        torch.testing.assert_close(stored[name], original[name], rtol=0, atol=0)
    assert stored["model.embed_tokens.weight"].dtype == torch.float16
    assert any("embed_tokens" in note and "float16" in note for note in report.notes)
    told = json.loads((tmp_path / "gptq" / "config.json").read_text())["quantization_config"]
    (named,) = told["modules_in_block_to_quantize"]
    assert len(named) == 12 and not any("down_proj" in name for name in named)
    assert set(told["dynamic"]) == {f"-:^model\\.layers\\.{at}\\.mlp\\.down_proj$" for at in range(2)}


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("quantize.nf4", {}, "the format has no nf4"),
    ("quantize.palette", {"bits": 4}, "the format has no palette4"),
    ("quantize.int8-static", {}, "gives ONNX files"),
    ("quantize.rtn", {"bits": 4}, r"mlp\.gate_proj.* sizes 176 × 64 are no multiples of 32"),
    ("quantize.auto", {"bits": 4}, r"mlp\.gate_proj.* sizes 176 × 64 are no multiples of 32"),
]


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> compresskit.Model:
    return compresskit.load(make_folder(tmp_path_factory.mktemp("lm"), "llama", intermediate_size=176))


@pytest.mark.parametrize(("method", "options", "why"), REFUSED)
def test_what_the_format_cannot_carry_is_refused_before_the_work(
    method: str, options: dict[str, Any], why: str, uneven: compresskit.Model
) -> None:
    with pytest.raises(UsageError, match=why):
        check_targets(uneven, [get("gptq")], [compresskit.method(method, **options)])


def test_layers_that_are_left_need_no_place(uneven: compresskit.Model) -> None:
    check_targets(uneven, [get("gptq")], [compresskit.method("quantize.rtn", bits=4, exclude=("*mlp*",))])


def test_grids_that_have_no_place() -> None:
    target = get("gptq")
    assert target.reason_against(Grid(3)) is None
    assert "q4_k" in str(target.reason_against(Grid(4, 32, symmetric=True, format=K_QUANT)))
    assert "fill groups" in str(target.reason_against_shape("model.layers.0.mlp.up_proj", (64, 96), Grid(4, 64)))
    assert target.reason_against_shape("lm_head", (100, 90), Grid(4, 64)) is None  # stored as floats


@pytest.mark.parametrize(
    ("name", "why"), [("mixtral", "can't carry MixtralForCausalLM"), ("gpt2", "can't carry GPT2LMHeadModel")]
)
def test_other_architectures_are_refused(name: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=why):
        check_targets(compresskit.load(make_folder(tmp_path, name)), [get("gptq")], [])


def test_scales_that_need_float32_are_refused(llama: Path, tmp_path: Path) -> None:
    model = quantized(llama, tmp_path / "out", bits=4)
    layer = model.module.get_submodule("model.layers.0.self_attn.q_proj")
    assert isinstance(layer, PackedLinear)
    layer.scales = layer.scales.float() * 1e6
    with pytest.raises(CompressKitError, match=r"q_proj: its scales need float32"):
        export_to(model, get("gptq"), tmp_path / "gptq")
    assert not (tmp_path / "gptq").exists()


def test_a_float_model_has_no_codes_to_write(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(CompressKitError, match="none of its blocks' layers has codes"):
        export_to(compresskit.load(llama), get("gptq"), tmp_path / "gptq")


@pytest.mark.parametrize("broken", ["_codes", "_half", "_groups", "_points"])
def test_the_gate_finds_what_is_written_wrong(
    broken: str, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = quantized(llama, tmp_path / "out", bits=3)
    right = getattr(gptq, broken)
    write = gptq.write_folder

    def wrong(*given: Any) -> torch.Tensor:
        found: torch.Tensor = right(*given).clone()
        found[-1, ...] += 1
        return found

    def written(*given: Any) -> None:
        monkeypatch.setattr(gptq, broken, wrong)
        write(*given)
        monkeypatch.setattr(gptq, broken, right)

    monkeypatch.setattr(gptq, "write_folder", written)
    with pytest.raises(GateError, match=r"holds other numbers than the model: model\.layers\.0"):
        export_to(model, get("gptq"), tmp_path / "gptq")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("options", [{"bits": 4, "symmetric": True}, {"bits": 3}, {"bits": 8, "exclude": ("*down*",)}])
def test_transformers_gives_the_modules_outputs(options: dict[str, Any], llama: Path, tmp_path: Path) -> None:
    """With optimum and gptqmodel, which compute in float16."""
    pytest.importorskip("gptqmodel")
    from transformers import AutoModelForCausalLM

    model = quantized(llama, tmp_path / "out", **options)
    export_to(model, get("gptq"), tmp_path / "gptq")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "gptq", dtype=torch.float16)
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        expected, found = model.module(ids).logits, loaded(ids).logits.float()
    assert float((found - expected).abs().max() / expected.abs().max()) < 0.01
