"""The parity gate: does the exported file compute what the torch module computes?"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from compresskit.exporter.call import Flat, call, device_of, to_array
from compresskit.exporter.samples import Limits, samples
from compresskit.model import InputSpec
from compresskit.runtimes.base import Session
from compresskit.runtimes.onnxruntime import OnnxRuntime
from compresskit.stage import Progress, silent

# float32 exports were measured at 1e-7 to 2e-6 relative (12 models, packed or not); a wrong operator gives 1e-3 and up.
ABSOLUTE, RELATIVE = 1e-5, 1e-5
SAMPLES = 32
_NOISE, _FACTOR = 1e-3, 10.0
"""Where float32 alone is that far off (a damaged model or the softmax of large scores may amplify its rounding), a file
may be off that many times."""


@dataclass(frozen=True)
class ParityCheck:
    """What a file is tried with, and how near it must come.

    Attributes:
        absolute: Largest allowed difference, relative to a feed's largest output where that is above 1.
        relative: Largest allowed relative L2 distance of an output.
        count: Samples at least; among them zeros, extremes, padded masks, three batch sizes, two lengths.
        seed: Of the samples.
        threads: Of onnxruntime; 0 is its own choice.
    """

    absolute: float = ABSOLUTE
    relative: float = RELATIVE
    count: int = SAMPLES
    seed: int = 0
    threads: int = 0


USUAL = ParityCheck()


@dataclass(frozen=True)
class Parity:
    """How far the file's outputs are from the module's.

    Attributes:
        max_abs: Largest absolute difference, divided by the feed's largest output where that is above 1.
        rel_l2: Largest relative L2 distance of one output in one feed.
        n: Samples compared.
        passed: True when every output of every feed is within the tolerances.
        worst: Where it was worst: the output and the kind of feed.
    """

    max_abs: float
    rel_l2: float
    n: int
    passed: bool
    worst: str


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
    """Compare a module with its ONNX file on made-up inputs.

    Args:
        module: The original; run in eval mode, its flags are put back.
        path: The ONNX file.
        inputs: What the module takes.
        check: Tolerances and samples.
        limits: Bounds of dynamic axes, from the export.
        exact: Run the file's operators as written, without rewrites that round activations.
        progress: Told of the samples done.

    Raises:
        InputError: onnxruntime refuses the file, or the module its inputs.
    """
    session = OnnxRuntime(exact=exact).open(path, check.threads)
    flat, device, exactly = Flat(module, inputs), device_of(module), _Exactly(module, inputs)
    worst, where, largest, n, passed = -1.0, "", 0.0, 0, True
    for kind, feeds in samples(inputs, count=check.count, seed=check.seed, limits=limits):
        args = tuple(torch.from_numpy(feeds[spec.name]).to(device) for spec in inputs)
        expected = call(flat, args)
        found = _run(session, feeds)
        for index, (name, tensor) in enumerate(zip(flat.names, expected, strict=True)):
            off, distance = difference(to_array(tensor), found.get(name))
            largest = max(largest, off)
            close = off <= check.absolute and (distance <= check.relative or off <= check.absolute / 100)
            if not close and passed and off <= _NOISE:
                close = exactly.as_good(index, args, to_array(tensor), found.get(name))
            passed = passed and close
            if distance > worst:
                worst, where = distance, f"output '{name}' on {kind} input of {list(args[0].shape)}"
        n += args[0].shape[0] if args[0].dim() else 1
        progress("parity", min(n, check.count), check.count)
    return Parity(largest, max(worst, 0.0), n, passed, where)


class _Exactly:
    """The module in float64, made when it is first asked: a judge where float32 itself is not exact enough."""

    def __init__(self, module: nn.Module, inputs: tuple[InputSpec, ...]) -> None:
        self._module, self._inputs = module, inputs
        self._flat: Flat | None = None

    def as_good(self, index: int, args: tuple[torch.Tensor, ...], ours: np.ndarray, theirs: np.ndarray | None) -> bool:
        """True where the file is about as near to the exact output as the module in float32."""
        try:
            self._flat = self._flat or Flat(copy.deepcopy(self._module).double(), self._inputs)
            exact = to_array(call(self._flat, tuple(a.double() if a.is_floating_point() else a for a in args))[index])
        except Exception:  # code that insists on float32, or memory
            return False
        module, file = difference(exact, ours), difference(exact, theirs)
        return all(there <= _FACTOR * here for here, there in zip(module, file, strict=True))


def _run(session: Session, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A pass with what the graph takes: an input that the model ignores isn't in the file."""
    names = {spec.name for spec in session.inputs}
    return session.run({name: value for name, value in feeds.items() if name in names})


def difference(expected: np.ndarray, found: np.ndarray | None) -> tuple[float, float]:
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
