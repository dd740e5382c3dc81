"""Sizes and break-even ranks by shapes alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compresskit.ops.estimates.modules import inventory_of, ranks_of
from compresskit.ops.estimates.ranks import break_even
from compresskit.ops.factorize.chain import Factorized
from compresskit.ops.packed.layout import Grid
from compresskit.ops.packed.modules import PackedLinear
from compresskit.ops.quantize.rtn import quantize_rtn

LAYERS = {
    "linear": nn.Linear(384, 1536),
    "wide": nn.Linear(2048, 40),
    "narrow": nn.Linear(16, 10),
    "point": nn.Conv2d(64, 128, 1),
    "window": nn.Conv2d(64, 64, 3),
    "flat": nn.Conv2d(32, 96, (1, 5)),
    "line": nn.Conv1d(48, 80, 7),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_rank_is_the_largest_multiple_that_saves_weights(name: str) -> None:
    layer = LAYERS[name]
    weights = layer.weight.numel()
    for kind, rank in break_even(tuple(layer.weight.shape)).items():
        ranks = range(8, min(weights, 2000), 8)

        def taken(r: int, kind: str = kind) -> int:
            made = Factorized(layer, kind, (r, r) if kind == "tucker" else (r,))
            return sum(p.numel() for p in made.parameters() if p.dim() > 1)

        full = min(layer.weight.shape[:2])
        saving = [r for r in ranks if (kind != "tucker" or r < full) and taken(r) < weights]
        assert min(rank, full - 8 if kind == "tucker" else rank) <= (max(saving, default=0)) <= rank or rank == 0
        assert (rank == 0) == (not saving)


def test_ranks_are_of_layers_that_factorize_takes() -> None:
    module = nn.ModuleDict({"a": nn.Linear(64, 64), "b": nn.Conv2d(64, 64, 3, groups=64), "c": nn.Embedding(99, 64)})
    assert ranks_of(module) == {"a": {"svd": 24}}


def test_a_shared_weight_counts_once_and_buffers_count() -> None:
    module = nn.ModuleDict({"words": nn.Embedding(100, 32), "head": nn.Linear(32, 100), "norm": nn.BatchNorm1d(32)})
    module["head"].weight = module["words"].weight
    found = inventory_of(module, {"words": 0, "head": 3200})
    (weight,) = found.weights
    assert (weight.kind, weight.shared, weight.macs, weight.bytes) == ("linear", True, 3200, 12800)
    assert found.rest == 4 * (100 + 4 * 32)  # the bias and the four vectors of the normalization


@pytest.mark.parametrize("grid", [Grid(4, 32), Grid(8, 128), Grid(4, 64, symmetric=True), Grid(3, 16), Grid(2, 0)])
def test_packed_bytes_are_those_of_the_packed_layer(grid: Grid) -> None:
    layer = nn.Linear(200, 24, bias=False)
    packed = PackedLinear(layer, quantize_rtn(layer.weight.detach(), grid))
    found = inventory_of(nn.Sequential(layer), {})
    size = found.packed({"0": grid}).bytes - found.packed({}).bytes
    operators = found.packed({"0": Grid(grid.bits, 0)}).bytes - found.packed({}).bytes
    whole = PackedLinear(layer, quantize_rtn(layer.weight.detach(), Grid(grid.bits, 0)))
    assert size - operators == packed.packed.nbytes() - whole.packed.nbytes()
    assert torch.equal(packed.packed.codes, packed.codes)
