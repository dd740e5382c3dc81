"""Samples from an ``.npz``: images with labels, or arrays named as the model's inputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from compresskit.data.archive import read_npz
from compresskit.data.prepare import (
    HELPERS,
    Normalize,
    Plan,
    by_sample,
    check_values,
    complete,
    make_plan,
    parse_normalize,
    primary,
    shape_text,
)
from compresskit.data.source import Batch
from compresskit.data.walking import Fingerprint, as_targets, blocks, fair_order, spans
from compresskit.errors import InputError, UsageError, listing, printable
from compresskit.model import InputSpec

_LABELS = ("y", "labels")
_PIXELS = 64
"""A row of fewer numbers is a row of features, not a picture."""
_BRIGHT = 16.0
"""Largest value that samples in 0…1 or of unit variance can be thought to reach."""


class ArraySource:
    """Arrays kept as they are stored and prepared batch by batch; never a float copy of the whole set.

    Samples that lie class by class are walked in a shuffled order.
    """

    def __init__(
        self,
        name: str,
        arrays: dict[str, np.ndarray],
        targets: np.ndarray | None,
        plans: dict[str, Plan],
        specs: tuple[InputSpec, ...],
    ) -> None:
        self.name, self.labelled = name, targets is not None
        self.notes = [note for stored, plan in plans.items() for note in _unscaled(stored, arrays[stored], plan)]
        self.normalize = next((plan.normalize for plan in plans.values() if plan.normalize), None)
        self.scaled = any(plan.pixels and len(plan.shape) == 4 for plan in plans.values())
        self._arrays, self._targets, self._plans, self._specs = arrays, targets, plans, specs
        self._order = fair_order(targets)
        first = next(iter(plans.values()))
        if "input_ids" in arrays or (np.dtype(first.dtype).kind in "ui" and len(first.shape) == 2):
            self.kind = "tokens"
        else:
            self.kind = "images" if len(first.shape) == 4 else "arrays"

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values())))

    def batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        """See :class:`~compresskit.data.source.Source`."""
        for span in spans(len(self), size, limit):
            yield self._of(span if self._order is None else self._order[span])

    def take(self, rows: np.ndarray) -> Batch:
        """The samples of some rows, int64 ``(n,)``, in that order."""
        return self._of(rows if self._order is None else self._order[rows])

    def _of(self, rows: slice | np.ndarray) -> Batch:
        inputs = {p.name: p.apply(self._arrays[stored][rows]) for stored, p in self._plans.items()}
        if self._specs:
            inputs = complete(inputs, self._specs)
        return Batch(inputs, None if self._targets is None else self._targets[rows])

    def fingerprint(self) -> str:
        """See :class:`~compresskit.data.source.Source`."""
        prepared = Fingerprint({"kind": "arrays", "plans": [p.options() for p in self._plans.values()]})
        for stored in self._plans:
            prepared.array(self._plans[stored].name, self._arrays[stored])
        if self._targets is not None:
            prepared.array("y", self._targets)
        return prepared.hex()


def _unscaled(stored: str, array: np.ndarray, plan: Plan) -> Iterator[str]:
    """A note on what looks like pixels that nobody brought to 0…1."""
    small = array.ndim < 3 and array[0].size < _PIXELS
    if small or plan.pixels or np.dtype(plan.dtype).kind != "f" or array.dtype.kind not in "uif":
        return
    if plan.normalize is not None and max(plan.normalize.mean) > 1:
        return
    low = min(float(block.min()) for block in blocks(array))
    high = max(float(block.max()) for block in blocks(array))
    if low >= 0 and _BRIGHT < high <= (255 if array.dtype.kind == "f" else 65535):
        done = "as they are" if plan.normalize is None else "to `normalize`, which is for 0…1"
        yield (
            f"array '{printable(stored)}' holds {array.dtype} from {low:g} to {high:g}, which go {done}: if they are "
            f"pixels that the model takes in 0…1, store them as uint8, or divided"
        )


def open_npz(name: str, path: Path, normalize: str | None, specs: tuple[InputSpec, ...]) -> ArraySource:
    """Samples of an ``.npz``; see :func:`compresskit.data.open_source`.

    Raises:
        InputError: A damaged or hostile file, arrays missing, of unequal lengths, of a wrong shape, NaN or Inf.
        UsageError: ``normalize`` doesn't fit.
    """
    arrays = read_npz(path)
    arrays, specs = by_sample(str(path), arrays, specs), tuple(spec.by_sample for spec in specs)
    label = next((n for n in _LABELS if n in arrays and all(n != s.name for s in specs)), None)
    targets = arrays.pop(label) if label else None
    chosen = _choose(path, arrays, specs)
    _check_lengths(path, {k: arrays[k] for k in chosen} | ({label: targets} if label and targets is not None else {}))
    plans = _plans(path, arrays, chosen, parse_normalize(normalize))
    for stored, plan in plans.items():
        for block in blocks(arrays[stored]):
            check_values(f"{path}: array '{printable(stored)}'", block, plan.dtype, chosen[stored])
    ready = None if label is None or targets is None else as_targets(label, str(path), targets)
    return ArraySource(name, {k: arrays[k] for k in chosen}, ready, plans, specs)


def _plans(
    path: Path, arrays: dict[str, np.ndarray], chosen: dict[str, InputSpec | None], normalize: Normalize | None
) -> dict[str, Plan]:
    floats = [k for k in chosen if np.dtype(s.dtype if (s := chosen[k]) else "float32").kind == "f"]
    if normalize is not None and (len(floats) != 1 or arrays[floats[0]].dtype.kind not in "fu"):
        raise UsageError(f"`normalize` is for one array of images, {path} feeds {listing(list(chosen))}")
    return {
        stored: make_plan(
            f"{path}: array '{printable(stored)}'",
            arrays[stored],
            spec.name if spec else stored,
            spec,
            normalize if stored in floats else None,
        )
        for stored, spec in chosen.items()
    }


def _choose(path: Path, arrays: dict[str, np.ndarray], specs: tuple[InputSpec, ...]) -> dict[str, InputSpec | None]:
    """Which stored array feeds which input; in the model's order."""
    if not specs:
        if not arrays:
            raise InputError(f"{path} holds labels only", "store the samples as 'x'")
        return dict.fromkeys(arrays)
    chosen: dict[str, InputSpec | None] = {s.name: s for s in specs if s.name in arrays}
    wanted = primary(specs)
    missing = [s.name for s in wanted if s.name not in arrays]
    others = [name for name in arrays if name not in chosen and name not in HELPERS]
    alone = "x" if "x" in others else others[0] if len(others) == 1 else None
    if missing and len(wanted) == 1 and alone is not None:
        return {alone: wanted[0], **chosen}
    if missing:
        raise InputError(
            f"{path} has no array for the model's input {listing(missing)}; it has {listing(list(arrays))}",
            "name the arrays as the model's inputs, or 'x' when there is one",
        )
    if "attention_mask" in arrays and "attention_mask" not in chosen and _padded(arrays["attention_mask"]):
        raise InputError(f"{path} has padded samples (attention_mask), but the model takes no attention_mask")
    return chosen


def _padded(mask: np.ndarray) -> bool:
    return not all(bool(block.all()) for block in blocks(mask))


def _check_lengths(path: Path, arrays: dict[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        if array.ndim == 0:
            raise InputError(f"{path}: array '{printable(name)}' is a single number, expected samples along an axis")
        if array.size == 0:
            raise InputError(f"{path}: array '{printable(name)}' is empty, shape {shape_text(array.shape)}")
        if array.dtype.kind in "ui" and name in HELPERS and array.ndim != 2:
            raise InputError(f"{path}: '{name}' should be (n, L), found {shape_text(array.shape)}")
    lengths = {printable(n): len(a) for n, a in arrays.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"'{n}' {length}" for n, length in lengths.items())
        raise InputError(
            f"{path}: arrays of different lengths: {found}", "`batch_axis` names the batch axis of an input"
        )
