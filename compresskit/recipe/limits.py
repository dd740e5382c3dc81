"""The limits that a result must keep, as they are written."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from compresskit.errors import UsageError
from compresskit.quality.drop import parse_drop

DEFAULT_DROP = "1%"
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Limits:
    """What the user asked for; None leaves the default limit.

    Attributes:
        max_drop: ``0.5pt`` or ``1%``. Default: 1 % of the original's figure.
        max_size: ``20MB``. Default: not larger than the original.
        min_speedup: 1.2 is 20 % faster. Default: not slower than the original, or as fast within 10 % where
            no method promises speed.
        may_grow: Size and speed have no default limit.
    """

    max_drop: str | None = None
    max_size: str | None = None
    min_speedup: float | None = None
    may_grow: bool = False

    @property
    def max_bytes(self) -> int | None:
        """The largest size in bytes, where one was asked for."""
        return parse_size(self.max_size) if self.max_size else None

    def check(self, *, evaluated: bool, benched: bool, data_option: str = "`eval_data`") -> None:
        """Refuse limits that can't be understood, or that nothing will be measured for.

        Args:
            evaluated: Quality will be measured.
            benched: Speed will be measured.
            data_option: What would give the data for the former.

        Raises:
            UsageError: Says which.
        """
        parse_drop(self.max_drop or DEFAULT_DROP)
        parse_size(self.max_size or "1MB")
        if self.max_drop is not None and not evaluated:
            raise UsageError("`max_drop` needs evaluation data", f"give {data_option}")
        if self.min_speedup is not None and not benched:
            raise UsageError("`min_speedup` needs the speed measured", "remove `no_bench`")
        if self.min_speedup is not None and not self.min_speedup > 0:
            raise UsageError(f"`min_speedup` must be above 0, found {self.min_speedup}")


def parse_size(text: str) -> int:
    """``20MB``, ``1.5 GB``, ``900KiB`` or plain bytes, in bytes.

    Raises:
        UsageError: Anything else.
    """
    number = text.strip().rstrip("BbKkMmGgIi ")
    unit = text.strip()[len(number) :].strip().upper() or "B"
    try:
        size = float(number) * _UNITS[unit]
    except (KeyError, ValueError):
        raise UsageError(f"a size is a number and a unit as 20MB or 900KiB, found '{text}'") from None
    if not 0 < size < 2**63:
        raise UsageError(f"a size must be above 0, found '{text}'")
    return int(size)


def parse_growth(text: str) -> tuple[float, int]:
    """How much larger something may be: ``5%`` as a factor, ``100KB`` as bytes to add; ``0`` is none.

    Raises:
        UsageError: Anything else.
    """
    number = text.strip().removesuffix("%").strip()
    if number.strip("0.") == "" and number.strip(".") and number.count(".") <= 1:
        return 1.0, 0
    if not text.strip().endswith("%"):
        return 1.0, parse_size(text)
    share = float(number) if re.fullmatch(r"\d+\.?\d*|\.\d+", number, re.ASCII) else math.inf
    if not math.isfinite(share):
        raise UsageError(f"`max_growth` '{text}' is not understood", "expected a share as 5% or a size as 100KB")
    return 1 + share / 100, 0
