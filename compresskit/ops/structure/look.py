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
from compresskit.ops.structure.streams import streams
from compresskit.ops.structure.symmetry import symmetry
from compresskit.ops.structure.units import units
from compresskit.ops.substitute.sites import Places, find

Progress = Callable[[str, int, int], None]
_MOVED = 4
"""Batches of pictures that are flipped and turned."""


@torch.no_grad()
def structure(module: nn.Module, data: CalibrationData, *, seed: int, progress: Progress) -> dict[str, Any]:
    """Look at a model on samples.

    Args:
        module: In eval mode; not changed.
        data: With batches.
        seed: Of what is drawn: places on lines.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        ``blocks`` (rows with ``name``, ``type``, ``r2``, ``by``, and what
        :func:`~compresskit.ops.structure.streams.streams` tells), ``halves`` (``name``, ``r2``), ``skipped`` (name to
        why a block has no ``r2``), ``alike``, ``units``, ``regions``, ``symmetry`` and ``experts``.
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
            {"name": n, "type": type(module.get_submodule(n)).__name__, **_r2(explained, n), **told[n]} for n in names
        ],
        "halves": [{"name": site.name, **_r2(explained, site.name)} for site in halves.sites],
        "skipped": whole.skipped,
        "alike": alike,
        "units": units(module, data, progress),
        "regions": regions(module, data, macs, seed, progress),
        "symmetry": symmetry(module, data, _MOVED),
        "experts": experts(module, data, progress),
    }


def _places(module: nn.Module, data: CalibrationData, *, halves: int) -> Places:
    """The blocks that a layer could stand in for, or the halves of blocks."""
    return find(module, data, ShrinkSettings(), KINDS, halves=bool(halves))


def _r2(explained: Mapping[str, Mapping[Fitted, float]], name: str) -> dict[str, Any]:
    """What one layer explains, by the best kind, and by each."""
    by = {kind: round(r2, 4) for kind, r2 in explained.get(name, {}).items()}
    return {"r2": max(by.values(), default=None), "by": by}
