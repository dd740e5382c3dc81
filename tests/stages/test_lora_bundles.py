"""Adapters in bundles: packed bases, models of transformers, reloading without PEFT, ONNX, and the order of stages."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lora_models import ROWS, inputs_for, mlp, said, source
from torch import nn

from compresskit import load, method
from compresskit.data.opening import open_source
from compresskit.errors import InputError, UsageError
from compresskit.model import Arch, Card, Model
from compresskit.ops.lora.adapter import adapted
from compresskit.ops.lora.folder import read_adapter
from compresskit.ops.packed.modules import PackedLinear
from compresskit.runner.api import run
from compresskit.runtimes import get

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
TEXT = ["a bird sings", "a dog runs far", "two birds sing", "the dog ran", "rain falls", "it rains today"]


def mlp_module() -> nn.Module:
    return mlp()


ARCH = f"{__name__}:mlp_module"


def plain(folder: Path) -> Model:
    torch.save(mlp().state_dict(), folder / "net.pt")
    return load(folder / "net.pt", arch=ARCH, input_shape=(1, 24))


def onnx_says(bundle: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = get("onnxruntime").open(bundle / "model.onnx", threads=1)
    names = [spec.name for spec in session.inputs]
    return next(iter(session.run(dict(zip(names, feeds.values(), strict=True)) if len(names) == 1 else feeds).values()))


def packed(folder: Path, name: str = "quantize.nf4", **options: Any) -> Path:
    out = folder / name
    run(plain(folder), [method(name, **options)], out, export=False)
    return out


@pytest.mark.parametrize("name", ["dora", "bottleneck"])
def test_a_bundle_is_rebuilt_without_peft(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = run(
        plain(tmp_path), [method(f"lora.{name}", epochs=1, lr=0.05, rank=3)], tmp_path / "out",
        data=source(tmp_path, ROWS), bench=False,
    )  # fmt: skip
    assert report.gates[0].name == "ONNX parity" and report.gates[0].passed
    assert not any(gate.name in ("size", "speed") for gate in report.gates)
    monkeypatch.setitem(sys.modules, "peft", None)
    found = load(tmp_path / "out", arch=ARCH)
    assert adapted(found.body)  # type: ignore[arg-type]
    x = inputs_for("mlp")
    assert (said(found.body, x) - said(mlp(), x)).abs().max() > 1e-4
    np.testing.assert_allclose(onnx_says(tmp_path / "out", {"x": x.numpy()}), said(found.body, x).numpy(), atol=1e-5)
    if name == "bottleneck":
        return
    run(found, [method("lora.merge")], tmp_path / "merged", export=False)
    merged = load(tmp_path / "merged", arch=ARCH)
    assert not adapted(merged.body)  # type: ignore[arg-type]
    torch.testing.assert_close(said(merged.body, x), said(found.body, x), atol=1e-6, rtol=0)
    packed_ = run(merged, [method("quantize.rtn")], tmp_path / "small", export=False)
    assert [step["name"] for step in packed_.history] == [f"lora.{name}", "lora.merge", "quantize.rtn"]
    assert isinstance(load(tmp_path / "small", arch=ARCH).body, nn.Module)


@pytest.mark.parametrize(("name", "options"), [("quantize.nf4", {}), ("quantize.rtn", {"bits": 3, "repair": 2})])
def test_adapters_learn_beside_codes(name: str, options: dict, tmp_path: Path) -> None:
    base = packed(tmp_path, name, **options)
    before = load(base, arch=ARCH)
    x = inputs_for("mlp")
    codes = {n: t.clone() for n, t in before.body.state_dict().items() if n.endswith("codes")}  # type: ignore[union-attr]
    first = said(before.body, x)
    stage = method("lora.lora", rank=3, epochs=2, lr=0.05, batch_size=16)
    run(before, [stage], tmp_path / "out", data=source(tmp_path, ROWS), export=False)
    found = load(tmp_path / "out", arch=ARCH)
    assert isinstance(found.body, nn.Module)
    after = {n: t for n, t in found.body.state_dict().items() if n.endswith("codes")}
    assert codes and all(torch.equal(after[n], codes[n]) for n in codes)
    layer = found.body[0]  # type: ignore[index]
    assert isinstance(layer, PackedLinear) and layer.repair_in is not None
    assert len(layer.repair_in) == 3 + options.get("repair", 0)
    assert (said(found.body, x) - first).abs().max() > 1e-3
    stored = read_adapter(tmp_path / "out")
    assert set(stored.layers()) == {"0", "2", "4"}
    with pytest.raises(UsageError, match="merging needs requantization"):
        run(load(base, arch=ARCH), [method("lora.merge", adapter=tmp_path / "out")], tmp_path / "no")
    with pytest.raises(UsageError, match="merging needs requantization"):
        run(load(base, arch=ARCH), [method("lora.lora", epochs=0, merge=True)], tmp_path / "no")
    with pytest.raises(UsageError, match="'0' can't be adapted: its weight is quantized"):
        run(load(base, arch=ARCH), [method("lora.dora", epochs=0, rank=3, targets=("0",))], tmp_path / "no")
    with pytest.raises(UsageError, match="its codes can't be trained"):
        run(load(base, arch=ARCH), [method("lora.full", epochs=1)], tmp_path / "no", data=source(tmp_path, ROWS))


def test_loftq_is_rebuilt(tmp_path: Path) -> None:
    stage = method("lora.loftq", rank=3, group_size=32, epochs=1, lr=0.01, bits=3)
    run(plain(tmp_path), [stage], tmp_path / "out", data=source(tmp_path, ROWS), bench=False)
    found = load(tmp_path / "out", arch=ARCH)
    x = inputs_for("mlp")
    assert all(isinstance(found.body[i], PackedLinear) for i in (0, 2, 4))  # type: ignore[index]
    assert (onnx_says(tmp_path / "out", {"x": x.numpy()}) - said(found.body, x).numpy()).max() < 0.05


def test_a_packed_weight_is_not_kept_for_gradients() -> None:
    from compresskit.ops.packed.nf4 import nf4_grid
    from compresskit.ops.quantize.table import quantize_table

    torch.manual_seed(0)
    plain = nn.Linear(256, 128)
    layer = PackedLinear(plain, quantize_table(plain.weight, nf4_grid()))
    kept: list[int] = []
    x = torch.randn(4, 256, requires_grad=True)

    def note(saved: torch.Tensor) -> torch.Tensor:
        kept.append(saved.numel())
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        out = layer(x)
    assert max(kept, default=0) < 128 * 256
    out.sum().backward()
    wanted = torch.ones(4, 128) @ layer.weight
    torch.testing.assert_close(x.grad, wanted)


@pytest.mark.parametrize("stage", ["quantize.rtn", "prune.magnitude", "lora.lora"])
def test_adapters_beside_the_weights_merge_before_anything_else(stage: str, tmp_path: Path) -> None:
    run(plain(tmp_path), [method("lora.lora", rank=3, epochs=0)], tmp_path / "out", export=False)
    with pytest.raises(UsageError, match="a model with separate adapters") as error:
        run(load(tmp_path / "out", arch=ARCH), [method(stage)], tmp_path / "no")
    assert "compresskit lora merge" in error.value.hint
    with pytest.raises(UsageError, match="a model with separate adapters"):
        run(plain(tmp_path), [method("lora.lora", rank=3, epochs=0), method(stage)], tmp_path / "no")
    done = run(
        plain(tmp_path), [method("lora.lora", rank=3, epochs=0, merge=True), method("quantize.rtn")], tmp_path / "yes",
        export=False,
    )  # fmt: skip
    assert len(done.history) == 2


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with a tokenizer, and scored pairs."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", *sorted({word for text in TEXT for word in text.split()})]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    rows = [(a, b, 5.0 if a.split()[-1][:3] == b.split()[-1][:3] or {"bird", "birds"} & set(a.split()) & set(b.split())
             else 0.0) for a in TEXT for b in TEXT if a != b]  # fmt: skip
    rows[0] = (*rows[0][:2], 5.0)
    (folder / "pairs.csv").write_text("\n".join(f"{a},{b},{s}" for a, b, s in rows) + "\n", encoding="utf-8")
    return folder


def opened(folder: Path) -> tuple[Model, Any]:
    model = load(folder)
    data = open_source(
        str(folder / "pairs.csv"), tokenizer=folder, sequence=16, inputs=model.card.inputs, task=model.card.task
    )
    return model, data


FEEDS = {
    "input_ids": np.array([[2, 3, 4], [5, 6, 0]]), "attention_mask": np.array([[1, 1, 1], [1, 1, 0]]),
    "token_type_ids": np.zeros((2, 3), np.int64),
}  # fmt: skip


def hidden(module: object) -> torch.Tensor:
    assert isinstance(module, nn.Module)
    with torch.no_grad():
        return module(**{k: torch.from_numpy(v) for k, v in FEEDS.items()})[0]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks transformers for it
@pytest.mark.parametrize("name", ["lora", pytest.param("prompt", marks=pytest.mark.slow)])
def test_scored_pairs_are_learnt_by_adapters_of_a_transformer(name: str, bert: Path, tmp_path: Path) -> None:
    model, data = opened(bert)
    before = hidden(model.body)
    options = {"tokens": 4} if name == "prompt" else {"rank": 4}
    stage = method(f"lora.{name}", epochs=4, batch_size=10, lr=0.03, **options)
    report = run(model, [stage], tmp_path / "out", data=data, bench=False)
    facts = report.history[-1]["facts"]
    curve = [point["loss"] for point in facts["training"]["curve"]]
    assert curve[-1] < curve[0] and "against the scores of pairs" in facts["notes"][0]
    found = load(tmp_path / "out")
    assert hidden(found.body).shape == before.shape and (hidden(found.body) - before).abs().max() > 1e-3
    np.testing.assert_allclose(onnx_says(tmp_path / "out", FEEDS), hidden(found.body).numpy(), atol=1e-4)
    with pytest.raises(Exception, match="quant"):  # without its adapters it would be another model
        transformers.AutoModel.from_pretrained(tmp_path / "out")
    if name == "prompt":
        theirs = peft.PeftModel.from_pretrained(
            transformers.AutoModel.from_pretrained(bert), tmp_path / "out" / "adapter"
        )
        assert torch.equal(theirs.prompt_encoder["default"].embedding.weight, found.body.prompt_embeddings)
        return
    assert report.history[-1]["skipped"]["pooler.dense"] == "it does not affect the loss"
    theirs = peft.PeftModel.from_pretrained(transformers.AutoModel.from_pretrained(bert), tmp_path / "out" / "adapter")
    torch.testing.assert_close(hidden(theirs), hidden(found.body), atol=1e-5, rtol=1e-5)
    run(load(bert), [method("lora.merge", adapter=tmp_path / "out")], tmp_path / "merged", export=False)
    plain = transformers.AutoModel.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(hidden(plain), hidden(found.body), atol=1e-5, rtol=1e-5)


def test_qlora_on_a_folder_in_bitsandbytes_format(bert: Path, tmp_path: Path) -> None:
    model, data = opened(bert)
    run(model, [method("quantize.nf4")], tmp_path / "nf4", export=False)
    base = load(tmp_path / "nf4")
    stage = method("lora.lora", rank=4, epochs=2, batch_size=10, lr=0.02, recompute=True)
    run(base, [stage], tmp_path / "out", data=data, bench=False)
    found = load(tmp_path / "out")
    layer = found.body.encoder.layer[0].intermediate.dense  # type: ignore[union-attr]
    assert isinstance(layer, PackedLinear) and layer.repair_in is not None and len(layer.repair_in) == 4
    assert bool(layer.repair_out.ne(0).any())
    np.testing.assert_allclose(onnx_says(tmp_path / "out", FEEDS), hidden(found.body).numpy(), atol=1e-3)
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert "quant_method" not in config["quantization_config"]


def test_recomputing_changes_no_value(bert: Path, tmp_path: Path) -> None:
    states = []
    for recompute in (False, True):
        model, data = opened(bert)
        stage = method("lora.lora", rank=4, epochs=1, batch_size=10, recompute=recompute)
        run(model, [stage], tmp_path / str(recompute), data=data, export=False)
        states.append((tmp_path / str(recompute) / "adapter" / "adapter_model.safetensors").read_bytes())
    assert states[0] == states[1]
    with pytest.raises(UsageError, match="`recompute` is for models of transformers"):
        run(plain(tmp_path), [method("lora.lora", rank=3, epochs=1, recompute=True)], tmp_path / "no",
            data=source(tmp_path, ROWS), export=False)  # fmt: skip


def test_a_language_model_learns_its_own_tokens(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=True,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    ids = (np.arange(48)[:, None] + np.arange(12)) % 30
    np.savez(tmp_path / "d.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    model = load(tmp_path / "llama")
    data = open_source(str(tmp_path / "d.npz"), inputs=model.card.inputs, task=model.card.task)
    report = run(
        model, [method("lora.lora", epochs=6, batch_size=8, lr=0.02)], tmp_path / "out", data=data, export=False
    )
    facts = report.history[-1]["facts"]
    assert facts["training"]["curve"][-1]["loss"] < facts["training"]["curve"][0]["loss"] - 0.2
    assert report.history[-1]["skipped"] == {
        "model.embed_tokens": "Embedding: adapters are for Linear and Conv layers",
        "lm_head": "the output layer of a language model: `targets` takes it in",
    }
    stage = method("lora.lora", epochs=0, targets=("lm_head",), merge=True)
    with pytest.raises(UsageError, match=r"'lm_head' shares its weight with 'model\.embed_tokens'"):
        run(load(tmp_path / "llama"), [stage], tmp_path / "no", export=False)


def test_scores_need_two_values(bert: Path, tmp_path: Path) -> None:
    model, _ = opened(bert)
    (tmp_path / "one.csv").write_text("a bird,a dog,3\nrain falls,it rains,3\n", encoding="utf-8")
    data = open_source(str(tmp_path / "one.csv"), tokenizer=bert, sequence=16, inputs=model.card.inputs)
    with pytest.raises(InputError, match="every pair has the score 3"):
        run(model, [method("lora.lora", rank=4)], tmp_path / "out", data=data, export=False)


def test_the_pick_of_pairs_keeps_their_scores(bert: Path) -> None:
    from compresskit.train.reading import Reading

    model, data = opened(bert)
    whole = Reading(data, model.card.inputs, len(data), labelled=False, scored=True).material()
    some = Reading(data, model.card.inputs, 7, labelled=False, scored=True, seed=3).material()

    def rows(material: Any) -> set[tuple[Any, ...]]:
        part = next(material.plain(100, 100))
        assert len(part) == 7
        return {
            tuple(tuple(map(int, t[i][t[i] != 0])) if t.dim() == 2 else float(t[i]) for t in part)
            for i in range(len(part[0]))
        }

    assert len(rows(some)) == 7 and rows(some) <= rows(whole) and len(whole) == len(data)


def test_a_card_that_claims_a_huge_adapter_is_refused(tmp_path: Path) -> None:
    from compresskit.facts import read_facts
    from compresskit.facts.lora import AdapterFacts
    from compresskit.ops.lora.adapter import replay

    facts = {"0": {"parts": {"down": [1 << 20, 24], "up": [16, 1 << 20]}, "serial": False}}
    with pytest.raises(InputError, match="far larger than its layer"):
        replay(mlp(), {name: read_facts(AdapterFacts, fact) for name, fact in facts.items()})
    assert Card("torch").arch == Arch("none")
