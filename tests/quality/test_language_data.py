"""Perplexity in windows and questions with choices: against what torch gives for the same text, token by token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_folders import PROMPT, make_folder

import compresskit
from compresskit.data.opening import open_source
from compresskit.data.parts import rest
from compresskit.data.windows import Window
from compresskit.errors import InputError, UsageError

TEXT = (PROMPT + ". ") * 12
QUESTIONS: list[dict[str, Any]] = [
    {"context": "It was a", "choices": ["dark night", "rain"], "answer": 0},
    {"context": "the king's ", "choices": ["men", "it's over and wept", "12"], "answer": "C"},
    {"context": "and the", "choices": [" rain came", "stormy, stormy"], "answer": "stormy, stormy"},
    {"context": "in torrents.", "choices": ["the", "It"], "answer": "1"},
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("lm"), "llama")


@pytest.fixture(scope="module")
def logprobs(llama: Path) -> Any:
    """Log-probabilities of tokens, given those before them."""
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(llama).eval()

    def of(ids: Any) -> np.ndarray:
        with torch.inference_mode():
            scores = module(torch.tensor([list(map(int, ids))])).logits[0, :-1].log_softmax(-1)
        return scores.gather(1, torch.tensor(list(map(int, ids[1:])))[:, None])[:, 0].double().numpy()

    return of


def tokens(llama: Path, text: str) -> list[int]:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(llama / "tokenizer.json")).encode(text, add_special_tokens=False).ids


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    file = folder / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.mark.parametrize(("window", "stride"), [(64, 16), (50, None), (33, 33), (4000, 100)])
def test_each_token_is_scored_once_with_what_is_before_it(
    llama: Path, tmp_path: Path, window: int, stride: int
) -> None:
    (tmp_path / "a.txt").write_text(TEXT * 2)
    ids = tokens(llama, TEXT * 2)
    window = min(window, 256)
    source = open_source(str(tmp_path / "a.txt"), tokenizer=llama, window=Window(window, stride), task="causal-lm")
    step, seen, first = stride or window // 2, 0, True
    for batch in source.batches(3):
        for row, scored in zip(batch.inputs["input_ids"], batch.scored, strict=True):
            at = np.flatnonzero(scored)
            assert (np.diff(at) == 1).all() and at[-1] == window - 1
            assert (row[at] == ids[seen : seen + len(at)]).all()
            assert first or at[0] >= window - step
            seen, first = seen + len(at), False
    assert seen == len(ids)


def test_perplexity_is_that_of_windows(llama: Path, logprobs: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    ids = tokens(llama, TEXT)
    losses: list[float] = []
    for start in range(0, len(ids), 24):  # the usual way, but for the last window, which is as long as the others
        start = min(start, len(ids) - 96)
        new = start + 96 - 1 - len(losses)
        losses += list(-logprobs(ids[start : start + 96])[-new:]) if new else []
    assert len(losses) == len(ids) - 1
    report = compresskit.evaluate(llama, tmp_path / "a.txt", window=96, stride=24, runtime="torch")
    found = report.values("perplexity")["llama"]
    assert found.value == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)
    assert found.low is not None and found.low < found.value < found.high
    assert any(f"{len(ids) - 1} tokens" in note for note in report.notes)


def test_choices_are_ranked_by_likelihood(llama: Path, logprobs: Any, tmp_path: Path) -> None:
    file = write(tmp_path, QUESTIONS)
    plain, normed = [], []
    for question, right in zip(QUESTIONS, (0, 2, 1, 1), strict=True):
        sums = []
        for choice in question["choices"]:
            context = question["context"].rstrip()
            whole = [1, *tokens(llama, f"{context} {choice.lstrip()}")]
            sums.append(logprobs(whole)[len(tokens(llama, context)) :].sum())
        plain.append(int(np.argmax(sums)) == right)
        normed.append(int(np.argmax([s / len(c) for s, c in zip(sums, question["choices"], strict=True)])) == right)
    report = compresskit.evaluate(llama, file, runtime="torch")
    for name, hits in (("choice_accuracy", plain), ("choice_accuracy_norm", normed)):
        found = report.values(name)["llama"]
        assert (found.value, found.n) == (pytest.approx(100 * np.mean(hits)), 4)
    assert 0 < sum(plain) < 4 and plain != normed  # else the test would say little


def test_long_contexts_lose_their_beginning(llama: Path, tmp_path: Path) -> None:
    file = write(tmp_path, [{"context": TEXT, "choices": ["the king", "rain"], "answer": 1}])
    source = open_source(str(file), tokenizer=llama, window=Window(20), task="causal-lm")
    batch = next(source.batches(8))
    assert batch.inputs["input_ids"].shape == (2, 20) and batch.targets.tolist() == [[0, 0, 8], [0, 1, 4]]
    whole = tokens(llama, f"{TEXT.rstrip()} the king")
    assert batch.inputs["input_ids"][0].tolist() == whole[-20:]
    assert batch.scored[0].sum() == len(whole) - len(tokens(llama, TEXT.rstrip()))
    assert "1 contexts" in source.notes[0]


def test_questions_stay_whole_when_samples_are_parted(llama: Path, tmp_path: Path) -> None:
    source = open_source(str(write(tmp_path, QUESTIONS)), tokenizer=llama, task="causal-lm")
    part = rest(source, 1)
    batches = list(part.batches(2))
    assert [batch.targets[:, 0].tolist() for batch in batches] == [[1, 1, 1, 2, 2], [3, 3]]
    assert all(len(b.scored) == len(b.inputs["input_ids"]) == len(b.targets) for b in batches)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"answer": 2}, r"line 1: 'answer' should be 0 to 1"),
        ({"answer": True}, "'answer' should be"),
        ({"choices": ["one"]}, "'choices' should be a list of two or more texts"),
        ({"context": 7}, "'context' should be text"),
        ({"answer": "Z"}, "'answer' should be"),
        ({"choices": [TEXT * 3, "no"]}, r"question 1: a choice has \d+ tokens"),
    ],
)
def test_bad_questions_are_named(llama: Path, tmp_path: Path, row: dict[str, Any], said: str) -> None:
    file = write(tmp_path, [{**QUESTIONS[0], **row}])
    with pytest.raises(InputError, match=said):
        open_source(str(file), tokenizer=llama, task="causal-lm")


def test_windows_that_do_not_fit_are_refused(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "b.jsonl").write_text('{"text": "the rain"}')
    for name, options, said in (
        ("a.txt", {"window": 257}, "the model takes 256"),
        ("a.txt", {"window": 32, "stride": 33}, "`stride` is 1 to 32"),
        ("a.txt", {"stride": 8}, "give `window`"),
        ("b.jsonl", {"window": 32}, "is for the running text"),
    ):
        with pytest.raises(UsageError) as found:
            compresskit.evaluate(llama, tmp_path / name, runtime="torch", **options)
        assert said in f"{found.value.message} {found.value.hint}"
