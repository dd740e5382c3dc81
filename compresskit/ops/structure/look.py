"""All that is looked at on real samples, as JSON data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from compresskit.facts.substitute import Fitted
from compresskit.ops.calibration.trace import chain, trace
from compresskit.ops.macs import count_macs
from compresskit.ops.shrinking import CalibrationData, ShrinkSettings
from compresskit.ops.structure.experts import experts
from compresskit.ops.structure.linearity import KINDS, linearity
from compresskit.ops.structure.regions import regions
from compresskit.ops.structure.savings import Inputs, savings
from compresskit.ops.structure.streams import streams
from compresskit.ops.structure.symmetry import symmetry
from compresskit.ops.structure.units import units
from compresskit.ops.substitute.sites import Places, find

Progress = Callable[[str, int, int], None]
_NONE = Inputs(texts=False, free=False)
_MOVED = 4
"""Batches of pictures that are flipped and turned."""


@torch.no_grad()
def structure(
    module: nn.Module, data: CalibrationData, *, seed: int, progress: Progress, inputs: Inputs = _NONE
) -> dict[str, Any]:
    """Look at a model on samples.

    Args:
        module: In eval mode; not changed.
        data: With batches.
        seed: Of what is drawn: places on lines.
        progress: Called as ``progress(what, done, total)``.
        inputs: What the model takes.

    Returns:
        ``blocks`` (rows with ``name``, ``type``, ``r2``, ``by``, the block's shares of the model's ``macs`` and
        ``parameters``, by kind of layer the share of the macs that it ``saves`` in its place, and what
        :func:`~compresskit.ops.structure.streams.streams` tells), ``halves`` (``name``, ``r2``, ``macs``, ``saves``),
        ``skipped`` (name to why a block has no ``r2``), ``alike``, ``units``, ``regions``, ``symmetry``, ``experts``
        and ``savings`` (:func:`~compresskit.ops.structure.savings.savings`).
    """
    found = trace(module, partial(data.run, module))
    names = [n for n in chain(module, found) if any(True for _ in module.get_submodule(n).children())]
    whole, halves = (_places(module, data, halves=halves) if names else Places([], {}, 0, found) for halves in (0, 1))
    sites = [*whole.sites, *halves.sites]
    explained = linearity(module, sites, data, progress) if sites else {}
    told, alike = streams(module, {n: found.once()[n].first or 0 for n in names}, data, progress)
    macs = sum(count_macs(module, data.example).values()) // len(next(iter(data.example.values())))
    return {
        "blocks": [
            {
                "name": n,
                "type": type(module.get_submodule(n)).__name__,
                **_r2(explained, n),
                **_costs(whole, n),
                "parameters": _parameters(module, n),
                **told[n],
            }
            for n in names
        ],
        "halves": [
            {"name": site.name, **_r2(explained, site.name), **_costs(halves, site.name)} for site in halves.sites
        ],
        "skipped": whole.skipped,
        "alike": alike,
        "units": units(module, data, progress),
        "regions": regions(module, data, macs, seed, progress),
        "symmetry": symmetry(module, data, _MOVED),
        "experts": [row | {"parameters": _parameters(module, row["name"])} for row in experts(module, data, progress)],
        "savings": savings(module, data, inputs, seed, progress),
    }


def _places(module: nn.Module, data: CalibrationData, *, halves: int) -> Places:
    """The blocks that a layer could stand in for, or the halves of blocks."""
    return find(module, data, ShrinkSettings(), KINDS, halves=bool(halves))


def _costs(places: Places, name: str) -> dict[str, Any]:
    """What a block costs of the model's multiply-accumulates, and what a layer in its place would save of them."""
    site = next((site for site in places.sites if site.name == name), None)
    if site is None:
        return {}
    total = max(1, places.macs)
    saves = {kind: round((site.macs - cost) / total, 4) for kind, cost in site.costs.items()}
    return {"macs": round(site.macs / total, 4), "saves": saves}


def _parameters(module: nn.Module, name: str) -> float:
    """The share of a model's parameters that a part of it has."""
    own = sum(p.numel() for p in module.get_submodule(name).parameters())
    return round(own / max(1, sum(p.numel() for p in module.parameters())), 4)


def _r2(explained: Mapping[str, Mapping[Fitted, float]], name: str) -> dict[str, Any]:
    """What one layer explains, by the best kind, and by each."""
    by = {kind: round(r2, 4) for kind, r2 in explained.get(name, {}).items()}
    return {"r2": max(by.values(), default=None), "by": by}
