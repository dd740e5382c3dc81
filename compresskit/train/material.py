"""What training walks through: samples in memory, samples fetched when they are needed, and a walk in a given order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

_SORTED = 16
"""Batches whose worth of texts is sorted by length at a time."""
Part = list[Tensor]
"""Tensors that are equally long along the first axis: a model's inputs in order, then labels where there are any."""


class Material(Protocol):
    """Samples that can be walked again and again, each time in another order."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def epoch(self, size: int, order: torch.Generator) -> Iterator[Part]:
        """Batches of exactly ``size`` samples, all samples once but for an incomplete last batch."""
        ...

    def plain(self, size: int, limit: int) -> Iterator[Part]:
        """Batches of up to ``size`` of the first ``limit`` samples, always the same."""
        ...

    def split(self, held: int, seed: int) -> tuple[Material, Material]:
        """These samples without ``held`` of them, and those; ``seed`` picks them where any sample can be picked."""
        ...

    def parted(self, last: int) -> tuple[Material, Material]:
        """These samples without the ``last`` ones, and those."""
        ...


@dataclass(frozen=True)
class Rows:
    """Samples that can be fetched in any order, by row.

    Attributes:
        fetch: Gives the samples of some rows, int64 ``(n,)``.
        rows: Those that belong to this material, int64 ``(samples,)``.
        lengths: Of the text in each row, int64: samples of like length then share a batch, so that little is padded.
    """

    fetch: Callable[[Tensor], Part]
    rows: Tensor
    lengths: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def epoch(self, size: int, order: torch.Generator) -> Iterator[Part]:
        """See :class:`Material`."""
        shuffled = self.rows[torch.randperm(len(self), generator=order)[: len(self) // size * size]]
        if self.lengths is None:
            yield from map(self.fetch, torch.split(shuffled, size))
        else:
            yield from map(self.fetch, _of_like_length(shuffled, self.lengths, size, order))

    def plain(self, size: int, limit: int) -> Iterator[Part]:
        """See :class:`Material`."""
        yield from map(self.fetch, torch.split(self.rows[:limit], size))

    def split(self, held: int, seed: int) -> tuple[Rows, Rows]:
        """See :class:`Material`."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        apart, rest = order[:held].sort().values, order[held:].sort().values
        return replace(self, rows=self.rows[rest]), replace(self, rows=self.rows[apart])

    def parted(self, last: int) -> tuple[Rows, Rows]:
        """See :class:`Material`."""
        return replace(self, rows=self.rows[:-last]), replace(self, rows=self.rows[-last:])


def _of_like_length(rows: Tensor, lengths: Tensor, size: int, order: torch.Generator) -> list[Tensor]:
    """Shuffled rows in batches: sorted by length among some batches' worth of them, and the batches shuffled."""
    pieces = (piece[lengths[piece].argsort(stable=True)] for piece in torch.split(rows, _SORTED * size))
    batches = [batch for piece in pieces for batch in torch.split(piece, size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=order).tolist()]


def in_memory(tensors: Sequence[Tensor], *, masks: Sequence[int] = (), texts: int = 0) -> Rows:
    """Samples whose tensors are all there.

    Args:
        tensors: Equally long along the first axis.
        masks: Indices of attention masks ``(n, length)`` that are zero at the end of short texts only: each batch is
            then of texts of like length, and cut to its longest. Those of a sample's several texts are equally wide.
        texts: How many of the first tensors are cut with them: those as wide as the masks.
    """

    lengths = torch.stack([tensors[mask].ne(0).sum(1) for mask in masks]).amax(0) if masks else None

    def fetch(rows: Tensor) -> Part:
        part = [tensor[rows] for tensor in tensors]
        if lengths is None:
            return part
        width, longest = part[masks[0]].shape[1], int(lengths[rows].max().clamp_min(1))
        shorter = (t[:, :longest] if t.dim() == 2 and t.shape[1] == width else t for t in part[:texts])
        return [*shorter, *part[texts:]]

    return Rows(fetch, torch.arange(len(tensors[0])), lengths)


@dataclass(frozen=True)
class Walked:
    """Samples that come in an order of their own; they are shuffled among those that fit into a block.

    Attributes:
        walk: Starts a walk: parts of any length, whose tensors have equal shapes but for the first axis.
        samples: How many belong to this material.
        block: Samples held and shuffled at a time; where it holds all, the order is that of :class:`Rows`.
        skip: How many at the start of a walk belong to another one.
    """

    walk: Callable[[], Iterable[Part]]
    samples: int
    block: int
    skip: int = 0

    def __len__(self) -> int:
        return self.samples

    def epoch(self, size: int, order: torch.Generator) -> Iterator[Part]:
        """See :class:`Material`."""
        left: Part | None = None
        for block in _pieces(self._own(), max(size, self.block)):
            whole = block if left is None else [torch.cat(pair) for pair in zip(left, block, strict=True)]
            count = len(whole[0])
            shuffled = torch.randperm(count, generator=order)
            full = count // size * size
            for rows in torch.split(shuffled[:full], size) if full else ():
                yield [tensor[rows] for tensor in whole]
            left = [tensor[shuffled[full:]] for tensor in whole]

    def plain(self, size: int, limit: int) -> Iterator[Part]:
        """See :class:`Material`."""
        yield from _pieces(_first(self._own(), limit), size)

    def split(self, held: int, seed: int) -> tuple[Walked, Walked]:
        """See :class:`Material`; the first of the walk are held out."""
        rest = replace(self, samples=self.samples - held, skip=self.skip + held)
        return rest, replace(self, samples=held)

    def parted(self, last: int) -> tuple[Walked, Walked]:
        """See :class:`Material`."""
        rest = self.samples - last
        return replace(self, samples=rest), replace(self, samples=last, skip=self.skip + rest)

    def _own(self) -> Iterator[Part]:
        skip = self.skip
        parts = _first(self.walk(), self.skip + self.samples)
        for part in parts:
            if skip < len(part[0]):
                yield [tensor[skip:] for tensor in part]
            skip = max(0, skip - len(part[0]))


def _first(parts: Iterable[Part], limit: int) -> Iterator[Part]:
    for part in parts:
        if limit <= 0:
            return
        yield [tensor[:limit] for tensor in part]
        limit -= len(part[0])


def _pieces(parts: Iterable[Part], size: int) -> Iterator[Part]:
    """The same samples in pieces of ``size``, the last one shorter."""
    held: list[Part] = []
    have = 0
    for part in parts:
        held.append(part)
        have += len(part[0])
        if have >= size:
            whole = [torch.cat(column) for column in zip(*held, strict=True)]
            full = have // size * size
            for at in range(0, full, size):
                yield [tensor[at : at + size] for tensor in whole]
            held, have = [[tensor[full:] for tensor in whole]], have - full
    if have:
        yield [torch.cat(column) for column in zip(*held, strict=True)]


def filled(parts: Iterable[Part], count: int) -> Part:
    """Parts as whole tensors, without holding them twice.

    Args:
        parts: ``count`` samples or fewer, of equal shapes.
        count: Most samples.

    Raises:
        ValueError: Shapes differ.
    """
    whole: Part = []
    at = 0
    for part in parts:
        if not whole:
            whole = [torch.empty((count, *tensor.shape[1:]), dtype=tensor.dtype) for tensor in part]
        if [t.shape[1:] for t in part] != [t.shape[1:] for t in whole]:
            raise ValueError("samples of unequal shapes")
        for into, tensor in zip(whole, part, strict=True):
            into[at : at + len(tensor)] = tensor
        at += len(part[0])
    return [tensor[:at] for tensor in whole]
