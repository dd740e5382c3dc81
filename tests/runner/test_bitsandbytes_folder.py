"""A Hugging Face folder in, a Hugging Face folder in bitsandbytes' format out: transformers alone loads it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from compresskit.checkpoint.huggingface_bnb import skip_patterns
from compresskit.errors import InputError
from compresskit.ops.packed.modules import PackedLinear
from compresskit.ops.quantize.bnb import to_bitsandbytes
from compresskit.ops.quantize.bnb_library import bitsandbytes
from compresskit.ops.quantize.fast import FastLinear
from compresskit.runner.api import method, run
from compresskit.runner.loading import load, load_module

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = [
    pytest.mark.skipif(bitsandbytes() is None, reason="bitsandbytes does not load here"),
    pytest.mark.filterwarnings("ignore"),  # those of transformers and bitsandbytes are not ours to mend
]
SMALL = {"vocab_size": 99, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
METHODS = ["nf4", "bnb-int8"]


def llama(**more: Any) -> Any:
    sizes = {**SMALL, "intermediate_size": 128, "num_key_value_heads": 1, "use_cache": False, **more}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))


def bert(kind: str, **more: Any) -> Any:
    config = transformers.BertConfig(**SMALL, **{"intermediate_size": 128, "num_labels": 3, **more})
    return getattr(transformers, kind)(config)


MODELS = {
    "BertModel": lambda: bert("BertModel"),
    "BertForSequenceClassification": lambda: bert("BertForSequenceClassification"),
    "BertForMaskedLM": lambda: bert("BertForMaskedLM"),
    "LlamaForCausalLM": lambda: llama(tie_word_embeddings=True),
    "LlamaForCausalLM, 172 wide": lambda: llama(intermediate_size=172, tie_word_embeddings=False),
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.set_verbosity(level)


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    torch.manual_seed(0)
    model = MODELS[request.param]()
    with torch.no_grad():
        for parameter in model.parameters():  # the default is too small for layers to matter
            parameter.mul_(3)
    model.save_pretrained(tmp_path / "in")
    return tmp_path / "in"


def quantized(folder: Path, name: str, **options: Any) -> Path:
    out = folder.parent / name
    run(load(folder), [method(f"quantize.{name}", **options)], out, export=False, force=True)
    return out


def outputs(model: Any) -> torch.Tensor:
    ids = torch.arange(20).reshape(2, 10)
    with torch.inference_mode():
        return model.eval()(ids, torch.ones_like(ids))[0]


def close(found: torch.Tensor, expected: torch.Tensor, relative: float) -> bool:
    return float((found - expected).norm() / expected.norm()) < relative


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("folder", MODELS, indirect=True)
def test_transformers_loads_it_and_computes_what_our_modules_compute(folder: Path, name: str) -> None:
    out = quantized(folder, name)
    kind = json.loads((out / "config.json").read_text())["architectures"][0]
    theirs = getattr(transformers, kind).from_pretrained(out)
    ours, plain = load(out).body, load(out).body
    packed = [n for n, layer in plain.named_modules() if isinstance(layer, PackedLinear)]
    found = [n for n, layer in theirs.named_modules() if type(layer).__module__.startswith("bitsandbytes")]
    assert found == packed
    assert packed
    to_bitsandbytes(ours)
    assert torch.equal(outputs(theirs), outputs(ours))
    assert close(outputs(theirs), outputs(plain), 0.02)
    assert not close(outputs(theirs), outputs(load(folder).body), 1e-5)  # it is quantized indeed


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("folder", ["BertForSequenceClassification", "LlamaForCausalLM, 172 wide"], indirect=True)
def test_the_base_model_loads_too(folder: Path, name: str) -> None:
    out = quantized(folder, name)
    base = transformers.AutoModel.from_pretrained(out)
    whole = load(out).body
    to_bitsandbytes(whole)
    assert torch.equal(outputs(base), outputs(getattr(whole, whole.base_model_prefix)))


@pytest.mark.parametrize("folder", ["BertModel"], indirect=True)
def test_excluded_layers_stay_for_transformers_too(folder: Path) -> None:
    out = quantized(folder, "nf4", exclude=("encoder.layer.1.*", "pooler.dense"))
    skip = json.loads((out / "config.json").read_text())["quantization_config"]["llm_int8_skip_modules"]
    assert "pooler.dense" in skip
    theirs = transformers.AutoModel.from_pretrained(out)
    assert type(theirs.pooler.dense) is torch.nn.Linear
    assert torch.equal(theirs.pooler.dense.weight, load(folder).body.pooler.dense.weight)


@pytest.mark.parametrize("folder", ["LlamaForCausalLM"], indirect=True)
@pytest.mark.slow
def test_it_loads_without_compresskit(folder: Path) -> None:
    out = quantized(folder, "nf4")
    code = (
        "import sys, torch; from transformers import AutoModelForCausalLM as A\n"
        f"m = A.from_pretrained({str(out)!r}).eval(); ids = torch.arange(20).reshape(2, 10)\n"
        "with torch.inference_mode(): out = m(ids, torch.ones_like(ids))[0]\n"
        "print(float(out.double().sum())); assert not any(n.startswith('compresskit') for n in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder.parent, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(float(outputs(load_module(out)).double().sum()), rel=1e-3)


@pytest.mark.parametrize("folder", ["LlamaForCausalLM"], indirect=True)
def test_the_torch_runtime_takes_the_kernels_that_bitsandbytes_takes(folder: Path) -> None:
    out = quantized(folder, "nf4")
    fast, theirs = load_module(out), transformers.AutoModelForCausalLM.from_pretrained(out)
    assert {type(layer) for layer in fast.modules() if isinstance(layer, PackedLinear)} == {FastLinear}
    assert torch.equal(outputs(fast), outputs(theirs))


@pytest.mark.parametrize("folder", ["LlamaForCausalLM"], indirect=True)
def test_without_bitsandbytes_it_runs_unpacked_and_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("compresskit.ops.quantize.bnb.bitsandbytes", lambda: None)
    out = quantized(folder, "nf4")
    found = outputs(load_module(out))
    assert "14 layers are slow under torch" in caplog.text
    assert torch.equal(found, outputs(load(out).body))


@pytest.mark.parametrize("folder", ["LlamaForCausalLM"], indirect=True)
@pytest.mark.parametrize("again", METHODS)
def test_a_second_stage_goes_on_where_the_first_ended(folder: Path, again: str) -> None:
    first, second = quantized(folder, "nf4", include=("*mlp*",)), folder.parent / "second"
    report = run(load(first), [method(f"quantize.{again}", include=("*self_attn*",))], second, export=False)
    ours = load(second).body
    assert len([layer for layer in ours.modules() if isinstance(layer, PackedLinear)]) == 2 * 7
    if again == "nf4":
        to_bitsandbytes(ours)
        assert torch.equal(outputs(transformers.AutoModelForCausalLM.from_pretrained(second)), outputs(ours))
    else:  # one config can't tell two formats: refused, and not read wrongly
        assert any("can't load" in note for note in report.notes)
        with pytest.raises(RuntimeError, match="mismatch"):
            transformers.AutoModelForCausalLM.from_pretrained(second)


@pytest.mark.parametrize("folder", ["BertModel"], indirect=True)
def test_a_folder_of_others_is_refused_with_the_reason(folder: Path) -> None:
    out = quantized(folder, "nf4")
    (out / "compresskit.json").unlink()
    with pytest.raises(InputError, match="quantized already"):
        load(out)


def test_patterns_hold_with_and_without_the_prefix_and_catch_nothing_else() -> None:
    linear = ["model.a.fc", "model.b.fc", "fc"]
    assert skip_patterns(linear, {"model.b.fc"}, "model") == [r"^(?:model\.)?fc$", "a.fc"]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_minilm(minilm: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    run(load(minilm), [method(f"quantize.{name}")], out, export=False)
    found, original = outputs(transformers.AutoModel.from_pretrained(out)), outputs(load(minilm).body)
    assert torch.equal(found, outputs(_in_bitsandbytes(out)))
    assert float(torch.cosine_similarity(found, original, dim=-1).mean()) > (0.9 if name == "nf4" else 0.99)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_stories(shared: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    source = shared / "models" / "stories260k"
    run(load(source), [method(f"quantize.{name}")], out, export=False)
    found, original = outputs(transformers.AutoModelForCausalLM.from_pretrained(out)), outputs(load(source).body)
    assert torch.equal(found, outputs(_in_bitsandbytes(out)))
    assert close(found, original, 0.2 if name == "nf4" else 0.05)


def _in_bitsandbytes(out: Path) -> Any:
    model = load(out).body
    to_bitsandbytes(model)
    return model


def test_transformers_refuses_weights_in_a_format_of_our_own(tmp_path: Path) -> None:
    """It would fill them in at random, with a warning only."""
    source = tmp_path / "source"
    bert("BertModel").save_pretrained(source)
    run(load(source), [method("quantize.rtn", bits=4)], tmp_path / "out", export=False)
    with pytest.raises(ValueError, match="quant_method"):
        transformers.AutoModel.from_pretrained(tmp_path / "out")
    assert load(tmp_path / "out").card.history[0].name == "quantize.rtn"
