"""What could work, read off what a model does on samples: each finding with the method that would make use of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compresskit import registry

LINEAR = 0.85
"""R² from which on a block is worth trying to be replaced by one layer."""
STILL = 0.95
"""Cosine of a block's output and input from which on it changes little."""
SPARSE, FEW = 0.85, 0.25
"""Share of zeros, or share of units that hold 90 % of a place's squares, from which on experts are worth trying."""
LOW_RANK = 0.5
"""Share of a block's width that holds 99 % of the variance."""
ALIKE = 0.95
"""Cosine of the weights of two blocks that could be one."""
EVEN = 0.02
"""Relative change of the output by a move under which the model is taken to be invariant."""
_SHOWN = 4
Found = Mapping[str, Any]
Reading = dict[str, Any]


def readings(found: Found) -> list[Reading]:
    """What could work.

    Args:
        found: As :func:`compresskit.ops.structure.look.structure` gives it, with the samples.

    Returns:
        Rows: ``finding``, a sentence; ``method``, as ``substitute.collapse``, and ``options`` of the command to try,
        both empty where there is none.
    """
    made = [
        _linear(found["blocks"]),
        _still(found["blocks"]),
        _never(found["units"]),
        _always(found["units"]),
        _sparse(found["units"]),
        _rank(found["blocks"]),
        _tokens(found["blocks"]),
        _alike(found["alike"]),
        _symmetric(found["symmetry"]),
        _experts(found["experts"]),
    ]
    return [reading for reading in made if reading is not None]


def _reading(finding: str, method: str = "", *options: str) -> Reading:
    """A finding; the method is left out where this version has none of the name."""
    known = method in registry.rows()
    return {"finding": finding, "method": method if known else "", "options": list(options) if known else []}


def _linear(blocks: list[Found]) -> Reading | None:
    ranked = sorted((b for b in blocks if b["r2"] is not None), key=lambda b: -b["r2"])
    good = [b for b in ranked if b["r2"] >= LINEAR]
    if not ranked:
        return None
    if not good:
        best = ranked[0]
        return _reading(f"no block is near to one linear layer: the best is {best['name']} with R² {best['r2']:.2f}")
    names = _some([f"{b['name']} ({b['r2']:.2f})" for b in good])
    count = max(1, min(len(good), len(ranked) // 3))
    return _reading(
        f"one linear layer explains most of {_blocks(len(good))}: {names}", "substitute.collapse", "--count", str(count)
    )


def _still(blocks: list[Found]) -> Reading | None:
    still = [b for b in blocks if (b.get("cosine") or 0) >= STILL]
    if not still:
        return None
    names = _some([f"{b['name']} ({b['cosine']:.3f})" for b in still])
    found = f"the output of {_blocks(len(still))} is nearly the input (cosine): {names}"
    return _reading(found, "prune.depth", "--drop", str(max(1, len(still) // 3)))


def _never(units: Found) -> Reading | None:
    if not units["never"]:
        return None
    where = [f"{row['name']} ({row['never']})" for row in units["layers"] if row["never"]]
    text = f"{units['never']} of {units['units']} units were never on in {units['samples']} samples{_held(units)}"
    return _reading(f"{text}: {_some(where)}", "prune.structured", "--target-macs", "0.9")


def _always(units: Found) -> Reading | None:
    if not units["always"]:
        return None
    whole = [row["name"] for row in units["layers"] if row["always"] and row["always"] == row["units"]]
    text = f"{units['always']} of {units['units']} units were always on: their ReLU does nothing"
    return _reading(f"{text}; of {_some(whole)} all were" if whole else text)


def _held(units: Found) -> str:
    held = units.get("held_out")
    if held is None:
        return ""
    bound = f"at most {100 * held['bound']:.2g} % of samples with 95 % confidence"
    return f"; in {held['deviating']} of {held['samples']} others any of them behaves otherwise ({bound})"


def _sparse(units: Found) -> Reading | None:
    rows = [
        r for r in units["layers"] if r["kind"] == "neurons" and (r["sparsity"] >= SPARSE or r["concentration"] <= FEW)
    ]
    if not rows:
        return None
    best = min(rows, key=lambda r: r["concentration"])
    return _reading(
        f"activations are sparse in {len(rows)} of {len(units['layers'])} layers: in {best['name']} "
        f"{100 * best['concentration']:.0f} % of the units hold 90 % of a place's squares",
        "route.experts",
    )


def _rank(blocks: list[Found]) -> Reading | None:
    low = [b for b in blocks if b.get("rank99") and b["rank99"] <= LOW_RANK * b["width"]]
    if not low:
        return None
    names = _some([f"{b['name']} ({b['rank99']} of {b['width']})" for b in low])
    return _reading(f"few directions hold 99 % of the variance: {names}", "factorize.auto")


def _tokens(blocks: list[Found]) -> Reading | None:
    ends = [b for b in blocks if b.get("places") == "tokens" and b.get("twins", 0) >= 0.5]
    if not ends:
        return None
    first = ends[0]
    return _reading(
        f"tokens repeat each other from {first['name']} on: {100 * first['twins']:.0f} % have another one with a "
        "cosine of 0.9 or more in their sample"
    )


def _alike(pairs: list[Found]) -> Reading | None:
    same = [pair for pair in pairs if (pair["weights"] or 0) >= ALIKE]
    if same:
        names = _some([" and ".join(pair["blocks"]) for pair in same])
        return _reading(f"blocks have nearly the same weights: {names}", "share.tie")
    return None


def _symmetric(moves: list[Found]) -> Reading | None:
    even = [row["move"] for row in moves if row["error"] <= EVEN]
    if not even:
        return None
    return _reading(f"the output stays the same under {_some(even)}", "share.symmetrize")


def _experts(mixtures: list[Found]) -> Reading | None:
    idle = [row for row in mixtures if row["effective"] <= 0.75 * row["experts"]]
    if not idle:
        return None
    worst = min(idle, key=lambda r: r["effective"] / r["experts"])
    return _reading(
        f"experts are used unevenly in {len(idle)} of {len(mixtures)} mixtures: {worst['name']} works as with "
        f"{worst['effective']:.1f} of {worst['experts']}",
        "route.experts",
    )


def _blocks(count: int) -> str:
    return "1 block" if count == 1 else f"{count} blocks"


def _some(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    shown, more = ", ".join(names[:_SHOWN]), len(names) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
