"""Packing and rounding: identities and bounds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compresskit.errors import InputError
from compresskit.ops.packed import grid as grids
from compresskit.ops.packed.formats import FORMATS
from compresskit.ops.packed.grid import BITS, Grid, dequantize, pack, packed_bytes, sqnr, unpack
from compresskit.ops.quantize.rtn import quantize_rtn

SHAPES = [(7, 33), (16, 64), (3, 5, 3, 3), (1, 1), (5, 128), (4, 3, 2), (2, 3, 2, 2, 2)]
GRIDS = [Grid(bits, group, symmetric) for bits in BITS for group in (0, 16, 32, 128) for symmetric in (False, True)]


def weight(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.05


@given(st.sampled_from(BITS), st.integers(1, 70), st.integers(0, 10**6))
@settings(max_examples=120, deadline=None)
def test_unpack_undoes_pack(bits: int, count: int, seed: int) -> None:
    codes = torch.randint(0, 1 << bits, (3, count), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (3, packed_bytes(count, bits))
    assert 0 <= packed_bytes(count, bits) - -(-count * bits // 8) <= (bits == 3)
    assert torch.equal(unpack(packed, bits, count), codes)


def test_the_even_column_is_in_the_low_nibble() -> None:
    assert pack(torch.tensor([[1, 2, 3]], dtype=torch.uint8), 4).tolist() == [[0x21, 0x03]]


def test_three_bits_are_a_plane_of_two_and_a_plane_of_one() -> None:
    codes = torch.arange(32, dtype=torch.uint8).remainder(8).reshape(1, 32)
    packed = pack(codes, 3)
    assert packed.shape == (1, 12)
    assert torch.equal(packed, torch.cat([pack(codes % 4, 2), pack(codes // 4, 1)], 1))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", [0, 16, 32])
def test_the_layout_takes_no_more_than_the_bits_say(bits: int, group: int) -> None:
    packed = quantize_rtn(weight((6, 96)), Grid(bits, group))
    assert packed.codes.numel() == 6 * 96 * bits // 8


@pytest.mark.parametrize(("bits", "kind", "symmetric"), [(5, "linear", True), (3, "nf4", True), (4, "nf4", False)])
def test_grids_that_mean_nothing_are_refused(bits: int, kind: str, symmetric: bool) -> None:
    with pytest.raises(ValueError, match="no such grid"):
        Grid(bits, 32, symmetric, FORMATS[kind])


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("clip", [False, True])
def test_every_weight_is_near_its_code(shape: tuple[int, ...], grid: Grid, clip: bool) -> None:
    w = weight(shape)
    packed = quantize_rtn(w, grid, clip=clip)
    back = dequantize(packed)
    assert back.shape == w.shape
    assert packed.codes.dtype is torch.uint8
    assert (packed.zeros is None) == grid.symmetric
    if not clip:
        # Half a step, plus what float16 rounds off the scale at the far end of the range.
        columns = w.reshape(shape[0], -1).shape[1]
        _, size, _ = grid.layout(columns)
        step = packed.scales.float().repeat_interleave(size, 1)[:, :columns].reshape(shape)
        assert ((back - w).abs() <= step * (0.501 + grid.largest * 2**-11)).all()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_clipping_never_raises_the_error(grid: Grid, seed: int) -> None:
    w = weight((24, 96), seed) ** 3 * 100
    errors = [
        (dequantize(quantize_rtn(w, grid, clip=clip)) - w).reshape(24, -1).square().sum() for clip in (False, True)
    ]
    assert errors[1] <= errors[0] * (1 + 1e-5)


def test_clipping_pays_where_a_few_outliers_set_the_range() -> None:
    w = weight((64, 1024))
    plain, clipped = (dequantize(quantize_rtn(w, Grid(4, 0), clip=c)) - w for c in (False, True))
    assert clipped.square().sum() < 0.8 * plain.square().sum()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_weights_on_the_grid_are_kept_to_the_bit(grid: Grid) -> None:
    w = dequantize(quantize_rtn(weight((8, 64)), grid, clip=False))
    again = quantize_rtn(w, grid, clip=True)
    assert torch.allclose(dequantize(again), w, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-30, 7e4, 1e30])
@pytest.mark.parametrize("symmetric", [False, True])
def test_constant_weights(value: float, symmetric: bool) -> None:
    back = dequantize(quantize_rtn(torch.full((4, 32), value), Grid(4, 32, symmetric)))
    assert torch.allclose(back, torch.full((4, 32), value), rtol=0.07 if symmetric else 2e-3)


def test_scales_that_half_precision_cannot_hold_are_stored_in_single() -> None:
    assert quantize_rtn(weight((4, 32)), Grid(4, 32)).scales.dtype is torch.float16
    assert quantize_rtn(weight((4, 32)) * 1e-6, Grid(4, 32)).scales.dtype is torch.float32
    assert quantize_rtn(weight((4, 32)) * 1e8, Grid(4, 32)).scales.dtype is torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_give_the_codes_of_their_float32_values(dtype: torch.dtype) -> None:
    w = weight((8, 64)).to(dtype)
    a, b = quantize_rtn(w, Grid(4, 32)), quantize_rtn(w.float(), Grid(4, 32))
    assert torch.equal(a.codes, b.codes)
    assert torch.equal(a.scales, b.scales)


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    from compresskit.ops.quantize import rtn

    w = weight((50, 96))
    whole = quantize_rtn(w, Grid(4, 32))
    monkeypatch.setattr(rtn, "_BLOCK", 200)
    parts = quantize_rtn(w, Grid(4, 32))
    assert torch.equal(whole.codes, parts.codes)
    assert torch.equal(whole.scales, parts.scales)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_are_refused(bad: float) -> None:
    w = weight((4, 32))
    w[2, 3] = bad
    with pytest.raises(InputError, match="NaN or Inf"):
        quantize_rtn(w, Grid(4, 32))


def test_zero_points_stay_on_the_grid_for_weights_of_one_sign() -> None:
    w = weight((4, 64)).abs() + 1
    back = dequantize(quantize_rtn(w, Grid(8, 32)))
    assert (back - w).abs().max() < 0.01


@pytest.mark.parametrize("grid", [Grid(4, 32), Grid(8, 0, True), Grid(4, 0)], ids=str)
@pytest.mark.parametrize("shape", [(40, 72), (6, 5, 3, 3)], ids=str)
def test_sqnr_is_that_of_the_dequantized_weight(
    grid: Grid, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    w = weight(shape)
    packed = quantize_rtn(w, grid)
    expected = 10 * torch.log10(w.square().sum() / (dequantize(packed) - w).square().sum())
    monkeypatch.setattr(grids, "_BLOCK", 100)
    assert sqnr(w, packed) == pytest.approx(float(expected), abs=0.01)


def test_sqnr_has_an_end_where_there_is_no_error() -> None:
    assert sqnr(torch.zeros(4, 32), quantize_rtn(torch.zeros(4, 32), Grid(4, 32))) == 200.0
