"""From a model's outputs to what a user asked for: classes with their scores, embeddings, or the outputs themselves."""

from __future__ import annotations

from typing import Any

import numpy as np

from compresskit.errors import InputError
from compresskit.quality.embedding import pooled
from compresskit.usage import EMBEDDING, Usage

Answers = np.ndarray | dict[str, np.ndarray] | list[list[dict[str, Any]]]
"""Of ``n`` samples: embeddings ``(n, width)`` ``float32``, outputs ``(n, …)`` by name, or each one's classes."""


def answers(outputs: dict[str, np.ndarray], mask: np.ndarray | None, usage: Usage, top: int) -> Answers:
    """What the outputs of some samples mean.

    Args:
        outputs: By name, each ``(n, …)``.
        mask: ``(n, L)`` of texts, 0 for padding; None for other samples.
        usage: Of the model.
        top: Classes to name, the best first; 0 is all.

    Raises:
        InputError: There is nothing to pool.
    """
    if usage.scores is not None and (logits := _logits(outputs, usage)) is not None:
        return classes(logits, usage, top)
    if EMBEDDING in outputs:
        return np.asarray(outputs[EMBEDDING], np.float32)
    if usage.pooling and mask is not None:
        hidden = next((a for a in outputs.values() if a.ndim == 3 and a.shape[:2] == mask.shape), None)
        if hidden is None:
            raise InputError(f"the model gives no vectors of tokens to pool, only {', '.join(outputs)}")
        return pooled(hidden, mask, usage.pooling, usage.unit)
    return outputs


def _logits(outputs: dict[str, np.ndarray], usage: Usage) -> np.ndarray | None:
    """One number for each class, ``(n, classes)``; None where there is no such output."""
    least = 2 if usage.scores == "softmax" else 1
    for name in ("logits", *outputs):
        array = outputs.get(name)
        if array is not None and array.ndim == 2 and array.shape[1] >= least and array.dtype.kind == "f":
            return array
    return None


def classes(logits: np.ndarray, usage: Usage, top: int) -> list[list[dict[str, Any]]]:
    """Label and score of the best classes of each sample, the best first; equal scores keep the classes' order.

    Args:
        logits: ``(n, classes)``.
        usage: Of a classifier; a class without a label is called by its number.
        top: Classes to name; 0 is all.
    """
    scores = _scores(logits.astype(np.float64), usage)
    labels = usage.labels if len(usage.labels) == scores.shape[1] else [str(i) for i in range(scores.shape[1])]
    order = np.argsort(-scores, axis=1, kind="stable")[:, : top or None]
    return [
        [{"label": labels[i], "score": float(row[i])} for i in best]
        for row, best in zip(scores, order, strict=True)
    ]  # fmt: skip


def _scores(logits: np.ndarray, usage: Usage) -> np.ndarray:
    if usage.scores == "none":
        return logits
    if usage.scores == "sigmoid":
        return np.asarray(1 / (1 + np.exp(-np.clip(logits, -700, 700))))
    if (logits >= 0).all() and np.allclose(logits.sum(axis=1), 1, atol=1e-4):  # the model ends in a softmax of its own
        return logits
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))
