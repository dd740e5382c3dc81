"""Folders of language models whose weights lie elsewhere than in plain layers: each weight gets its few bits."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import compresskit
from compresskit.checkpoint.tensors import open_tensors

transformers = pytest.importorskip("transformers")
SMALL = {
    "vocab_size": 256, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128,
}  # fmt: skip
GROUPED = {**SMALL, "num_key_value_heads": 2}
MIXTURE = {**GROUPED, "num_experts_per_tok": 2}
QWEN = {**MIXTURE, "head_dim": 32, "moe_intermediate_size": 64, "num_experts": 8}
GPT = {"vocab_size": 256, "n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 128}
MODELS = {
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**MIXTURE, "num_local_experts": 4}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", QWEN),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {**SMALL, "num_key_value_heads": 1, "head_dim": 32}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT),
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**GROUPED, "tie_word_embeddings": True}),
}
ROUTERS = {"model.layers.0.mlp.gate", "model.layers.1.mlp.gate"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bfloat16 folder of each kind."""
    transformers.utils.logging.disable_progress_bar()
    made = {}
    for name, (cls, config, options) in MODELS.items():
        torch.manual_seed(0)
        made[name] = tmp_path_factory.mktemp(name) / name
        model = getattr(transformers, cls)(getattr(transformers, config)(**options)).to(torch.bfloat16)
        model.save_pretrained(made[name], max_shard_size="300KB")
    return made


def weights_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def logits(folder: Path) -> Any:
    module: Any = compresskit.load(folder).body
    with torch.no_grad():
        return module(input_ids=torch.arange(2, 42).reshape(2, 20)).logits


def options(bits: int, **more: Any) -> Any:
    return compresskit.method("quantize.rtn", bits=bits, **more)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("bits", "smaller", "error"), [(4, 3.2, 0.3), (8, 1.85, 0.03)])
def test_every_weight_gets_its_bits(
    folders: dict[str, Path], tmp_path: Path, name: str, bits: int, smaller: float, error: float
) -> None:
    report = compresskit.run(folders[name], [options(bits)], tmp_path / "out", export=False)
    assert weights_of(folders[name]) / weights_of(tmp_path / "out") >= smaller
    assert set(report.coverage.skipped) == (ROUTERS if name in ("mixtral", "qwen3_moe") else set())
    before, after = logits(folders[name]), logits(tmp_path / "out")
    assert 0 < float((after - before).norm() / before.norm()) < error


@pytest.mark.parametrize("name", ["mixtral", "gpt2"])
def test_what_is_excluded_stays_as_it_was(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    kept = {"mixtral": "*.experts.down_proj", "gpt2": "*.c_fc"}[name]
    report = compresskit.run(folders[name], [options(8, exclude=(kept,))], tmp_path / "out", export=False)
    excluded = [layer for layer, reason in report.coverage.skipped.items() if reason == "excluded"]
    sizes = {"mixtral": 4 * 128 * 256 * 2, "gpt2": (128 + 1) * 512 * 2}  # bfloat16, a bias
    assert {report.coverage.left[layer] for layer in excluded} == {sizes[name]}
    tensors = open_tensors(tmp_path / "out" / "model.safetensors")
    module: Any = compresskit.load(folders[name]).body
    for key in [key for key in tensors.names() if key.removesuffix(".weight").endswith(kept[1:])]:
        assert tensors.dtype_name(key) == "bfloat16"
        assert torch.equal(tensors.get(key).float(), module.state_dict()[key])
    assert torch.isfinite(logits(tmp_path / "out")).all()


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *((name, "rtn") for name in MODELS),
        ("gpt2", "hqq"),
        ("mixtral", "nf4"),
        ("gpt2", "nf4"),
        ("llama", "auto"),
        ("mixtral", "k-quant"),
        ("gpt2", "k-quant"),
    ],
)
def test_the_weights_on_disk_give_the_same_bytes(
    folders: dict[str, Path], tmp_path: Path, name: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: dict[str, Any] = {"weight_format": "k-quant"} if method == "k-quant" else {}
    stage = compresskit.method("quantize.rtn" if known else f"quantize.{method}", **known)
    whole = compresskit.run(compresskit.load(folders[name]), [stage], tmp_path / "whole", export=False)
    monkeypatch.setattr("compresskit.runner.loading.load", None)
    streamed = compresskit.run(folders[name], [stage], tmp_path / "streamed", export=False)
    one, two = ((tmp_path / at / "model.safetensors").read_bytes() for at in ("whole", "streamed"))
    assert one == two
    assert streamed.coverage == whole.coverage
    assert [(m.bytes, m.parameters, m.macs) for m in streamed.models] == [
        (m.bytes, m.parameters, m.macs) for m in whole.models
    ]
    assert streamed.models[0].macs


@pytest.mark.parametrize("name", ["mixtral", "gemma3"])
def test_shards_are_written_and_read(
    folders: dict[str, Path], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compresskit.run(folders[name], [options(4)], tmp_path / "one", export=False)
    monkeypatch.setattr("compresskit.stages.streaming.SHARD", 40_000)
    report = compresskit.run(folders[name], [options(4)], tmp_path / "many", export=False)
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 2
    assert report.models[-1].bytes > weights_of(tmp_path / "many")  # the index counts
    assert torch.equal(logits(tmp_path / "one"), logits(tmp_path / "many"))


def bare(folder: Path, fused: bool) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint of experts, each by itself or all of a block in one."""
    if fused:
        module: Any = compresskit.load(folder).body
        return {name: tensor.bfloat16() for name, tensor in module.state_dict().items()}
    tensors = open_tensors(folder)
    return {name: tensors.get(name) for name in tensors.names()}


@pytest.mark.parametrize("fused", [False, True])
def test_bare_tensors_of_experts(folders: dict[str, Path], tmp_path: Path, fused: bool) -> None:
    state = bare(folders["mixtral"], fused)
    save_file(state, tmp_path / "bare.safetensors")
    report = compresskit.run(tmp_path / "bare.safetensors", [options(4)], tmp_path / "out")
    block = "mlp" if fused else "block_sparse_moe"
    assert set(report.coverage.skipped) == {f"model.layers.{i}.{block}.gate" for i in (0, 1)}
    assert (tmp_path / "bare.safetensors").stat().st_size / weights_of(tmp_path / "out") >= 3.2
    stored = open_tensors(tmp_path / "out" / "model.safetensors")
    assert stored.dtype_name("model.norm.weight") == "bfloat16"
    whole = "model.layers.0.mlp.experts.gate_up_proj"
    parts = [whole] if fused else [f"model.layers.0.{block}.experts.0.{w}" for w in ("w1", "w3")]
    compresskit.run(folders["mixtral"], [options(4)], tmp_path / "known", export=False)
    known = open_tensors(tmp_path / "known" / "model.safetensors").get(f"{whole}.codes")
    found = torch.cat([stored.get(f"{part}.codes") for part in parts])
    assert torch.equal(found, known[: len(found)])


@pytest.fixture
def calibrated(tmp_path: Path) -> dict[str, Any]:
    """How a run gets its data, and exports nothing."""
    ids = np.random.default_rng(0).integers(0, 256, (4, 32))
    np.savez(tmp_path / "data.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    return {"data": tmp_path / "data.npz", "export": False}


def test_a_killed_calibration_goes_on_behind_the_last_block(
    folders: dict[str, Path], tmp_path: Path, calibrated: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from compresskit.ops.quantize import gptq

    folder, kept = folders["qwen3_moe"], tmp_path / "kept"
    stage = compresskit.method("quantize.gptq", repair=4, checkpoint=kept)
    rounded = gptq.quantize_gptq
    calls: dict[str, list[int]] = {}
    run = ""

    def counted(*args: Any, **more: Any) -> Any:
        blocks = len(list(kept.glob("*")))
        calls.setdefault(run, []).append(blocks)
        if run == "killed" and blocks and calls[run].count(blocks) == 2:
            raise KeyboardInterrupt
        return rounded(*args, **more)

    monkeypatch.setattr(gptq, "quantize_gptq", counted)
    run = "whole"
    compresskit.run(folder, [compresskit.method("quantize.gptq", repair=4)], tmp_path / run, **calibrated)
    run = "killed"
    with pytest.raises(KeyboardInterrupt):
        compresskit.run(folder, [stage], tmp_path / "out", **calibrated)
    run = "again"
    compresskit.run(folder, [stage], tmp_path / "out", **calibrated)
    assert len(calls["again"]) == len(calls["whole"]) - calls["killed"].count(0) > 0
    run = "other"
    other = compresskit.method("quantize.gptq", repair=4, damping=0.1, checkpoint=kept)
    compresskit.run(folder, [other], tmp_path / "other", **calibrated)
    assert len(calls["other"]) == len(calls["whole"])
    one, two = ((tmp_path / at / "model.safetensors").read_bytes() for at in ("whole", "out"))
    assert one == two
    one, two = ((tmp_path / at / "compresskit.json").read_bytes() for at in ("whole", "out"))
    assert one == two


@pytest.mark.parametrize("name", ["llama", pytest.param("gemma3", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("method", "more"), [("gptq", {"repair": 4}), ("awq", {})])
def test_weights_mapped_from_the_file_are_calibrated_to_the_same_bytes(
    folders: dict[str, Path], tmp_path: Path, name: str, calibrated: dict[str, Any], method: str, more: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    stage = compresskit.method(f"quantize.{method}", **more)
    compresskit.run(compresskit.load(folders[name]), [stage], tmp_path / "whole", **calibrated)
    monkeypatch.setattr("compresskit.runner.loading.load", None)
    compresskit.run(folders[name], [stage], tmp_path / "mapped", **calibrated)
    one, two = ((tmp_path / at / "model.safetensors").read_bytes() for at in ("whole", "mapped"))
    assert one == two


def test_awq_keeps_the_scaled_weights_of_one_input_alone(
    folders: dict[str, Path], tmp_path: Path, calibrated: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from compresskit.ops.quantize import calibrated as walk

    made: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    scale = walk.scale_group

    def counted(segment: Any, names: Any, *args: Any) -> Any:
        alive.append(sum(ref() is not None for ref in made))
        done = scale(segment, names, *args)
        weights = [segment.layer(name).weight for name in names]
        made.extend(weakref.ref(weight) for weight in weights if weight.dtype == torch.float32)
        return done

    monkeypatch.setattr(walk, "scale_group", counted)
    compresskit.run(folders["llama"], [compresskit.method("quantize.awq", bits=2)], tmp_path / "out", **calibrated)
    assert len(made) >= 4 and not any(alive)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixtral", "gemma3", "gpt2"])
def test_the_onnx_file_holds_the_same_codes(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    report = compresskit.run(folders[name], [options(4)], tmp_path / "out", bench=False)
    assert next(gate for gate in report.gates if gate.name == "ONNX parity").passed
    assert weights_of(folders[name]) / (tmp_path / "out" / "model.onnx").stat().st_size >= 3
