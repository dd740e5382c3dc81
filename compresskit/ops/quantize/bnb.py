"""The target bitsandbytes: packed linear layers as ``Linear4bit`` and ``Linear8bitLt``, and as their stored tensors.

Nothing is rounded again: NF4 codes change places within their bytes, int8 codes lose their offset of 128
(``bnb_layouts.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresskit.errors import InputError, MachineError
from compresskit.ops.packed.grid import Grid, Packed
from compresskit.ops.packed.modules import PackedLayer, PackedLinear, set_module
from compresskit.ops.packed.nf4 import NF4
from compresskit.ops.quantize.bnb_layouts import BLOCKS, CPU_ROWS, LAYOUTS, THRESHOLD, Read, row_grid, swapped
from compresskit.ops.quantize.bnb_library import bitsandbytes, has_cpu_kernel

__all__ = [
    "BLOCKS", "THRESHOLD", "kernel_weight", "names", "obstacle", "quantize_int8_rows", "read_back", "readable",
    "row_grid", "stored", "to_bitsandbytes",
]  # fmt: skip
_NF4_ZERO = 0x77  # two codes of the value 0


def quantize_int8_rows(weight: Tensor, grid: Grid) -> Packed:
    """Round each row to int8 by its largest magnitude, as bitsandbytes does: from float16 values.

    Args:
        weight: Floating point ``(out, in)``.
        grid: 8 bit, per row, symmetric.

    Returns:
        Codes from 1 to 255, 128 being 0; float32 scales, ``largest / 127``.

    Raises:
        InputError: A weight isn't finite, or is too large for float16.
    """
    half = weight.detach().to(torch.float16).reshape(weight.shape[0], -1)
    largest = half.abs().amax(dim=1).float()
    if not bool(torch.isfinite(largest).all()):
        raise InputError("the weight holds NaN, infinity, or values that float16 can't hold")
    factor = torch.where(largest > 0, 127.0 / largest, torch.zeros_like(largest))
    codes = half.float().mul_(factor.unsqueeze(1)).round_().add_(128).to(torch.uint8)
    return Packed(codes.unsqueeze(1), (largest / 127).unsqueeze(1), None, tuple(weight.shape), grid)


def obstacle(packed_shape: tuple[int, ...], grid: Grid) -> str | None:
    """Why the library can't hold a weight of this shape and grid in its own format; None when it can."""
    if len(packed_shape) != 2:
        return "bitsandbytes has linear layers only"
    layout = LAYOUTS.get(grid.format)
    return "bitsandbytes has no such grid" if layout is None else layout.obstacle(packed_shape, grid)


def stored(packed: Packed) -> dict[str, Tensor]:
    """The tensors of a weight as bitsandbytes stores it, by what follows the layer's name; the library isn't needed."""
    return LAYOUTS[packed.grid.format].stored(packed)


def read_back(tensors: Read, empty: Packed) -> Packed:
    """The inverse of :func:`stored`, bit for bit.

    Args:
        tensors: By what follows the layer's name; each read when called.
        empty: Its shape, grid and the dtype of its scales.

    Raises:
        InputError: The stored tensors are not of that shape.
    """
    layout, weight = LAYOUTS[empty.grid.format], tensors["weight"]()
    if weight.numel() != empty.codes.numel() or weight.dtype != layout.dtype:
        raise InputError(f"the stored weight has {weight.numel()} codes, {empty.codes.numel()} were expected")
    codes, scales = layout.codes(weight).reshape(empty.codes.shape), layout.scales(tensors)
    if scales.numel() != empty.scales.numel():
        raise InputError(f"there are {scales.numel()} stored scales, {empty.scales.numel()} were expected")
    scales = scales.reshape(empty.scales.shape).to(empty.scales.dtype)
    return Packed(codes, scales, None, empty.shape, empty.grid)


def names(grid: Grid) -> tuple[str, ...]:
    """What :func:`stored` calls its tensors."""
    return LAYOUTS[grid.format].names


def readable(module: nn.Module, names: Collection[str]) -> bool:
    """True when transformers can read the module's packed layers: all stored here, by ``names``, and of one format."""
    packed = {name: layer for name, layer in module.named_modules() if isinstance(layer, PackedLayer)}
    formats = {(layer.grid.format, layer.grid.bits) for layer in packed.values()}
    return len(formats) == 1 and set(packed) <= set(names)


def to_bitsandbytes(module: nn.Module) -> dict[str, str]:
    """Put bitsandbytes' own modules in the place of packed linear layers, for CPUs and GPUs; in place.

    Returns:
        Packed layers that stay as they are, with the reason.

    Raises:
        MachineError: bitsandbytes isn't installed, or doesn't load here.
    """
    library = bitsandbytes()
    if library is None:
        raise MachineError("bitsandbytes is not installed, or doesn't load here", "pip install bitsandbytes")
    kept: dict[str, str] = {}
    for name, layer in list(module.named_modules()):
        if isinstance(layer, PackedLinear):
            reason = obstacle(layer.shape, layer.grid) or ("it carries a correction" if _corrections(layer) else None)
            if reason:
                kept[name] = reason
            else:
                twin = LAYOUTS[layer.grid.format].twin(library, layer)
                twin.bias = layer.bias
                set_module(module, name, twin.train(layer.training))
    return kept


def _corrections(layer: PackedLinear) -> list[str]:
    known = {"codes", "scales", "zeros"}
    return [name for name, tensor in layer._buffers.items() if name not in known and tensor is not None]


def kernel_weight(packed: Packed) -> Callable[[Tensor], Tensor] | None:
    """The library's product of rows ``(n, in)`` with an NF4 weight, giving ``(n, out)``; None where it has none."""
    library = bitsandbytes()
    columns = math.prod(packed.shape[1:])
    if library is None or packed.grid.group_size not in BLOCKS or columns % packed.grid.group_size:
        return None
    rows = packed.shape[0]
    on_cpu = packed.codes.device.type == "cpu"
    pad = -rows % CPU_ROWS if on_cpu and has_cpu_kernel() else 0
    codes = F.pad(swapped(packed.codes).reshape(rows, -1), (0, 0, 0, pad), value=_NF4_ZERO)
    absmax = F.pad(packed.scales.float(), (0, 0, 0, pad))
    state = library.functional.QuantState(
        absmax=absmax.reshape(-1),
        shape=torch.Size((rows + pad, columns)),
        code=torch.tensor(NF4.levels, device=codes.device),
        blocksize=packed.grid.group_size,
        quant_type="nf4",
        dtype=torch.float32,
    )
    if not (on_cpu and has_cpu_kernel()):
        weight = codes.reshape(-1, 1)
        return lambda x: library.matmul_4bit(x, weight, quant_state=state)
    ordered, state = library.functional._convert_weight_packed_for_cpu(codes.reshape(-1, 1), state)
    shape, blocksize, scales, table = tuple(state.shape), state.blocksize, state.absmax, state.code
    product = torch.ops.bitsandbytes.gemv_4bit.default
    if not pad:
        return lambda x: product(x, ordered, shape, scales, table, blocksize)
    return lambda x: product(x, ordered, shape, scales, table, blocksize)[:, :rows]
