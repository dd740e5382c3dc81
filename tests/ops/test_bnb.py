"""The target bitsandbytes: our codes are the library's, in its modules and in what it stores."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from compresskit.errors import InputError, MachineError
from compresskit.ops.packed.grid import Grid, Packed, dequantize
from compresskit.ops.packed.modules import PackedLinear
from compresskit.ops.packed.nf4 import nf4_grid
from compresskit.ops.quantize import bnb, bnb_library
from compresskit.ops.quantize.bnb_select import BnbSelection, kept
from compresskit.ops.quantize.rtn import quantize_rtn
from compresskit.ops.quantize.table import quantize_table
from compresskit.ops.quantize.weights import quantize_module
from compresskit.stage import silent

library = bnb_library.bitsandbytes()
needs_library = pytest.mark.skipif(library is None, reason="bitsandbytes does not load here")


def weight(rows: int = 64, columns: int = 128, seed: int = 0) -> torch.Tensor:
    made = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.1
    made[0] *= 10
    made[1] = 0
    return made


def packed_of(kind: str) -> Packed:
    if kind == "nf4":
        return quantize_table(weight(), nf4_grid(64))
    return bnb.quantize_int8_rows(weight(), bnb.row_grid())


@needs_library
@pytest.mark.parametrize("group", [32, 64, 128])
def test_nf4_is_stored_as_bitsandbytes_stores_it(group: int) -> None:
    codes, state = library.functional.quantize_4bit(
        weight(), blocksize=group, compress_statistics=False, quant_type="nf4"
    )
    expected = {"weight": codes} | {f"weight.{name}": t for name, t in state.as_dict(packed=True).items()}
    found = bnb.stored(quantize_table(weight(), nf4_grid(group)))
    assert set(found) == set(expected) == set(bnb.names(nf4_grid(group)))
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@needs_library
def test_int8_is_stored_as_bitsandbytes_stores_it() -> None:
    original = weight()
    original[1] = 1e-4  # of a row of zeros the library makes whatever 0 · inf is cast to
    codes, largest, _ = library.functional.int8_vectorwise_quant(original.half())
    found = bnb.stored(bnb.quantize_int8_rows(original, bnb.row_grid()))
    assert torch.equal(found["weight"], codes)
    torch.testing.assert_close(found["SCB"], largest, rtol=1e-6, atol=0)


def test_a_row_of_zeros_stays_zero() -> None:
    found = bnb.quantize_int8_rows(weight(), bnb.row_grid())
    assert not dequantize(found)[1].any()
    assert float((dequantize(found) - weight()).abs().max()) <= float(weight().abs().max()) / 254 * 1.1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e6])
def test_int8_refuses_what_float16_cannot_hold(bad: float) -> None:
    broken = weight()
    broken[3, 3] = bad
    with pytest.raises(InputError, match="float16"):
        bnb.quantize_int8_rows(broken, bnb.row_grid())


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_what_is_stored_reads_back_bit_for_bit(kind: str) -> None:
    packed = packed_of(kind)
    tensors = bnb.stored(packed)
    found = bnb.read_back({name: partial(tensors.get, name) for name in tensors}, packed)
    assert torch.equal(found.codes, packed.codes)
    torch.testing.assert_close(found.scales, packed.scales, rtol=2e-7, atol=0)
    tensors["weight"] = tensors["weight"][:-1]
    with pytest.raises(InputError, match="codes"):
        bnb.read_back({name: partial(tensors.get, name) for name in tensors}, packed)


@needs_library
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_bitsandbytes_modules_compute_what_the_packed_layers_compute(kind: str) -> None:
    net = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 64, bias=False)).eval()
    algorithm, grid = (quantize_table, nf4_grid(64)) if kind == "nf4" else (bnb.quantize_int8_rows, bnb.row_grid())
    quantize_module(
        net, BnbSelection(grid.bits, grid.group_size, True, format=grid.format, only=grid), algorithm, silent
    )
    x = torch.randn(5, 128, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = net(x)
        assert bnb.to_bitsandbytes(net) == {}
        found = net(x)
    assert type(net[0]).__module__.startswith("bitsandbytes")
    # NF4 kernels round activations to bfloat16, LLM.int8() to 8 bit: far below what another code would change.
    torch.testing.assert_close(found, expected, rtol=0, atol=0.03 * float(expected.abs().max()))


@needs_library
def test_what_bitsandbytes_cannot_hold_stays_packed() -> None:
    net = nn.Sequential(nn.Linear(128, 64))
    net[0] = PackedLinear(net[0], quantize_rtn(net[0].weight, Grid(4, 32)))
    assert set(bnb.to_bitsandbytes(net)) == {"0"}
    assert isinstance(net[0], PackedLinear)


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bnb, "bitsandbytes", lambda: None)
    with pytest.raises(MachineError, match="bitsandbytes"):
        bnb.to_bitsandbytes(nn.Sequential())


@pytest.mark.parametrize(
    ("shape", "grid", "said"),
    [
        ((64, 100), nf4_grid(64), "100 columns"),
        ((30, 128), nf4_grid(64), "30 outputs"),
        ((64, 128, 3), nf4_grid(64), "linear layers only"),
        ((64, 128), Grid(8, 32), "no such grid"),
        ((30, 100), Grid(8, 0, symmetric=True), None),
        ((64, 128), nf4_grid(64), None),
    ],
)
def test_obstacles(shape: tuple[int, ...], grid: Grid, said: str | None) -> None:
    found = bnb.obstacle(shape, grid)
    assert (found is None) if said is None else (found is not None and said in found)


def test_only_linear_layers_with_a_weight_of_their_own_are_taken() -> None:
    net = nn.ModuleDict({"embed": nn.Embedding(99, 64), "a": nn.Linear(64, 64), "head": nn.Linear(64, 99, bias=False)})
    net["head"].weight = net["embed"].weight
    found = kept(net, nf4_grid(64), transformers=False)
    assert set(found) == {"embed", "head"}
    assert "embed" in found["head"]
