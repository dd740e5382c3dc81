"""From a data source to what training walks through: in memory where it fits, else read while training goes on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from compresskit.data.checked import checked
from compresskit.data.source import Batch, Indexed, Source
from compresskit.errors import InputError
from compresskit.model import InputSpec
from compresskit.train.material import Material, Part, Rows, Walked, filled, in_memory

IN_MEMORY = 1 << 30
"""Bytes of samples up to which all are held; and of those shuffled at a time where they can only be walked."""
_READ = 256


class Reading:
    """The samples of a source as tensors.

    Args:
        source: Training data.
        inputs: What the model takes; empty where that isn't known: then the data's names are kept.
        count: How many samples; the first where the source can only be walked, else any, picked by ``seed``.
        labelled: Whether class labels are wanted; there may be none.
        seed: Of the pick.
        scored: Of kind ``pairs``, a sample is a pair with its score, not a single text.

    Attributes:
        names: Of the inputs, in the order of each part's tensors.
        classes: True where the last tensor of each part holds class labels, int64 ``(n,)``.
        scored: True where it holds scores, float32 ``(n,)``; the second texts' inputs then follow those of the first.
        labels: All of them, once they are in memory.
        sample_bytes: Of one sample of the first batch.

    Raises:
        InputError: The data are empty, hold NaN or Inf, lack an input or have another shape.
    """

    def __init__(
        self,
        source: Source,
        inputs: tuple[InputSpec, ...],
        count: int,
        *,
        labelled: bool,
        seed: int = 0,
        scored: bool = False,
    ) -> None:
        self._source, self._inputs, self._count = source, inputs, count
        self.scored = scored and source.kind == "pairs"
        first = next(source.batches(min(_READ, count), count), None)
        if first is None:
            raise InputError(f"{source.name} has no sample", "give data with at least two")
        targets = first.targets
        plain = targets is not None and targets.dtype == np.int64 and targets.ndim == 1
        self.classes = labelled and source.kind != "pairs" and plain
        self.labels: Tensor | None = None
        self.names = list(checked(first, source.name, inputs))
        part = self._part(first)
        self.sample_bytes = max(1, sum(t[:1].nbytes for t in part))
        texts = 2 if source.kind == "pairs" and not self.scored else 1
        self.rows = texts * count
        picked = torch.randperm(texts * len(source), generator=torch.Generator().manual_seed(seed))[: self.rows]
        self._picked = picked.sort().values

    def material(self, most: int = IN_MEMORY) -> Material:
        """All samples, or a way to fetch them where they are more than ``most`` bytes."""
        if self.sample_bytes * self.rows <= most:
            return self._held()
        source = self._source
        if isinstance(source, Indexed) and not self.scored:
            return Rows(lambda rows: self._part(source.take(rows.numpy())), self._picked)
        return Walked(self._walk, self.rows, max(1, most // self.sample_bytes))

    def _walk(self) -> Iterator[Part]:
        source = self._source
        if self.scored:
            yield from self._pairs()
        elif isinstance(source, Indexed) and self._count < len(source):
            # Often the classes lie one behind the other: the first samples would be of one class.
            yield from (self._part(source.take(rows.numpy())) for rows in torch.split(self._picked, _READ))
        else:
            yield from map(self._part, source.batches(_READ, self._count))

    def _pairs(self) -> Iterator[Part]:
        """The picked pairs; their scores come with the walk only."""
        at = 0
        for batch in self._source.batches(_READ):
            part = self._part(batch)
            rows = self._picked[(self._picked >= at) & (self._picked < at + len(part[0]))] - at
            at += len(part[0])
            if len(rows):
                yield [tensor[rows] for tensor in part]

    def _held(self) -> Rows:
        parts: Iterable[Part] = self._walk()
        if "attention_mask" in self.names and _free(self._inputs):
            parts = list(parts)
            if (texts := self._padded(parts)) is not None:
                return texts
        try:
            return in_memory(self._whole(parts))
        except ValueError:
            raise InputError(
                f"{self._source.name}: samples of unequal shapes can't be trained on", "give equal lengths"
            ) from None

    def _padded(self, parts: list[Part]) -> Rows | None:
        """Texts of one length, whose batches are cut to their own longest; None where padding isn't at their end."""
        texts = len(self.names) * (2 if self.scored else 1)
        masks = range(self.names.index("attention_mask"), texts, len(self.names))
        alike = all(t.shape == part[masks[0]].shape for part in parts for t in part[:texts])
        if not alike or not all(padded_at_end(part[at]) for part in parts for at in masks):
            return None
        longest = max(part[masks[0]].shape[1] for part in parts)
        return in_memory(self._whole(_wider(part, texts, longest) for part in parts), masks=masks, texts=texts)

    def _whole(self, parts: Iterable[Part]) -> list[Tensor]:
        """The parts put together; notes the labels."""
        whole = filled(parts, self.rows)
        self.labels = whole[-1] if self.classes or self.scored else None
        return whole

    def _part(self, batch: Batch) -> Part:
        arrays = checked(batch, self._source.name, self._inputs)
        tensors = [torch.from_numpy(arrays[name]) for name in self.names]
        if self.scored and batch.targets is not None:
            scores = torch.from_numpy(batch.targets).float()
            return [*(tensor[0::2] for tensor in tensors), *(tensor[1::2] for tensor in tensors), scores]
        if self.classes and batch.targets is not None:
            tensors.append(torch.from_numpy(batch.targets))
        return tensors


def _free(inputs: tuple[InputSpec, ...]) -> bool:
    """True where texts may have any length."""
    return not inputs or all(len(spec.shape) < 2 or isinstance(spec.shape[1], str) for spec in inputs)


def padded_at_end(mask: Tensor) -> bool:
    """True for an attention mask ``(n, length)`` whose rows begin with a token and have padding at their end only."""
    known = mask.ne(0)
    return mask.dim() == 2 and bool(known[:, 0].all() and (known[:, 1:] <= known[:, :-1]).all())


def _wider(part: Part, texts: int, length: int) -> Part:
    """Texts filled up with zeros to a length; what follows them as it is."""
    return [*(F.pad(tensor, (0, length - tensor.shape[1])) for tensor in part[:texts]), *part[texts:]]
