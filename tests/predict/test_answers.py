"""From outputs to scores and embeddings: pooling of both kinds, labels, probabilities."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from compresskit.errors import InputError
from compresskit.exporter.pooled import pooled as pooled_in_torch
from compresskit.predict.answers import answers, classes
from compresskit.quality.embedding import pooled
from compresskit.usage import Usage

HIDDEN = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
REAL = [HIDDEN[0, :3], HIDDEN[1], HIDDEN[2, 2:]]
BY_HAND: dict[str, Any] = {
    "cls": lambda rows: rows[0],
    "lasttoken": lambda rows: rows[-1],
    "max": lambda rows: rows.max(axis=0),
    "mean": lambda rows: rows.mean(axis=0),
    "mean_sqrt_len_tokens": lambda rows: rows.sum(axis=0) / math.sqrt(len(rows)),
    "weightedmean": lambda rows: sum((i + 1) * row for i, row in enumerate(rows)) / sum(range(1, len(rows) + 1)),
}


@pytest.mark.parametrize("mode", BY_HAND)
def test_pooling_of_padded_texts_on_either_side(mode: Any) -> None:
    wanted = np.stack([BY_HAND[mode](rows) for rows in REAL])
    found = pooled(HIDDEN, MASK, [mode], unit=False)
    assert found.dtype == np.float32 and np.abs(found - wanted).max() < 1e-6
    inside = pooled_in_torch(torch.from_numpy(HIDDEN), torch.from_numpy(MASK), mode)
    assert np.abs(inside.numpy() - wanted).max() < 1e-6


def test_vectors_of_several_modes_are_joined_and_scaled_as_one() -> None:
    found = pooled(HIDDEN, MASK, ["cls", "max"], unit=True)
    wanted = np.stack([np.concatenate([rows[0], rows.max(axis=0)]) for rows in REAL])
    assert np.abs(found - wanted / np.linalg.norm(wanted, axis=1, keepdims=True)).max() < 1e-6


@pytest.mark.parametrize(
    ("scores", "logits", "wanted"),
    [
        ("softmax", [1.0, 3.0, 2.0], [("b", 0.665), ("c", 0.245), ("a", 0.090)]),
        ("softmax", [0.2, 0.3, 0.5], [("c", 0.5), ("b", 0.3), ("a", 0.2)]),
        ("softmax", [1e4, 0.0, 1e4], [("a", 0.5), ("c", 0.5), ("b", 0.0)]),
        ("sigmoid", [0.0, 2.0, -1e4], [("b", 0.881), ("a", 0.5), ("c", 0.0)]),
        ("none", [0.1, 7.0, -2.0], [("b", 7.0), ("a", 0.1), ("c", -2.0)]),
    ],
    ids=["softmax", "probabilities stay", "large", "sigmoid", "regression"],
)
def test_scores(scores: Any, logits: list[float], wanted: list[tuple[str, float]]) -> None:
    found = classes(np.float32([logits]), Usage(scores=scores, labels=("a", "b", "c")), top=0)[0]
    assert [(one["label"], round(one["score"], 3)) for one in found] == wanted
    assert len(classes(np.float32([logits]), Usage(scores=scores), top=2)[0]) == 2


def test_labels_that_are_too_few_are_numbers() -> None:
    found = classes(np.float32([[0, 1, 2]]), Usage(scores="softmax", labels=("a", "b")), top=1)
    assert found[0][0]["label"] == "2"


def test_outputs_that_are_no_scores_are_given_as_they_are() -> None:
    outputs = {"y": HIDDEN}
    assert answers(outputs, MASK, Usage(scores="softmax"), 5) is outputs
    with pytest.raises(InputError, match="no vectors of tokens"):
        answers({"y": HIDDEN[:, 0]}, MASK, Usage(pooling=("mean",)), 5)
