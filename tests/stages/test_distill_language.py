"""distill on models of transformers: layer to layer, on what the student writes, and a folder that loads again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compresskit import load, method, registry
from compresskit.data.opening import open_source
from compresskit.errors import UsageError
from compresskit.model import Model
from compresskit.runner.api import run
from compresskit.stage import Context
from compresskit.train import writing

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model of four layers that has learnt to count."""
    where = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False, eos_token_id=31,
    )  # fmt: skip
    module = transformers.LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    for _ in range(40):
        ids = torch.from_numpy(texts(16))
        optimizer.zero_grad()
        module(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    module.save_pretrained(where)
    np.savez(where / "data.npz", input_ids=texts(48), attention_mask=np.arange(20) < np.full((48, 1), 18))
    return where


_random = np.random.default_rng(0)


def texts(count: int) -> np.ndarray:
    """Numbers that go up by one, from anywhere, round 30: int64 ``(count, 20)``."""
    return (_random.integers(0, 30, (count, 1)) + np.arange(20)) % 30


def ready(folder: Path) -> tuple[Model, Context]:
    model = load(folder)
    data = open_source(str(folder / "data.npz"), inputs=model.card.inputs, task=model.card.task)
    return model, Context(folder, data)


def surprise(module: object) -> float:
    assert isinstance(module, nn.Module)
    ids = torch.from_numpy(texts(32))
    with torch.no_grad():
        return float(module(input_ids=ids, labels=ids).loss)


@pytest.mark.parametrize("name", ["gkd", "layers", "standardized"])
def test_a_student_of_fewer_layers_learns_from_the_whole_model(name: str, folder: Path) -> None:
    model, ctx = ready(folder)
    cut = registry.get("prune.depth")(drop=3).run(model, ctx)
    before = surprise(cut.body)
    model, ctx = ready(folder)
    options: dict[str, Any] = {"prompt": 4, "new_tokens": 8} if name == "gkd" else {}
    stage = registry.get(f"distill.{name}")(student_depth=1, epochs=6, batch_size=16, lr=2e-3, **options)
    found = stage.run(model, ctx)
    assert surprise(found.body) < before - 0.04
    assert isinstance(found.body, nn.Module) and len(found.body.model.layers) == 1
    facts = found.card.history[-1].facts
    assert facts["notes"][0].startswith("dropped 3 of 4 blocks")
    if name == "layers":
        kept = found.card.history[0].facts["stacks"]["model.layers"]["kept"]
        assert facts["pairs"] == {f"model.layers.{i}": f"model.layers.{leaf}" for i, leaf in enumerate(kept)}


def test_half_of_the_steps_are_on_texts_of_the_students_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[int, ...]] = []
    original = writing.continue_prompts

    def counting(module: nn.Module, prompts: torch.Tensor, count: int, **options: Any) -> Any:
        assert not module.training
        written.append((*prompts.shape, count))
        return original(module, prompts, count, **options)

    monkeypatch.setattr(writing, "continue_prompts", counting)
    for share, least, most in ((0.0, 0, 0), (0.5, 1, 11), (1.0, 12, 12)):
        written.clear()
        model, ctx = ready(folder)
        stage = registry.get("distill.gkd")(
            student_depth=3, epochs=2, batch_size=8, prompt=5, new_tokens=6, on_policy=share
        )
        stage.run(model, ctx)
        assert least <= len(written) <= most
        assert set(written) <= {(8, 5, 6)}


def test_more_text_than_the_model_has_positions_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="more than the model's 64 positions"):
        registry.get("distill.gkd")(student_depth=3, prompt=40, new_tokens=40).run(*ready(folder))


def test_a_folder_in_gives_a_folder_that_transformers_loads(folder: Path, tmp_path: Path) -> None:
    model, ctx = ready(folder)
    report = run(
        model, [method("distill.gkd", student_depth=2, epochs=1, prompt=4, new_tokens=4)], tmp_path / "out",
        data=ctx.data, export=False,
    )  # fmt: skip
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.config.num_hidden_layers == 2
    rebuilt = load(tmp_path / "out")
    ids = torch.from_numpy(texts(2))
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, rebuilt.body(input_ids=ids).logits)
    assert report.models[1].parameters < report.models[0].parameters
    assert [step["name"] for step in json.loads(report.to_json())["history"]] == ["prune.depth", "distill.gkd"]
