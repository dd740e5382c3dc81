"""GPTQ: equal to rounding where inputs say nothing, better where they do, and stored as it was computed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from compresskit.errors import InputError
from compresskit.ops.calibration.gram import corrected, inverse_factor
from compresskit.ops.calibration.moments import Collector, Moments, output_error
from compresskit.ops.packed.grid import Grid, Packed, dequantize
from compresskit.ops.quantize.gptq import quantize_gptq
from compresskit.ops.quantize.refine import refine
from compresskit.ops.quantize.rtn import quantize_rtn


def moments_of(columns: int, *, parts: int = 1, count: int = 600, rank: int | None = None) -> Moments:
    """Of inputs that lie along a few directions, some columns far larger than others."""
    generator = torch.Generator().manual_seed(columns)
    sizes = torch.logspace(-1, 0.5, columns)[torch.randperm(columns, generator=generator)]
    mix = torch.randn(parts, rank or columns, columns, generator=generator) * sizes
    x = torch.randn(parts, count, rank or columns, generator=generator) @ mix + 0.3
    return Moments(x.mT @ x / count, x.mean(1), count)


def weight_of(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def same(a: Packed, b: Packed) -> bool:
    zeros = a.zeros is b.zeros if a.zeros is None or b.zeros is None else torch.equal(a.zeros, b.zeros)
    return torch.equal(a.codes, b.codes) and torch.equal(a.scales, b.scales) and zeros


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("columns", "group"), [(96, 32), (80, 32), (300, 0), (320, 256)])
def test_with_a_gram_of_the_identity_it_is_rounding(
    bits: int, symmetric: bool, columns: int, group: int, order: bool
) -> None:
    weight, grid = weight_of(24, columns), Grid(bits, group, symmetric)
    moments = Moments(3.0 * torch.eye(columns).unsqueeze(0), torch.zeros(1, columns), 10)
    assert same(quantize_gptq(weight, grid, moments, order=order), quantize_rtn(weight, grid))


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("bits", [3, 4])
def test_the_output_error_is_lower_than_that_of_rounding(bits: int, order: bool) -> None:
    weight, grid, moments = weight_of(48, 128), Grid(bits, 32), moments_of(128)
    found = quantize_gptq(weight, grid, moments, order=order)
    plain, ours = (
        float(output_error(weight, dequantize(p), moments).sum()) for p in (quantize_rtn(weight, grid), found)
    )
    assert ours < 0.75 * plain


@pytest.mark.parametrize("at_once", [1, 5, 1000])
@pytest.mark.parametrize("rounds", [1, 3])
def test_refining_lowers_the_error_further(rounds: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compresskit.ops.quantize.scales._ELEMENTS", at_once * 3 * 3)  # rows of three groups
    weight, grid, moments = weight_of(48, 80), Grid(4, 32), moments_of(80)
    before = quantize_gptq(weight, grid, moments)
    after = refine(weight, before, moments, rounds=rounds)
    errors = [float(output_error(weight, dequantize(p), moments).sum()) for p in (before, after)]
    assert errors[1] < errors[0]
    assert after.grid == grid and after.zeros is not None and torch.equal(after.zeros, before.zeros)


def test_refining_leaves_what_is_exact_already() -> None:
    grid, moments = Grid(4, 16), moments_of(32)
    packed = quantize_rtn(weight_of(8, 32), grid)
    assert same(refine(dequantize(packed), packed, moments), packed)


def test_a_singular_gram_and_dead_columns_are_damped() -> None:
    weight, moments = weight_of(16, 64), moments_of(64, rank=5)
    gram = moments.gram.clone()
    gram[:, 10], gram[:, :, 10] = 0, 0
    found = quantize_gptq(weight, Grid(4, 32), replace(moments, gram=gram))
    error = (dequantize(found) - weight)[:, 10].abs()
    assert error.max() < found.scales.float().max()  # rounded for itself, whatever the others do
    assert dequantize(found).isfinite().all()


def test_damping_grows_until_the_gram_can_be_factored() -> None:
    gram = torch.full((1, 8, 8), 1.0)
    gram[0, 0, 0] = 1 - 1e-3  # not positive: rounding makes such
    assert inverse_factor(gram, 1e-6).isfinite().all()
    with pytest.raises(InputError, match="factored"):
        inverse_factor(torch.tensor([[[1.0, 1e6], [1e6, 1.0]]]), 0.01)


def test_what_is_not_finite_is_refused() -> None:
    weight, moments = weight_of(8, 32), moments_of(32)
    bad = weight.clone()
    bad[3, 3] = torch.nan
    with pytest.raises(InputError, match="weight holds NaN"):
        quantize_gptq(bad, Grid(4, 32), moments)
    with pytest.raises(InputError, match="inputs hold NaN"):
        quantize_gptq(weight, Grid(4, 32), replace(moments, gram=moments.gram * torch.nan))


def test_groups_of_a_convolution_are_quantized_for_themselves() -> None:
    conv = nn.Conv2d(8, 12, 3, groups=4)
    x = torch.randn(6, 8, 9, 9, generator=torch.Generator().manual_seed(0))
    x = nn.functional.avg_pool2d(x, 3, stride=1, padding=1)  # neighbours are alike
    collector = Collector(conv)
    collector.add(x)
    moments = collector.moments()
    assert moments is not None
    weight, grid = conv.weight.detach(), Grid(4, 0)
    whole = quantize_gptq(weight, grid, moments)
    for part in range(4):
        own = Moments(moments.gram[part : part + 1], moments.mean[part : part + 1], moments.count)
        alone = quantize_gptq(weight[3 * part : 3 * part + 3], grid, own)
        assert torch.equal(whole.codes[3 * part : 3 * part + 3], alone.codes)
    errors = [float(output_error(weight, dequantize(p), moments).sum()) for p in (whole, quantize_rtn(weight, grid))]
    assert errors[0] < errors[1]


def test_the_correction_gives_back_the_original_output() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20000, 16, generator=generator)
    shift = torch.eye(16) + 0.1 * torch.randn(16, 16, generator=generator)
    original = x @ shift.T
    moments = Moments((x.T @ x / 20000)[None], x.mean(0)[None], 20000, ((original - x).T @ x / 20000)[None])
    weight = weight_of(8, 16)
    moved = corrected(weight, moments, 1.0, 1e-4)
    before, after = ((x @ w.T - original @ weight.T).square().mean() for w in (weight, moved))
    assert after < 0.01 * before
    assert corrected(weight, moments, 0.0, 0.01) is weight
    assert corrected(weight, replace(moments, cross=None), 1.0, 0.01) is weight


def test_a_group_size_that_does_not_divide_the_columns() -> None:
    weight, moments = weight_of(16, 50), moments_of(50)
    found = quantize_gptq(weight, Grid(4, 16), moments)
    assert dequantize(found).shape == weight.shape
    errors = [
        float(output_error(weight, dequantize(p), moments).sum()) for p in (found, quantize_rtn(weight, Grid(4, 16)))
    ]
    assert errors[0] < errors[1]
