"""What could work, read off what a model does on samples: each finding with the method that would make use of it.

Savings are given only where they were counted.
"""

from __future__ import annotations

import math
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
EVEN = 0.02
"""Relative change of the output by a move under which the model is taken to be invariant."""
_FLIPS = {"flip left-right", "flip up-down", "half turn"}
_GROUPS = {
    "d4": _FLIPS | {"quarter turn"},
    "c4": {"half turn", "quarter turn"},
    "d2": _FLIPS,
    "c2": {"half turn"},
    "flip": {"flip left-right"},
}
"""The moves of each group that are looked at, the largest group first."""
_SHOWN = 4
Found = Mapping[str, Any]
Reading = dict[str, Any]


def readings(found: Found) -> list[Reading]:
    """What could work.

    Args:
        found: As :func:`compresskit.ops.structure.look.structure` gives it, with the samples.

    Returns:
        Rows, those that save most first: ``finding``, a sentence; ``method``, as ``substitute.collapse``, and
        ``options`` of the command to try, both empty where there is none; and ``saves``: the share that the method
        saves by unit (``macs``, ``parameters``, or ``products``, with those of attention), empty where it isn't known.
    """
    counted = found["savings"]
    made = [
        _linear(found["blocks"]),
        _halves(found["halves"]),
        _still(found["blocks"]),
        _folded(counted["fold"]),
        _units(found["units"], counted["units"]),
        _sparse(found["units"]),
        _rank(found["blocks"]),
        _tokens(found["blocks"], counted["tokens"]),
        _attention(counted["attention"]),
        _alike(counted["tie"]),
        _symmetric(found["symmetry"]),
        _experts(found["experts"]),
    ]
    return sorted((reading for reading in made if reading is not None), key=_rank_of)


def _rank_of(reading: Reading) -> tuple[bool, float]:
    """Those with a method come first, by the most that they save."""
    return not reading["method"], -max(reading["saves"].values(), default=0.0)


def _reading(finding: str, method: str = "", *options: str, **saves: float) -> Reading:
    """A finding; the method is left out where this version has none of the name."""
    known = method in registry.rows()
    return {
        "finding": finding,
        "method": method if known else "",
        "options": list(options) if known else [],
        "saves": {unit: round(share, 4) for unit, share in saves.items()} if known else {},
    }


def _linear(blocks: list[Found]) -> Reading | None:
    ranked = sorted((b for b in blocks if b["r2"] is not None), key=lambda b: -b["r2"])
    good = [b for b in ranked if b["r2"] >= LINEAR]
    if not ranked:
        return None
    if not good:
        best = ranked[0]
        return _reading(f"no block is near to one linear layer: the best is {best['name']} with R² {best['r2']:.2f}")
    return _stood_in(good, max(1, min(len(good), len(ranked) // 3)), _blocks(len(good)))


def _halves(halves: list[Found]) -> Reading | None:
    good = sorted((h for h in halves if (h["r2"] or 0) >= LINEAR), key=lambda h: -h["r2"])
    if not good:
        return None
    many = "1 half of a block" if len(good) == 1 else f"{len(good)} halves of blocks"
    return _stood_in(good, max(1, min(len(good), len(halves) // 3)), many, "--parts", "halves")


def _stood_in(good: list[Found], count: int, many: str, *options: str) -> Reading:
    """Parts that a layer explains, the best first, and the cheapest kind of layer that explains the first of them."""
    chosen = good[:count]
    kinds = [kind for kind in chosen[0]["by"] if all(part["by"].get(kind, 0) >= LINEAR for part in chosen)]
    saves = {kind: sum(part["saves"][kind] for part in chosen) for kind in kinds}
    kind = max(saves, key=lambda k: saves[k], default="")
    names = _some([f"{part['name']} ({part['r2']:.2f})" for part in good])
    shape = ("--stand-in", kind) if kind in ("1x1", "3x3") else ()
    told = {"macs": saves[kind]} if kind else {}
    found = f"one linear layer explains most of {many}: {names}"
    return _reading(found, "substitute.collapse", "--count", str(count), *shape, *options, **told)


def _still(blocks: list[Found]) -> Reading | None:
    still = sorted((b for b in blocks if (b.get("cosine") or 0) >= STILL), key=lambda b: -b["cosine"])
    if not still:
        return None
    count = max(1, len(still) // 3)
    names = _some([f"{b['name']} ({b['cosine']:.3f})" for b in still])
    found = f"the output of {_blocks(len(still))} is nearly the input (cosine): {names}"
    gone = sum(b["parameters"] for b in still[:count])
    return _reading(found, "prune.depth", "--drop", str(count), parameters=gone)


def _folded(counted: Found | None) -> Reading | None:
    if counted is None:
        return None
    return _reading(
        f"{counted['layers']} layers can be merged exactly into others; engines merge batch normalization themselves",
        "substitute.fold", macs=counted["macs"], parameters=counted["parameters"],
    )  # fmt: skip


def _units(units: Found, counted: Found | None) -> Reading | None:
    if not units["never"] and not units["always"]:
        return None
    rows = [row for row in units["layers"] if row["never"] or row["always"]]
    where = _some([f"{row['name']} ({row['never']} + {row['always']})" for row in rows])
    found = (
        f"{units['never']} of {units['units']} units were never on and {units['always']} always on in "
        f"{units['samples']} samples{_held(units)}: {where}"
    )
    if counted is None:
        return _reading(found)
    gone = f"{counted['never']} can be removed and {counted['always']} led past their ReLU"
    return _reading(
        f"{found}; {gone}", "substitute.fold", "--units", macs=counted["macs"], parameters=counted["parameters"]
    )


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
        f"{100 * best['concentration']:.0f} % of the units hold 90 % of a place's squares"
    )


def _rank(blocks: list[Found]) -> Reading | None:
    low = [b for b in blocks if b.get("rank99") and b["rank99"] <= LOW_RANK * b["width"]]
    if not low:
        return None
    names = _some([f"{b['name']} ({b['rank99']} of {b['width']})" for b in low])
    return _reading(f"few directions hold 99 % of the variance: {names}", "factorize.auto", "--budget", "0.8")


def _tokens(blocks: list[Found], counted: Found | None) -> Reading | None:
    ends = [b for b in blocks if b.get("places") == "tokens" and b.get("twins", 0) >= 0.5]
    if not ends:
        return None
    first = ends[0]
    found = (
        f"tokens repeat each other from {first['name']} on: {100 * first['twins']:.0f} % have another one with a "
        "cosine of 0.9 or more in their sample"
    )
    if counted is None or counted["products"] <= 0:
        return _reading(found)
    return _reading(found, "substitute.tokens", *counted["options"], products=counted["products"])


def _attention(counted: Found | None) -> Reading | None:
    """Attention in a window, if these samples are long enough."""
    if counted is None:
        return None
    tokens, window = counted["tokens"], counted["window"]
    if counted["products"] <= 0:
        return _reading(
            f"attention in a window of {window} tokens takes fewer products from {counted['from']} tokens on: these "
            f"samples have {tokens}"
        )
    return _reading(
        f"with {tokens} tokens a sample, attention in a window takes fewer products than attention to all",
        "substitute.attention", "--window", str(window), products=counted["products"],
    )  # fmt: skip


def _alike(counted: Found | None) -> Reading | None:
    if counted is None:
        return None
    layers = "1 layer has" if counted["layers"] == 1 else f"{counted['layers']} layers have"
    return _reading(
        f"{layers} nearly the weights of an earlier one; tied, they are as fast as before", "share.tie", "--alike",
        f"{counted['least']:g}", parameters=counted["parameters"],
    )  # fmt: skip


def _symmetric(moves: list[Found]) -> Reading | None:
    even = {row["move"]: row["error"] for row in moves if row["error"] <= EVEN}
    if not even:
        return None
    found = f"the output stays nearly the same under {_some(list(even))}"
    group = next((name for name, needed in _GROUPS.items() if needed <= even.keys()), None)
    if group is None or not max(even[move] for move in _GROUPS[group]):
        return _reading(found)
    return _reading(f"{found}; made exact, it saves nothing", "share.symmetrize", "--group", group)


def _experts(mixtures: list[Found]) -> Reading | None:
    idle = [row for row in mixtures if row["effective"] <= 0.75 * row["experts"]]
    if not idle:
        return None
    worst = min(idle, key=lambda r: r["effective"] / r["experts"])
    keep = max(math.ceil(row["effective"]) / row["experts"] for row in mixtures)
    if keep >= 1:
        return _reading(_uneven(idle, mixtures, worst))
    gone = (1 - keep) * sum(row["parameters"] for row in mixtures)
    return _reading(_uneven(idle, mixtures, worst), "route.experts", "--keep", f"{keep:.2g}", parameters=gone)


def _uneven(idle: list[Found], mixtures: list[Found], worst: Found) -> str:
    return (
        f"experts are used unevenly in {len(idle)} of {len(mixtures)} mixtures: {worst['name']} works as with "
        f"{worst['effective']:.1f} of {worst['experts']}"
    )


def _blocks(count: int) -> str:
    return "1 block" if count == 1 else f"{count} blocks"


def _some(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    shown, more = ", ".join(names[:_SHOWN]), len(names) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
