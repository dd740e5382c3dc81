"""GGUF files: the module's own numbers, and llama.cpp writes the module's own text."""

from __future__ import annotations

import json
import os
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_folders import FOLDERS, PROMPT, make_folder

import compresskit
from compresskit.errors import CompressKitError, InputError, UsageError
from compresskit.exporter.targets import get, names
from compresskit.ops.packed.grid import dequantize
from compresskit.ops.packed.k_quant import K_QUANT
from compresskit.ops.packed.layout import Grid
from compresskit.ops.packed.modules import PackedLayer
from compresskit.ops.packed.nf4 import NF4
from compresskit.runner.targets import check_targets, export_to

gguf = pytest.importorskip("gguf")
os.environ.setdefault("GGML_NO_BACKTRACE", "1")
NEW = 24


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("lm"), "llama")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of whole super-blocks, but for those of 384 columns."""
    place = tmp_path_factory.mktemp("wide")
    return make_folder(place, "llama", louder=1.8, hidden_size=256, intermediate_size=384)


def quantized(folder: Path, place: Path, **options: Any) -> Path:
    steps = [compresskit.method("quantize.rtn", **options)]
    compresskit.run(folder, steps, place, export=False, bench=False)
    return place


def written(folder: Path, file: Path) -> compresskit.Model:
    model = compresskit.load(folder)
    report = export_to(model, get("gguf"), file)
    assert [gate.passed for gate in report.gates] == [True]
    return model


def prompt_of(folder: Path) -> list[int]:
    from tokenizers import Tokenizer

    ids: list[int] = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(PROMPT).ids
    return ids


def of_module(model: compresskit.Model, prompt: list[int]) -> list[int]:
    made = model.module.generate(  # type: ignore[operator]
        torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, eos_token_id=None, use_cache=True
    )
    return made[0, len(prompt) :].tolist()  # type: ignore[no-any-return]


def of_llama_cpp(file: Path, prompt: list[int]) -> tuple[list[int], int]:
    """Greedy tokens after a prompt, and how many tokens the file's own tokenizer makes of PROMPT."""
    llama_cpp = pytest.importorskip("xllamacpp")
    params = llama_cpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.verbosity = str(file), 256, 1, -1
    params.warmup, params.cpuparams.n_threads = False, 1
    params.cache_type_k = params.cache_type_v = llama_cpp.ggml_type.GGML_TYPE_F32
    server = llama_cpp.Server(params)
    counted = server.handle_completions({"prompt": PROMPT, "max_tokens": 1})["usage"]["prompt_tokens"]
    asked = {"prompt": prompt, "n_predict": NEW, "temperature": 0, "return_tokens": True, "cache_prompt": False}
    request = urllib.request.Request(
        f"{server.listening_address}/completion", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["tokens"], counted


@pytest.mark.parametrize(("bits", "symmetric", "kind"), [(4, True, "Q4_0"), (8, True, "Q8_0"), (4, False, "Q4_1")])
def test_codes_are_carried_and_llama_cpp_says_the_same(
    llama: Path, tmp_path: Path, bits: int, symmetric: bool, kind: str
) -> None:
    bundle = quantized(llama, tmp_path / "out", bits=bits, symmetric=symmetric)
    model = written(bundle, tmp_path / "out.gguf")
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    packed = {name: layer for name, layer in model.module.named_modules() if isinstance(layer, PackedLayer)}
    place = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    assert len(packed) == 16
    for name, layer in packed.items():
        tensor = stored[place.get_name(f"{name}.weight", (".weight",))]
        assert tensor.tensor_type.name == kind
        found = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type))
        expected = dequantize(layer.packed)
        if name.endswith(("q_proj", "k_proj")):
            rows, head = len(expected), 16
            expected = expected.reshape(rows // head, 2, head // 2, -1).swapaxes(1, 2).reshape(rows, -1)
        if symmetric:
            assert torch.equal(found, expected)
        else:
            assert torch.allclose(found, expected, atol=float(expected.abs().max()) * 2**-10)
    prompt = prompt_of(bundle)
    # llama.cpp rounds activations to 8 bits where weights are codes: random weights let the two part after a while.
    made, counted = of_llama_cpp(tmp_path / "out.gguf", prompt)
    assert made[:5] == of_module(model, prompt)[:5]
    assert counted == len(prompt)


def test_k_quants_are_carried_bit_by_bit_and_llama_cpp_says_the_same(wide: Path, tmp_path: Path) -> None:
    of_layers = {"*q_proj": 2, "*k_proj": 3, "*up_proj": 5, "lm_head": 6, "*v_proj": 8}
    layer_bits = tuple(f"{glob}={bits}" for glob, bits in of_layers.items())
    bundle = quantized(wide, tmp_path / "out", bits=4, weight_format="k-quant", layer_bits=layer_bits)
    model = compresskit.load(bundle)
    report = export_to(model, get("gguf"), tmp_path / "out.gguf")
    assert report.gates[0].value == 0 and "bit-equal" in report.gates[0].reason
    stored = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    kinds = {
        "attn_q": "Q2_K", "attn_k": "Q3_K", "attn_v": "Q8_0", "attn_output": "Q4_K", "ffn_gate": "Q4_K",
        "ffn_up": "Q5_K", "ffn_down": "Q4_0",
    }  # fmt: skip
    assert {name: stored[f"blk.1.{name}.weight"] for name in kinds} == kinds
    assert (stored["output.weight"], stored["token_embd.weight"]) == ("Q6_K", "Q4_K")
    notes = model.card.history[-1].facts["notes"]
    assert len(notes) == 2 and notes[0].startswith("k-quant ") and "2 layers" in notes[1]  # of 384 columns
    prompt = prompt_of(bundle)
    made, counted = of_llama_cpp(tmp_path / "out.gguf", prompt)
    assert made == of_module(model, prompt) and len(made) == NEW
    assert counted == len(prompt)


@pytest.mark.parametrize("name", ["mixtral", "gpt2"])
def test_codes_of_fused_experts_and_of_conv1d_are_carried(name: str, tmp_path: Path) -> None:
    out = quantized(make_folder(tmp_path, name), tmp_path / "out", bits=4, symmetric=True, group_size=32)
    written(out, tmp_path / "out.gguf")
    types = [tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors]
    assert types.count("Q4_0") == {"mixtral": 2 * (4 + 3) + 2, "gpt2": 2 * 4 + 2}[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_llama_cpp_says_what_each_architecture_says(name: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path, name)
    model = written(folder, tmp_path / "model.gguf")
    prompt = prompt_of(folder)
    made, counted = of_llama_cpp(tmp_path / "model.gguf", prompt)
    assert made[:16] == of_module(model, prompt)[:16]
    assert counted == len(prompt)


@pytest.mark.slow
def test_a_real_model_says_the_same_in_4_bits(shared: Path, tmp_path: Path) -> None:
    import shutil

    from lm_folders import add_tokenizer

    shutil.copytree(shared / "models" / "stories260k", tmp_path / "stories")
    add_tokenizer(tmp_path / "stories")
    bundle = quantized(tmp_path / "stories", tmp_path / "out", bits=4, symmetric=True)
    model = written(bundle, tmp_path / "out.gguf")
    prompt = [1, 403, 407, 261, 378]
    assert of_llama_cpp(tmp_path / "out.gguf", prompt)[0] == of_module(model, prompt)


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        (Grid(8, 32), "`symmetric`"), (Grid(4, 16, True), "`group_size` 32"), (Grid(4, 32), None), (Grid(2, 64), None),
        (Grid(8, 0, True), None), (Grid(3, 16, True, K_QUANT), None), (Grid(4, 64, True, NF4), "nf4 is no type"),
    ],
)  # fmt: skip
def test_what_has_no_block_is_named(grid: Grid, said: str | None) -> None:
    reason = get("gguf").reason_against(grid)
    assert reason is None if said is None else said in str(reason)


@pytest.mark.parametrize(
    ("stage", "options", "said"),
    [
        ("quantize.rtn", {"bits": 8}, "8 bits with zero points"),
        ("quantize.auto", {"bits": 4}, "8 bits with zero points"),
        ("quantize.nf4", {}, "nf4 is no type"),
        ("quantize.int8-dynamic", {}, "ONNX files"),
    ],
)
def test_stages_are_refused_before_the_work(llama: Path, stage: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_targets(compresskit.load(llama), [get("gguf")], [compresskit.method(stage, **options)])


@pytest.mark.parametrize("target", ["genai", "compressed-tensors"])
@pytest.mark.parametrize("stage", ["quantize.auto", "quantize.gptq"])
def test_what_k_quants_have_no_place_in_is_named_before_the_work(wide: Path, target: str, stage: str) -> None:
    pytest.importorskip({"genai": "onnxruntime_genai", "compressed-tensors": "compressed_tensors"}[target])
    wanted = compresskit.method(stage, bits=4, weight_format="k-quant")
    with pytest.raises(UsageError, match=f"`to` {target} can't carry .*q4_k"):
        check_targets(compresskit.load(wide), [get(target)], [wanted])


def test_models_without_a_place_are_refused(llama: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((llama / name).read_bytes())
    with pytest.raises(InputError, match=r"has no tokenizer\.json"):
        export_to(compresskit.load(bare), get("gguf"), tmp_path / "bare.gguf")
    model = compresskit.load(llama)
    model.module.model.layers[1].mlp.down_proj = torch.nn.Sequential(  # type: ignore[union-attr]
        torch.nn.Linear(128, 8, bias=False), torch.nn.Linear(8, 64, bias=False)
    )
    with pytest.raises(InputError, match=r"can't carry model\.layers\.1\.mlp\.down_proj\.0\.weight"):
        export_to(model, get("gguf"), tmp_path / "cut.gguf")
    assert not list(tmp_path.glob("*.gguf"))


def test_an_unknown_target_is_named() -> None:
    assert "gguf" in names()
    with pytest.raises(CompressKitError, match="no such target"):
        get("ggf")
