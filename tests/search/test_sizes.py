"""How small a candidate can be at best, against the files that the methods write."""

from __future__ import annotations

from typing import Any

import pytest

from compresskit.ops.estimates.sizes import Inventory, Weight
from compresskit.search.sizes import least_bytes

INVENTORY = Inventory((Weight("a", "conv", (64, 64, 3, 3), 4), Weight("b", "linear", (10, 64), 4)), 1000)
WEIGHTS = 64 * 64 * 9 + 640


@pytest.mark.parametrize(
    ("steps", "low", "high"),
    [
        ([{"quantize.auto": {"target-bits": 4.0}}], 0.9 * (WEIGHTS / 2 + 1000), WEIGHTS / 2 + 1000),
        ([{"quantize.rtn": {"bits": 8}}], 0.9 * (WEIGHTS + 1000), WEIGHTS + 1000),
        ([{"quantize.int8-static": {"samples": 8}}], 0.95 * WEIGHTS, 1.2 * WEIGHTS + 2000),
        ([{"quantize.rtn": {"bits": 8, "include": ["a"]}}], 0, 0),
        ([{"quantize.adaround": {"bits": 4}}], 0, 0),
        # What is cut has a size that shows only then.
        ([{"prune.structured": {"target-macs": 0.5}}, {"quantize.auto": {"target-bits": 4.0}}], 0, 0),
    ],
)
def test_a_size_is_known_where_nothing_is_cut(steps: list[dict[str, Any]], low: float, high: float) -> None:
    assert low <= least_bytes(INVENTORY, steps) <= high
