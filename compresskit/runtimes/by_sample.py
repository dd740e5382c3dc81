"""A session whose inputs and outputs have a row a sample, wherever the model has its batch axis."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from compresskit.model import InputSpec
from compresskit.runtimes.base import Session

if TYPE_CHECKING:
    import numpy as np


class BySample:
    """Takes inputs by sample and gives them to a session as its model takes them, and its outputs back by sample.

    Where samples lie in an output is told by the name of that axis, which is that of the inputs' batch axis.

    Args:
        session: Of the model; its ``output_shapes`` are read where it has such.
        known: What is known of the model's inputs; those not named have their samples along the first axis.
    """

    def __init__(self, session: Session, known: Iterable[InputSpec]) -> None:
        self._session = session
        self._taken = {spec.name: as_known(spec, known) for spec in session.inputs}
        self.inputs = tuple(spec.by_sample for spec in self._taken.values())
        self.outputs = session.outputs
        self.notes = getattr(session, "notes", ())
        batch = {s.shape[s.batch_axis] for s in self._taken.values() if s.batch_axis is not None and s.shape}
        shapes = getattr(session, "output_shapes", {}).items()
        places = {n: [at for at, size in enumerate(s) if isinstance(size, str) and size in batch] for n, s in shapes}
        self._given = {name: at[0] for name, at in places.items() if at}

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One forward pass; see :class:`~compresskit.runtimes.base.Session`."""
        import numpy as np

        outputs = self._session.run({n: self._taken[n].of_rows(v) if n in self._taken else v for n, v in feeds.items()})
        return {n: np.moveaxis(v, self._given[n], 0) if n in self._given else v for n, v in outputs.items()}


def as_known(spec: InputSpec, known: Iterable[InputSpec]) -> InputSpec:
    """An input as a runtime tells it, with the batch axis that is known of it."""
    axis = next((own.batch_axis for own in known if own.name == spec.name), 0)
    return replace(spec, batch_axis=axis)


def by_sample(session: Session, known: tuple[InputSpec, ...]) -> Session:
    """The session, or one that takes its inputs by sample where it has another batch axis somewhere."""
    return BySample(session, known) if any(spec.batch_axis != 0 for spec in known) else session
