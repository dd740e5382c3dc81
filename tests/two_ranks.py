"""Run in several processes by the test of ranks: each prints what it computed, and what it got."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from compresskit import ranks as processes
from compresskit.ranks import Part, joined

COSTS = {"a": 1, "b": 3, "c": 1, "d": 1, "e": 9}
"""With two processes: a, c, d and e for the first, b for the second; with three, c and e for the third."""


def layer(name: str) -> Part:
    """A layer whose every value tells which it is; one tensor has no element, one is not contiguous, two are one."""
    number = list(COSTS).index(name)
    x = torch.arange(6.0).reshape(2, 3) + number
    tensors = {"x.half": x.half().t(), "x.none": torch.empty(0, dtype=torch.uint8), "x.one": x, "y.one": x}
    return {"name": name, "sqnr": 0.1 * number}, tensors


def told(part: Part) -> Any:
    facts, tensors = part
    return facts, {name: (str(t.dtype), t.tolist()) for name, t in tensors.items()}


def everything(fails: str = "") -> dict[str, Any]:
    """What one process has of both exchanges."""
    made: list[str] = []
    taken: list[Any] = []

    def make(name: str) -> Part:
        if name == fails:
            raise ValueError("as asked")
        made.append(name)
        return layer(name)

    with joined() as ranks:
        collected = [(name, told(part)) for name, part in ranks.collected(COSTS, make)]
        computed, made[:] = made[:], []
        ranks.shared(COSTS, make, lambda part: taken.append(told(part)))
    return {"rank": ranks.rank, "computed": computed, "collected": collected, "made": made, "taken": taken}


if __name__ == "__main__":
    processes.GRACE_S = 0.0  # no launcher ends those that wait
    print(json.dumps(everything(*sys.argv[1:])))
