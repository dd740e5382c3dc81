"""The loss of a causal language model."""

from __future__ import annotations

import numpy as np

from compresskit.errors import InputError


def sequence_loss(
    logits: np.ndarray, ids: np.ndarray, mask: np.ndarray | None, scored: np.ndarray | None = None
) -> np.ndarray:
    """Loss of predicting each token from those before it.

    Args:
        logits: ``(n, L, V)`` floats; position ``t`` predicts token ``t + 1``.
        ids: ``(n, L)`` integers.
        mask: ``(n, L)``, 0 for padding; a token counts when it and the one before it are real.
        scored: ``(n, L)`` bools; tokens that are False don't count either.

    Returns:
        ``(n, 2)`` ``float64``: summed loss in nats, and number of predicted tokens.

    Raises:
        InputError: Shapes that don't belong together, or ids outside the vocabulary.
    """
    if logits.shape[:2] != ids.shape:
        raise InputError(f"logits of shape {logits.shape} don't belong to token ids of shape {ids.shape}")
    if ids.size and (ids.min() < 0 or ids.max() >= logits.shape[2]):
        raise InputError(f"token id {ids.max()} is outside the model's vocabulary of {logits.shape[2]}")
    out = np.zeros((len(ids), 2))
    for row in range(len(ids)):  # a row at a time: the temporary is (L, V), not (n, L, V)
        real = np.ones(ids.shape[1] - 1, bool) if mask is None else (mask[row, 1:] != 0) & (mask[row, :-1] != 0)
        if scored is not None:
            real &= scored[row, 1:]
        scores, following = logits[row, :-1][real].astype(np.float32, copy=False), ids[row, 1:][real]
        if not len(scores):
            continue
        top = scores.max(axis=1, keepdims=True)
        total = np.exp(scores - top).sum(axis=1, dtype=np.float64)
        chosen = np.take_along_axis(scores, following[:, None], axis=1)[:, 0]
        loss = np.log(total) + top[:, 0].astype(np.float64) - chosen
        out[row] = loss.sum(), len(loss)
    return out
