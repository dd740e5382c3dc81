"""The fast path: the same results as dequantizing, up to bfloat16, and the old way where no kernel fits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compresskit.ops.packed.format import LINEAR
from compresskit.ops.packed.grid import Grid, Packed, dequantize, pack
from compresskit.ops.packed.modules import PackedLinear
from compresskit.ops.packed.nf4 import NF4, nf4_grid
from compresskit.ops.quantize import fast
from compresskit.ops.quantize.fast import FastLinear, kernel_for, speed_up
from compresskit.ops.quantize.rtn import quantize_rtn
from compresskit.ops.quantize.table import quantize_table

NO_KERNEL = torch.backends.cpu.get_cpu_capability() != "AVX512"
needs_kernel = pytest.mark.skipif(NO_KERNEL, reason="torch has no kernel for each of these grids on this processor")
BFLOAT16 = 0.006  # relative, of a product whose weights and activations are rounded to it


def weight(rows: int, columns: int) -> torch.Tensor:
    made = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.05 + 0.01
    made[0] *= 10
    return made


def packed(rows: int, columns: int, grid: Grid) -> Packed:
    return (
        quantize_table(weight(rows, columns), grid) if grid.format is NF4 else quantize_rtn(weight(rows, columns), grid)
    )


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


@needs_kernel
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 64), (4, 128), (4, 0), (8, 32), (8, 128), (8, 0)])
@pytest.mark.parametrize(("rows", "columns"), [(64, 128), (30, 172)])
def test_kernels_agree_with_the_dequantized_weight(
    bits: int, group: int, symmetric: bool, rows: int, columns: int
) -> None:
    made = packed(rows, columns, Grid(bits, group, symmetric))
    kernel = kernel_for(made)
    assert not isinstance(kernel, str), kernel
    for n in (1, 7, 500):  # so many at once that unpacking is faster
        x = torch.randn(n, columns, generator=torch.Generator().manual_seed(1))
        assert distance(kernel(x), x @ dequantize(made).T) < BFLOAT16


@needs_kernel
@pytest.mark.parametrize("bits", [2, 3])
def test_fewer_bits_run_through_the_same_kernel(bits: int) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 1 << bits, (32, 2, 32), generator=generator, dtype=torch.uint8)
    zeros = pack(torch.randint(0, 1 << bits, (32, 2), generator=generator, dtype=torch.uint8), bits)
    scales = torch.rand(32, 2, generator=generator).half()
    made = Packed(pack(codes, bits), scales, zeros, (32, 64), Grid(bits, 32))
    kernel = kernel_for(made)
    assert not isinstance(kernel, str), kernel
    x = torch.randn(3, 64, generator=generator)
    assert distance(kernel(x), x @ dequantize(made).T) < BFLOAT16


@pytest.mark.parametrize(("rows", "columns"), [(64, 128), (30, 192)])
def test_nf4_runs_through_bitsandbytes(rows: int, columns: int) -> None:
    pytest.importorskip("bitsandbytes")
    made = packed(rows, columns, nf4_grid(64))
    kernel = kernel_for(made)
    assert not isinstance(kernel, str), kernel
    for n in (1, 7, 500):
        x = torch.randn(n, columns, generator=torch.Generator().manual_seed(1))
        assert distance(kernel(x), x @ dequantize(made).T) < BFLOAT16


def test_nf4_takes_the_library_s_general_product_where_it_has_no_cpu_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr("compresskit.ops.quantize.bnb.has_cpu_kernel", lambda: False)
    made = packed(64, 128, nf4_grid(64))
    kernel = kernel_for(made)
    assert not isinstance(kernel, str), kernel
    x = torch.randn(7, 128, generator=torch.Generator().manual_seed(1))
    assert distance(kernel(x), x @ dequantize(made).T) < 1e-6


def model(grid: Grid) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 30, bias=False)).eval()
    for i in (0, 2):
        layer = net[i]
        made = quantize_table(layer.weight, grid) if grid.format is NF4 else quantize_rtn(layer.weight, grid)
        net[i] = PackedLinear(layer, made)
    return net


@pytest.mark.parametrize("grid", [Grid(4, 32), Grid(8, 0, symmetric=True), nf4_grid(64)])
def test_a_model_computes_the_same_and_keeps_its_state(grid: Grid) -> None:
    net = model(grid)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    x = torch.randn(2, 3, 128, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, weights = net(x), net[0].weight
        speed_up(net)
        found = net(x)
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    assert distance(found, expected) < 2 * BFLOAT16
    assert torch.equal(net[0].weight, weights)
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in state.items())


def test_gradients_take_the_old_way() -> None:
    net, plain = model(Grid(4, 32)), model(Grid(4, 32))
    speed_up(net)
    x = torch.randn(2, 128, requires_grad=True)
    found, expected = net(x), plain(x)
    assert torch.equal(found, expected)
    found.sum().backward()
    assert x.grad is not None


def test_a_grid_without_a_kernel_dequantizes_and_is_named() -> None:
    net, plain = model(Grid(4, 16)), model(Grid(4, 16))
    slow = speed_up(net)
    assert set(slow) == {"0", "2"}
    assert all(slow.values())
    x = torch.randn(2, 128)
    with torch.inference_mode():
        assert torch.equal(net(x), plain(x))


def test_without_bitsandbytes_nf4_dequantizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compresskit.ops.quantize.bnb.bitsandbytes", lambda: None)
    net, plain = model(nf4_grid(64)), model(nf4_grid(64))
    assert set(speed_up(net)) == {"0", "2"}
    x = torch.randn(2, 128)
    with torch.inference_mode():
        assert torch.equal(net(x), plain(x))


@needs_kernel
def test_a_kernel_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    made = packed(32, 64, Grid(4, 32))
    right = fast._int4(made)
    assert not isinstance(right, str)
    monkeypatch.setitem(fast._KERNELS, LINEAR, lambda _packed: lambda x: right(x).flip(1))
    assert isinstance(kernel_for(made), str)


def test_another_device_gets_a_kernel_of_its_own_or_none() -> None:
    net = model(Grid(4, 32))
    speed_up(net)
    layer = net[0]
    assert isinstance(layer, FastLinear)
    net.to("meta")
    assert layer(torch.empty(2, 128, device="meta")).shape == (2, 64)
    assert layer.kernel == "no kernel on meta"
