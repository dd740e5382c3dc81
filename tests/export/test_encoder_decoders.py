"""Encoder-decoders as an encoder and a decoder with a cache, of the same codes as the module."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from lm_folders import make_folder

import compresskit
from compresskit.errors import UsageError
from compresskit.exporter.targets import get
from compresskit.exporter.targets.optimum import Optimum
from compresskit.runner.generating import generate
from compresskit.runner.targets import check_targets, export_to
from compresskit.runtimes.text import Request
from compresskit.runtimes.text import get as get_writer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "predict"))
from predict_material import WORDS, tokenizer

NEW = 12


def folder(place: Path, kind: str) -> Path:
    """A Hugging Face folder of a random encoder-decoder."""
    import transformers as t

    torch.manual_seed(0)
    sizes = {"vocab_size": len(WORDS), "d_model": 32, "decoder_start_token_id": 1, "eos_token_id": 3, "pad_token_id": 0}
    halves: dict[str, Any] = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder") for name, value in (("layers", 2), ("ffn_dim", 64), ("attention_heads", 4))
    }  # fmt: skip
    if kind == "t5":
        model: Any = t.T5ForConditionalGeneration(t.T5Config(d_kv=8, d_ff=64, num_layers=2, num_heads=4, **sizes))
    elif kind == "bart":
        config = t.BartConfig(max_position_embeddings=64, bos_token_id=2, forced_eos_token_id=None, **halves, **sizes)
        model = t.BartForConditionalGeneration(config)
    else:
        config = t.WhisperConfig(
            num_mel_bins=8, max_source_positions=20, max_target_positions=40, bos_token_id=2,
            begin_suppress_tokens=None, **halves, **sizes,
        )  # fmt: skip
        model = t.WhisperForConditionalGeneration(config)
    model.save_pretrained(place)
    tokenizer(place)
    return place


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["t5", "bart", "whisper"])
def test_the_files_write_what_the_module_does(kind: str, tmp_path: Path) -> None:
    steps = [compresskit.method("quantize.rtn", bits=4, group_size=16)]
    report = compresskit.run(folder(tmp_path / "m", kind), steps, tmp_path / "out", bench=False)
    assert any("`to` optimum" in note for note in report.notes) and not (tmp_path / "out" / "model.onnx").exists()
    report = export_to(compresskit.load(tmp_path / "out"), get("optimum"), tmp_path / "files")
    values = {gate.name: gate.value for gate in report.gates}
    assert values["encoder parity"] < 1e-5 and values["cached logits"] < 1e-5 and values["greedy tokens"] == 16
    decoder = onnx.load(tmp_path / "files" / "decoder_model_merged.onnx")
    branches = {a.name: a.g for a in decoder.graph.node[0].attribute}
    products = [sum(node.op_type == "MatMulNBits" for node in branch.node) for branch in branches.values()]
    # Keys and values of the source are computed once: two products in each of two layers.
    assert sorted(products)[1] - sorted(products)[0] == 4
    assert not any(branch.initializer for branch in branches.values()), "each weight is there once"
    if kind != "whisper":
        said: list[str] = []
        assert generate(tmp_path / "files", "the cat sat", tokens=NEW, show=said.append) == "".join(said) != ""
        request = Request([2, 4, 5, 3], tokens=NEW, to_the_end=True)
        ours = get_writer("onnxruntime", tmp_path / "files").write(request, said.append).ids
        module = compresskit.load(tmp_path / "out").module
        assert ours == get_writer("transformers", tmp_path / "out", loader=lambda _: module).write(request, print).ids
    with pytest.raises(UsageError, match="sound" if kind == "whisper" else "encoder"):
        generate(tmp_path / "files", "the cat", chat=kind != "whisper")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_weights_past_the_limit_of_a_file_lie_beside_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder(tmp_path / "m", "t5")
    export_to(compresskit.load(source), get("optimum"), tmp_path / "whole")
    monkeypatch.setattr(Optimum, "data_above", 8192)
    report = export_to(compresskit.load(source), get("optimum"), tmp_path / "files")
    values = {gate.name: gate.value for gate in report.gates}
    assert values["encoder parity"] < 1e-5 and values["cached logits"] < 1e-5 and values["greedy tokens"] == 16
    names = ("encoder_model.onnx", "decoder_model_merged.onnx")
    assert {file.name for file in (tmp_path / "files").glob("*.onnx*")} == {*names, *(f"{name}.data" for name in names)}
    for name in names:
        outside, inside = (onnx.load(tmp_path / at / name) for at in ("files", "whole"))
        assert (tmp_path / "files" / name).stat().st_size < (tmp_path / "whole" / name).stat().st_size / 2
        arrays = [[onnx.numpy_helper.to_array(t) for t in model.graph.initializer] for model in (outside, inside)]
        assert all((a == b).all() and a.dtype == b.dtype for a, b in zip(*arrays, strict=True))
    said: list[str] = []
    assert generate(tmp_path / "files", "the cat sat", tokens=NEW, show=said.append) == "".join(said) != ""


def test_each_kind_of_model_has_its_targets(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't carry LlamaForCausalLM"):
        check_targets(compresskit.load(make_folder(tmp_path, "llama")), [get("optimum")], [])
    with pytest.raises(UsageError, match="can't carry"):
        check_targets(compresskit.load(folder(tmp_path / "m", "t5")), [get("gguf")], [])
