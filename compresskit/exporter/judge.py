"""How exact a module's own float32 is on an input: what a file that computes the same can be asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compresskit.exporter.call import Flat, call, device_of, to_array
from compresskit.exporter.precision import OtherKernels, float64, float64_copy
from compresskit.exporter.quiet import first_line
from compresskit.model import InputSpec

_SEEDS = 3
Distance = tuple[float, float]
"""See :func:`difference`."""


@dataclass(frozen=True)
class Own:
    """A module's outputs on one feed.

    Attributes:
        exact: In float64; in the module's own precision where float64 can't run.
        errors: Of each output, how far the module in its own precision is from ``exact`` at most.
    """

    exact: tuple[np.ndarray, ...]
    errors: tuple[Distance, ...]

    def with_kernel(self, outputs: tuple[np.ndarray, ...]) -> Own:
        """The same with the outputs of one more kernel."""
        found = [difference(exact, output) for exact, output in zip(self.exact, outputs, strict=True)]
        worst = tuple((max(a, c), max(b, d)) for (a, b), (c, d) in zip(self.errors, found, strict=True))
        return Own(self.exact, worst)


class Judge:
    """Runs a module in float64, and with the roundings of other float32 kernels.

    Where float64 can't run (code in C++ or TorchScript that insists on float32, or too little memory), the module's own
    float32 is the reference, and its kernels' spread the error.

    Attributes:
        excuse: Why float64 couldn't run; empty where it could.
    """

    def __init__(self, module: nn.Module, inputs: tuple[InputSpec, ...]) -> None:
        self._module, self._inputs = module, inputs
        self._wide: Flat | None = None
        self.excuse = ""

    def own(self, feeds: dict[str, np.ndarray], ours: tuple[np.ndarray, ...]) -> Iterator[Own]:
        """What the module gives for a feed, and how exactly: first as torch's kernels round, then as more and more do.

        Args:
            feeds: Arrays by input name; they stay as they are.
            ours: The module's outputs in its own precision.
        """
        exact = self._exactly(feeds)
        own = Own(exact or ours, ((0.0, 0.0),) * len(ours)).with_kernel(ours)
        yield own
        for outputs in self._otherwise(feeds, exact is not None):
            own = own.with_kernel(outputs)
            yield own

    def _exactly(self, feeds: dict[str, np.ndarray]) -> tuple[np.ndarray, ...] | None:
        if self.excuse:
            return None
        try:
            self._wide = self._wide or Flat(float64_copy(self._module), self._inputs)
            return self._run(self._wide, feeds, float64)
        except Exception as error:  # whatever the module's code raises
            self.excuse = first_line(error)
            return None

    def _otherwise(self, feeds: dict[str, np.ndarray], wide: bool) -> Iterator[tuple[np.ndarray, ...]]:
        """The outputs as other kernels round them, in float64 or in the module's own precision."""
        flat = self._wide if wide and self._wide is not None else Flat(self._module, self._inputs)
        precision: Callable[[], Any] = float64 if wide else nullcontext
        modes: list[Callable[[], Any]] = [partial(OtherKernels, seed) for seed in range(_SEEDS)]
        if not wide:
            modes.append(partial(torch.backends.mkldnn.flags, enabled=False))
        for mode in modes:
            try:
                yield self._run(flat, feeds, precision, mode)
            except Exception:  # an operator that a mode can't look into: one opinion less
                continue

    def _run(self, flat: Flat, feeds: dict[str, np.ndarray], *modes: Callable[[], Any]) -> tuple[np.ndarray, ...]:
        with ExitStack() as stack:
            for mode in modes:
                stack.enter_context(mode())
            args = tensors(feeds, self._inputs, device_of(self._module))
            return tuple(map(to_array, call(flat, args)))


def tensors(feeds: dict[str, np.ndarray], inputs: tuple[InputSpec, ...], device: torch.device) -> tuple[Tensor, ...]:
    """A feed as a module takes it: copies, since a module may write into what it is given."""
    return tuple(torch.tensor(feeds[spec.name], device=device) for spec in inputs)


def difference(expected: np.ndarray, found: np.ndarray | None) -> Distance:
    """(largest difference over max(1, largest value), relative L2); infinite where shape or finiteness disagree.

    NaN against NaN and an infinity against the same infinity count as equal.
    """
    if found is None or found.shape != expected.shape:
        return math.inf, math.inf
    a, b = expected.astype(np.float64), found.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    a, b = a[~same], b[~same]
    if not a.size:
        return 0.0, 0.0
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.inf, math.inf
    whole = expected[np.isfinite(expected)].astype(np.float64)
    delta, norm = a - b, float(np.linalg.norm(whole))
    length = float(np.linalg.norm(delta))
    scale = max(1.0, float(np.abs(whole).max(initial=0.0)))
    return float(np.abs(delta).max()) / scale, length / norm if norm else math.inf
