"""NF4 against the library that it comes from."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compresskit.errors import InputError
from compresskit.facts import read_facts
from compresskit.facts.quantize import PackedFacts, QuantizeFacts
from compresskit.ops.packed.format import LINEAR
from compresskit.ops.packed.grid import Grid, dequantize, unpack
from compresskit.ops.packed.nf4 import NF4, nf4_grid
from compresskit.ops.quantize.select import Selection
from compresskit.ops.quantize.table import quantize_table
from compresskit.ops.quantize.weights import grid_of, quantize_module, replay

LEVELS = torch.tensor(NF4.levels)


def weight(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("shape", "block"), [((64, 256), 64), ((33, 640), 64), ((48, 128), 128), ((8, 16, 2, 2), 64)])
def test_codes_and_values_are_those_of_bitsandbytes(shape: tuple[int, ...], block: int, seed: int) -> None:
    theirs = pytest.importorskip("bitsandbytes").functional
    w = weight(shape, seed)
    w[1] = 0
    data, state = theirs.quantize_4bit(w, quant_type="nf4", blocksize=block)
    packed = quantize_table(w, nf4_grid(block))
    codes = torch.stack([data.flatten() >> 4, data.flatten() & 15], -1).flatten()
    assert torch.equal(state.code, LEVELS)
    assert torch.equal(unpack(packed.codes, 4, block).flatten(), codes)
    assert torch.equal(packed.scales.flatten(), state.absmax)
    assert torch.equal(dequantize(packed), theirs.dequantize_4bit(data, state))


def test_each_value_is_the_nearest_level() -> None:
    w = weight((5, 70))
    packed = quantize_table(w, nf4_grid())
    scale = packed.scales.repeat_interleave(64, 1)[:, :70]
    nearest = (w / scale).unsqueeze(-1).sub(LEVELS).abs().argmin(-1)
    codes = unpack(packed.codes, 4, 64).reshape(5, -1)[:, :70]
    assert torch.equal(LEVELS[codes.int()], LEVELS[nearest])
    assert (dequantize(packed) == 0).sum() == (codes == packed.grid.middle).sum()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_are_refused(bad: float) -> None:
    w = weight((4, 64))
    w[2, 3] = bad
    with pytest.raises(InputError, match="NaN or Inf"):
        quantize_table(w, nf4_grid())


def test_facts_rebuild_every_grid() -> None:
    module = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 8))
    facts, _ = quantize_module(module, Selection(4, 64, True, format=NF4), quantize_table, lambda *_: None)
    fresh = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 8))
    replay(fresh, read_facts(QuantizeFacts, facts))
    fresh.load_state_dict(module.state_dict())
    x = weight((3, 64))
    assert torch.equal(fresh(x), module(x))


def test_a_fact_from_before_there_were_kinds_is_linear() -> None:
    rest = {"kind": "Linear", "shape": [8, 8], "scales": "float16"}
    older = read_facts(PackedFacts, {**rest, "bits": 4, "group_size": 32, "symmetric": False})
    assert grid_of(older) == Grid(4, 32, False, LINEAR)
    nf4 = read_facts(PackedFacts, {**rest, "bits": 4, "group_size": 64, "symmetric": True, "grid": "nf4"})
    assert grid_of(nf4) == nf4_grid()
