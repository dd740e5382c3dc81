"""The samples that a model is looked at with: those to find things on, those to hold them against, and padding."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from compresskit.ops.calibration.activation_stream import Batch

_EVERY = 4
"""One batch of so many is held out, not the last ones: batches of text stand in the order of their length."""


def parted(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """(most of the batches, those held out); of a single batch each gets a part; of a single sample both get it."""
    if len(batches) < _EVERY:
        used, held = [], []
        for batch in batches:
            count = len(next(iter(batch.values())))
            cut = count - max(1, count // _EVERY)
            used.append({name: tensor[:cut] for name, tensor in batch.items()} if cut else batch)
            held.append({name: tensor[cut:] for name, tensor in batch.items()})
        return used, held
    held = [batch for n, batch in enumerate(batches) if n % _EVERY == _EVERY - 1]
    return [batch for n, batch in enumerate(batches) if n % _EVERY < _EVERY - 1], held


def halved(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Half of the samples of each batch, and the others; of a single sample both get it."""
    halves = [max(1, len(next(iter(batch.values()))) // 2) for batch in batches]
    first = [{name: tensor[:at] for name, tensor in batch.items()} for at, batch in zip(halves, batches, strict=True)]
    rest = [{name: tensor[at:] for name, tensor in batch.items()} for at, batch in zip(halves, batches, strict=True)]
    return first, [b if len(next(iter(b.values()))) else a for a, b in zip(first, rest, strict=True)]


def count(batches: Sequence[Batch]) -> int:
    """Samples."""
    return sum(len(next(iter(batch.values()))) for batch in batches)


def places_of(rows: Tensor, mask: Tensor | None) -> Tensor | None:
    """Which places of ``(samples, places, units)`` count; None: all, as the mask is of others or there is none."""
    return mask if mask is not None and tuple(mask.shape) == tuple(rows.shape[:2]) else None
