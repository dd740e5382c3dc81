"""What the report says of palettes: how small an entropy coder would make them, and how they compare with rtn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from compresskit.ops.calibration.moments import Moments, output_error
from compresskit.ops.packed.format import BITS
from compresskit.ops.packed.grid import Grid, Packed, dequantize, unpack
from compresskit.ops.quantize.rtn import quantize_rtn

_LEAST = 1e-12


@dataclass
class PaletteReport:
    """Collects figures of each weight.

    Attributes:
        stored: Bytes of all weights.
        entropy: Bytes of them with codes at their entropy.
        rounded: Bytes of those of the weights that rtn has bits for, rounded by it.
        beside: Bytes of the same weights as palettes.
        gains: By how much each palette's error is below that of rtn, in dB.
    """

    stored: int = 0
    entropy: float = 0.0
    rounded: int = 0
    beside: int = 0
    gains: list[float] = field(default_factory=list)

    def watched(self, algorithm: Callable[..., Packed]) -> Callable[..., Packed]:
        """An algorithm whose results are counted."""

        def counted(weight: Tensor, grid: Grid, *moments: Moments) -> Packed:
            packed = algorithm(weight, grid, *moments)
            self._count(weight, packed, *moments)
            return packed

        return counted

    def _count(self, weight: Tensor, packed: Packed, moments: Moments | None = None) -> None:
        size, grid = packed.nbytes(), packed.grid
        self.stored += size
        self.entropy += size - packed.codes.numel() + entropy_bits(packed) / 8
        if grid.bits not in BITS:
            return
        rounded = quantize_rtn(weight, Grid(grid.bits, grid.group_size))
        self.rounded += rounded.nbytes()
        self.beside += size
        errors = [_error(weight, found, moments) for found in (rounded, packed)]
        self.gains.append(10 * math.log10(max(errors[0], _LEAST) / max(errors[1], _LEAST)))

    def facts(self) -> dict[str, Any]:
        """As :class:`~compresskit.facts.quantize.PaletteFacts` has them."""
        return {
            "stored_bytes": self.stored,
            "entropy_bytes": math.ceil(self.entropy),
            "rtn_bytes": self.rounded if self.gains else None,
            "rtn_gain": round(self._gain(), 2) if self.gains else None,
        }

    def notes(self) -> list[str]:
        """The same in words."""
        if not self.stored:
            return []
        small = f"an entropy coder would need {self.entropy / 1e3:.1f} kB"
        notes = [
            "smaller on disk only: the runtime unpacks the codes when it loads the file, and is as fast as float32",
            f"the weights take {self.stored / 1e3:.1f} kB; {small}, which no runtime reads",
        ]
        return notes + ([self._compared()] if self.gains else [])

    def _gain(self) -> float:
        return sum(self.gains) / len(self.gains)

    def _compared(self) -> str:
        gain, worse = self._gain(), sum(each < 0 for each in self.gains)
        sizes = f"{self.beside / 1e3:.1f} kB against {self.rounded / 1e3:.1f} kB"
        count = f"{worse} of {len(self.gains)} weights are worse" if worse else "no weight is worse"
        if gain > 0:
            return f"the error is {gain:.1f} dB below that of rtn with the same bits and groups ({sizes}); {count}"
        return f"no better than rtn with the same bits and groups ({sizes}): its error is {-gain:.1f} dB lower; use rtn"


def _error(weight: Tensor, found: Packed, moments: Moments | None) -> float:
    values = dequantize(found)
    if moments is None:
        return float((values - weight.detach().float()).square().sum())
    return float(output_error(weight, values, moments).clamp_min(0).sum())


def entropy_bits(packed: Packed) -> float:
    """Bits of all codes of a weight at their entropy; padding isn't counted."""
    columns, grid = math.prod(packed.shape[1:]), packed.grid
    _, size, _ = grid.layout(columns)
    codes = unpack(packed.codes, grid.bits, size).flatten(1)[:, :columns]
    counts = torch.bincount(codes.reshape(-1).int(), minlength=1 << grid.bits).double()
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * shares.log2()).sum() * counts.sum())
