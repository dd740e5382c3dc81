"""Low-rank repair: the best term in the inputs' own space."""

from __future__ import annotations

import pytest
import torch

from compresskit.ops.calibration.moments import Moments, output_error
from compresskit.ops.packed.grid import Grid, dequantize
from compresskit.ops.quantize.eora import low_rank, repaired, term
from compresskit.ops.quantize.rtn import quantize_rtn


def case() -> tuple[torch.Tensor, Moments]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 64, generator=generator) * torch.logspace(-1, 1, 64)
    weight = torch.randn(48, 64, generator=generator)
    return weight, Moments((x.T @ x / 500)[None], x.mean(0)[None], 500)


def test_a_full_rank_term_repairs_everything_and_none_is_worse_than_a_lower_one() -> None:
    weight, moments = case()
    error = weight - dequantize(quantize_rtn(weight, Grid(3, 32)))
    for gram in (None, moments.gram[0]):
        assert torch.allclose(term(low_rank(error, 48, gram)), error, atol=5e-3)
    left = [
        float(output_error(error, term(low_rank(error, rank, moments.gram[0])), moments).sum()) for rank in (4, 8, 16)
    ]
    assert left[0] > left[1] > left[2]


def test_whitening_repairs_more_of_the_output_than_plain_svd() -> None:
    weight, moments = case()
    error = weight - dequantize(quantize_rtn(weight, Grid(3, 32)))
    plain, white = (
        float(output_error(error, term(low_rank(error, 8, gram)), moments).sum()) for gram in (None, moments.gram[0])
    )
    assert white < 0.7 * plain


@pytest.mark.parametrize("data", [False, True])
def test_codes_and_term_in_turns(data: bool) -> None:
    weight, moments = case()
    grid = Grid(3, 32)
    packed, repair = repaired(weight, 8, moments if data else None, lambda part: quantize_rtn(part, grid))
    assert repair[0].shape == (8, 64) and repair[1].shape == (48, 8)
    assert {part.dtype for part in repair} == {torch.float16}
    both = dequantize(packed) + term(repair)
    plain = dequantize(quantize_rtn(weight, grid))
    assert output_error(weight, both, moments).sum() < output_error(weight, plain, moments).sum()
