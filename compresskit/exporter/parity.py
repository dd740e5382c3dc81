"""The parity gate: does the exported file compute what the torch module computes?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from compresskit.errors import InputError
from compresskit.exporter.call import Flat, call, device_of, to_array
from compresskit.exporter.judge import Distance, Judge, Own, difference, tensors
from compresskit.exporter.samples import EDGES, Limits, samples
from compresskit.model import InputSpec
from compresskit.runtimes.base import Session
from compresskit.runtimes.onnxruntime import OnnxRuntime
from compresskit.stage import Progress, silent

if TYPE_CHECKING:
    from compresskit.data.source import Source

# float32 exports were measured at 1e-7 to 2e-6 relative (12 models, packed or not); a wrong operator gives 1e-3 and up.
ABSOLUTE, RELATIVE = 1e-5, 1e-5
SAMPLES = 32
FACTOR = 10.0
"""Where a limit is missed, a file may be that many times as far from float64 as the model's own float32 is.

Right files were measured at up to 4.0 times: style transfer and 13 kinds of super-resolution nets, on inputs that
float32 is bad at too.
"""
TELLING = 2e-4
"""An input on which the model's own float32 is farther from float64 than that, relative, proves nothing of a file: by
``FACTOR`` a difference of .2 % could hide there, and the mildest faults make no more."""
_NARROW = 4
"""The same for narrower types than float32, in units of their last place."""
_NOISE = 0.1
"""Where it is farther than that, outputs are noise: a file can't be told to be wrong either."""
_GIVEN, _GIVEN_BATCH = 8, 4
GIVEN = "given"
_UNPROVEN = (
    "whether the ONNX file computes {} as the model does. float32 is too inexact for this model on all inputs that "
    "were tried. Give `data` with realistic inputs"
)


@dataclass(frozen=True)
class ParityCheck:
    """What a file is tried with, and how near it must come.

    Attributes:
        absolute: Largest allowed difference, relative to a feed's largest output where that is above 1.
        relative: Largest allowed relative L2 distance of an output.
        count: Made-up samples at least; among them zeros, extremes, padded masks, three batch sizes, two lengths.
        seed: Of the samples.
        threads: Of onnxruntime; 0 is its own choice.
        data: Samples that are tried before the random ones; the first eight are taken.
    """

    absolute: float = ABSOLUTE
    relative: float = RELATIVE
    count: int = SAMPLES
    seed: int = 0
    threads: int = 0
    data: Source | None = None


USUAL = ParityCheck()


@dataclass(frozen=True)
class Parity:
    """How far the file's outputs are from the module's.

    Attributes:
        max_abs: Largest absolute difference, divided by the feed's largest output where that is above 1.
        rel_l2: Largest relative L2 distance of one output in one feed.
        n: Samples compared; none after the first on which the file is wrong.
        passed: True when every output agrees on every feed that can tell, and some feed can; None when none can.
        worst: Where it was worst, or wrong first: the output, the kind of feed, and what float64 says of it.
        ratio: How many times as far from float64 as the module the file was at most; None where float64 wasn't asked.
        notes: What a user should know: feeds that prove nothing, and a judge that couldn't run.
        given: How many of the samples are the user's.
    """

    max_abs: float
    rel_l2: float
    n: int
    passed: bool | None
    worst: str
    ratio: float | None = None
    notes: tuple[str, ...] = ()
    given: int = 0


def parity(
    module: nn.Module,
    path: Path,
    inputs: tuple[InputSpec, ...],
    check: ParityCheck = USUAL,
    *,
    limits: Limits | None = None,
    exact: bool = True,
    progress: Progress = silent,
) -> Parity:
    """Compare a module with its ONNX file on given and random inputs.

    Where a limit is missed, float64 decides: see ``FACTOR`` and ``TELLING``.

    Args:
        module: The original; run in eval mode, its flags are put back.
        path: The ONNX file.
        inputs: What the module takes.
        check: Tolerances and samples.
        limits: Bounds of dynamic axes, from the export.
        exact: Run the file's operators as written, without rewrites that round activations; without it only the
            distance is measured.
        progress: Told of the samples done.

    Raises:
        InputError: onnxruntime refuses the file, or the module its inputs.
    """
    session = OnnxRuntime(exact=exact).open(path, check.threads)
    flat, device = Flat(module, inputs), device_of(module)
    tally = _Tally(check, Judge(module, inputs) if exact else None)
    made_up = samples(inputs, count=check.count, seed=check.seed, limits=limits)
    for kind, feeds in chain(_given(check.data, inputs, limits or {}, tally.notes), made_up):
        expected = call(flat, tensors(feeds, inputs, device))
        found = _run(session, feeds)
        results = [
            _Result(name, to_array(ours), found.get(name), _telling(ours.dtype))
            for name, ours in zip(flat.names, expected, strict=True)
        ]
        tally.add(kind, feeds, results)
        progress("parity", min(tally.n, check.count), check.count)
        if tally.wrong and exact:
            break
    return tally.parity()


def _given(
    source: Source | None, inputs: tuple[InputSpec, ...], limits: Limits, notes: list[str]
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """The first samples of the user's data, in batches that the file takes."""
    if source is None:
        return
    from compresskit.data.checked import checked

    first = inputs[0].shape[0] if inputs[0].shape else "batch"
    low, high = (first, first) if isinstance(first, int) else limits.get(first, (1, _GIVEN_BATCH))
    size = max(low, min(_GIVEN_BATCH, high or _GIVEN_BATCH))
    try:
        for batch in source.batches(size, max(_GIVEN, size)):
            feeds = checked(batch, source.name, inputs)
            if all(_within(feeds[spec.name].shape, spec, limits) for spec in inputs):
                yield GIVEN, {spec.name: feeds[spec.name].astype(spec.dtype, copy=False) for spec in inputs}
    except InputError as error:  # the stage or the metric that takes the data refuses them in its own words
        notes.append(f"the ONNX file was not verified on `data`: {error.message}")


def _within(shape: tuple[int, ...], spec: InputSpec, limits: Limits) -> bool:
    """Whether the file takes such an array: its axes are fixed, or have bounds."""
    for size, axis in zip(shape, spec.shape, strict=True):
        low, high = (axis, axis) if isinstance(axis, int) else limits.get(axis, (0, None))
        if size < low or (high is not None and size > high):
            return False
    return True


def _run(session: Session, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A pass with what the graph takes: an input that the model ignores isn't in the file."""
    names = {spec.name for spec in session.inputs}
    return session.run({name: value for name, value in feeds.items() if name in names})


def _telling(dtype: torch.dtype) -> float:
    narrow = dtype.is_floating_point and dtype.itemsize < 4
    return max(TELLING, _NARROW * torch.finfo(dtype).eps) if narrow else TELLING


@dataclass(frozen=True)
class _Result:
    """One output on one feed: the module's array, the file's, and from where on its own error makes it useless."""

    name: str
    ours: np.ndarray
    theirs: np.ndarray | None
    telling: float

    @property
    def same_shape(self) -> bool:
        return self.theirs is not None and self.theirs.shape == self.ours.shape


@dataclass
class _Tally:
    """What the feeds so far say."""

    check: ParityCheck
    judge: Judge | None
    n: int = 0
    given: int = 0
    largest: float = 0.0
    furthest: float = 0.0
    where: str = ""
    wrong: bool = False
    ratio: float | None = None
    outputs: set[str] = field(default_factory=set)
    proven: set[str] = field(default_factory=set)
    useless: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, kind: str, feeds: dict[str, np.ndarray], results: Sequence[_Result]) -> None:
        """Compare the outputs of one feed."""
        shape = next(iter(feeds.values())).shape
        count = shape[0] if shape else 1
        self.n += count
        self.given += count if kind == GIVEN else 0
        off = [difference(result.ours, result.theirs) for result in results]
        far = [i for i, found in enumerate(off) if not _near(found, self._limit())]
        own = self._own(feeds, results, far) if far else None
        for index, (result, found) in enumerate(zip(results, off, strict=True)):
            where = f"output '{result.name}' on {_named(kind)} input of {list(shape)}"
            self.outputs.add(result.name)
            if index not in far:
                self._agreed(kind, result.name, found, where)
            elif own is None:
                self._wrong(found, where)
            else:
                self._judged(kind, result, found, (own.exact[index], own.errors[index]), where)

    def _own(self, feeds: dict[str, np.ndarray], results: Sequence[_Result], far: list[int]) -> Own | None:
        """How exact the module is, asked until that explains how far the file is; None without a judge."""
        own = None
        for own in self.judge.own(feeds, tuple(r.ours for r in results)) if self.judge else ():
            files = [(difference(own.exact[i], results[i].theirs), own.errors[i]) for i in far]
            if all(_near(file, self._limit(error)) for file, error in files):
                break
        return own

    def _judged(
        self, kind: str, result: _Result, found: Distance, own_: tuple[np.ndarray, Distance], where: str
    ) -> None:
        """Decide by how far the module and the file are from the exact outputs."""
        exact, own = own_
        file = difference(exact, result.theirs)
        ratio = max(FACTOR * there / allowed for there, allowed in zip(file, self._limit(own), strict=True))
        reference = "the model with torch's own kernels" if self.judge and self.judge.excuse else "float64"
        where = f"{where}, {ratio:.2g} times as far from {reference} as the model's own float32 (limit {FACTOR:g})"
        near = _near(file, self._limit(own))
        if result.same_shape and (own[1] > _NOISE or (near and own[1] > result.telling)):
            self.useless[kind] = max(self.useless.get(kind, 0.0), own[1])
        elif near:
            self.ratio = max(self.ratio or 0.0, ratio)
            self._agreed(kind, result.name, found, where)
        else:
            self._wrong(found, where)

    def _agreed(self, kind: str, output: str, found: Distance, where: str) -> None:
        if kind not in EDGES:  # constant inputs alone prove little: an output may be the same for all of them
            self.proven.add(output)
        if not self.wrong:
            self._note(found, where)

    def _wrong(self, found: Distance, where: str) -> None:
        if not self.wrong:
            self.wrong, self.largest, self.furthest, self.where = True, 0.0, 0.0, ""
        self._note(found, where)

    def _note(self, found: Distance, where: str) -> None:
        self.largest = max(self.largest, found[0])
        if found[1] > self.furthest or not self.where:
            self.furthest, self.where = found[1], where

    def _limit(self, own: Distance = (0.0, 0.0)) -> Distance:
        return max(self.check.absolute, FACTOR * own[0]), max(self.check.relative, FACTOR * own[1])

    def parity(self) -> Parity:
        """What came out."""
        unproven = sorted(self.outputs - self.proven)
        passed = False if self.wrong else None if unproven else True
        notes = list(self.notes)
        if self.judge and self.judge.excuse:
            notes.append(
                "the ONNX file was judged by the spread of float32 kernels, because float64 is not available "
                f"({self.judge.excuse})"
            )
        if self.useless:
            kinds = ", ".join(f"{_named(kind)} (by {error:.1g})" for kind, error in self.useless.items())
            notes.append(f"the model's own float32 error is too large to verify the ONNX file on these inputs: {kinds}")
        if passed is None:
            notes.insert(0, f"NOT VERIFIED: {_UNPROVEN.format(', '.join(map(repr, unproven)))}")
        return Parity(self.largest, self.furthest, self.n, passed, self.where, self.ratio, tuple(notes), self.given)


def _near(found: Distance, limit: Distance) -> bool:
    """Within a limit; where outputs are next to nothing, their difference alone counts."""
    return found[0] <= limit[0] and (found[1] <= limit[1] or found[0] <= limit[0] / 100)


def _named(kind: str) -> str:
    return "a given" if kind == GIVEN else kind
