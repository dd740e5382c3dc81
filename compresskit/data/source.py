"""What a data source is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Batch:
    """Some samples: inputs by name, each ``(n, …)``, and targets ``(n, …)`` where there are labels.

    A source of kind ``pairs`` gives ``2n`` rows of inputs to ``n`` targets: rows ``2i`` and ``2i + 1`` are pair ``i``.
    One of kind ``choices`` gives a row for each choice of ``n`` questions, those of a question together.

    Attributes:
        inputs: By name.
        targets: Labels or scores. Of ``choices`` three integers a row: the question's number, whether the choice is
            the right one, and its length in characters.
        scored: ``(rows, L)`` bools: the tokens of which a language model's prediction counts; None is all of them.
    """

    inputs: dict[str, np.ndarray]
    targets: np.ndarray | None = None
    scored: np.ndarray | None = None


class Source(Protocol):
    """Samples that can be walked more than once, always in the same order.

    Attributes:
        name: How the user named it.
        kind: ``images``, ``tokens``, ``pairs`` (sentence pairs with a score), ``choices`` (questions with possible
            answers) or ``arrays``.
        labelled: True when batches carry targets.
    """

    name: str
    kind: str
    labelled: bool

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        """Batches of ``size`` samples (the last may be smaller), of the first ``limit`` samples."""
        ...

    def fingerprint(self) -> str:
        """Hex SHA-256 of the samples and of how they are prepared."""
        ...


@runtime_checkable
class Indexed(Protocol):
    """A source whose samples can be fetched in any order; those of kind ``pairs`` count single texts."""

    def take(self, rows: np.ndarray) -> Batch:
        """The samples of some rows, int64 ``(n,)``."""
        ...


def notes_of(source: Source | None) -> Sequence[str]:
    """What a reader of figures on these samples must know of them: a source may have ``notes``."""
    return getattr(source, "notes", ())
