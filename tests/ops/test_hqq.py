"""HQQ: no data, robust to outliers, integers as zero points."""

from __future__ import annotations

import pytest
import torch

from compresskit.errors import InputError
from compresskit.ops.packed.grid import Grid, dequantize
from compresskit.ops.quantize.hqq import quantize_hqq
from compresskit.ops.quantize.rtn import quantize_rtn


def p_norm(weight: torch.Tensor, found: torch.Tensor) -> float:
    return float((weight - found).abs().pow(0.7).sum())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_its_own_norm_is_lower_than_that_of_the_full_range(bits: int, symmetric: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 128, generator=generator)
    weight[:, ::50] *= 8  # outliers
    grid = Grid(bits, 64, symmetric)
    ours, plain = quantize_hqq(weight, grid), quantize_rtn(weight, grid, clip=False)
    assert p_norm(weight, dequantize(ours)) < 0.95 * p_norm(weight, dequantize(plain))
    assert ours.scales.dtype == torch.float16 and ours.shape == (32, 128)


def test_rows_in_blocks_give_what_they_give_at_once() -> None:
    weight = torch.randn(3000, 512, generator=torch.Generator().manual_seed(0))
    whole, part = quantize_hqq(weight, Grid(4, 32)), quantize_hqq(weight[2900:], Grid(4, 32))
    assert torch.equal(whole.codes[2900:], part.codes)


def test_weights_that_are_levels_already_stay() -> None:
    weight = torch.randint(0, 16, (8, 64), generator=torch.Generator().manual_seed(0)).float() - 5
    weight[:, 0], weight[:, 1], weight[:, 32], weight[:, 33] = -5, 10, -5, 10
    assert torch.equal(dequantize(quantize_hqq(weight, Grid(4, 32))), weight)


def test_zeros_and_columns_that_do_not_divide() -> None:
    weight = torch.zeros(4, 40)
    assert torch.equal(dequantize(quantize_hqq(weight, Grid(4, 16))), weight)


def test_nan_is_refused() -> None:
    with pytest.raises(InputError, match="NaN"):
        quantize_hqq(torch.full((4, 32), torch.nan), Grid(4, 32))
