"""The target bitsandbytes: packed linear layers as ``Linear4bit`` and ``Linear8bitLt``, and as their stored tensors.

Nothing is rounded again: NF4 codes change places within their bytes, int8 codes lose their offset of 128. Dettmers
et al., *QLoRA* (arXiv:2305.14314) is the 4-bit format, *LLM.int8()* (arXiv:2208.07339) the 8-bit one. Left out: the
second quantization of the scales, and FP4.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresskit.errors import InputError, MachineError
from compresskit.ops.packed.grid import NF4, Grid, Packed
from compresskit.ops.packed.modules import PackedLayer, PackedLinear, set_module
from compresskit.ops.quantize.bnb_library import bitsandbytes, has_cpu_kernel

BLOCKS = (32, 64, 128, 256, 512, 1024)
"""Group sizes that the library knows."""
THRESHOLD = 6.0
"""Activations beyond this are multiplied in floating point by ``Linear8bitLt``; the paper's figure."""
_STATE = "quant_state.bitsandbytes__nf4"
_CPU_ROWS = 32
_NF4_ZERO = 0x77  # two codes of the value 0


def row_grid() -> Grid:
    """The grid of :func:`quantize_int8_rows`."""
    return Grid(8, 0, symmetric=True)


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
    columns = math.prod(packed_shape[1:])
    if len(packed_shape) != 2:
        return "bitsandbytes has linear layers only"
    if grid.kind == "nf4":
        if grid.group_size not in BLOCKS or columns % grid.group_size:
            return f"{columns} columns are not a multiple of a group that bitsandbytes knows"
        if packed_shape[0] % _CPU_ROWS:
            return f"{packed_shape[0]} outputs: the CPU kernel of bitsandbytes wants a multiple of {_CPU_ROWS}"
        return None
    if grid != row_grid():
        return "bitsandbytes has no such grid"
    return None


def stored(packed: Packed) -> dict[str, Tensor]:
    """The tensors of a weight as bitsandbytes stores it, by what follows the layer's name; the library isn't needed."""
    if packed.grid.kind != "nf4":
        scales = packed.scales.float().reshape(-1) * 127
        codes = packed.codes.reshape(packed.shape).to(torch.int16).sub_(128).to(torch.int8)
        return {"weight": codes, "SCB": scales, "weight_format": torch.zeros((), dtype=torch.uint8)}
    state = {
        "quant_type": "nf4", "blocksize": packed.grid.group_size, "dtype": "float32", "shape": list(packed.shape)
    }  # fmt: skip
    return {
        "weight": _swapped(packed.codes).reshape(-1, 1),
        "weight.absmax": packed.scales.float().reshape(-1),
        "weight.quant_map": NF4.clone(),
        f"weight.{_STATE}": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }


def read_back(tensors: Mapping[str, Callable[[], Tensor]], empty: Packed) -> Packed:
    """The inverse of :func:`stored`, bit for bit.

    Args:
        tensors: By what follows the layer's name; each read when called.
        empty: Its shape, grid and the dtype of its scales.

    Raises:
        InputError: The stored tensors are not of that shape.
    """
    weight, dtype = tensors["weight"](), empty.scales.dtype
    nf4 = empty.grid.kind == "nf4"
    if weight.numel() != empty.codes.numel() or weight.dtype != (torch.uint8 if nf4 else torch.int8):
        raise InputError(f"the stored weight has {weight.numel()} codes, {empty.codes.numel()} were expected")
    if nf4:
        codes = _swapped(weight).reshape(empty.codes.shape)
        scales = tensors["weight.absmax"]()
    else:
        codes = weight.to(torch.int16).add_(128).to(torch.uint8).reshape(empty.codes.shape)
        scales = tensors["SCB"]() / 127
    if scales.numel() != empty.scales.numel():
        raise InputError(f"there are {scales.numel()} stored scales, {empty.scales.numel()} were expected")
    return Packed(codes, scales.reshape(empty.scales.shape).to(dtype), None, empty.shape, empty.grid)


def names(grid: Grid) -> tuple[str, ...]:
    """What :func:`stored` calls its tensors."""
    if grid.kind == "nf4":
        return ("weight", "weight.absmax", "weight.quant_map", f"weight.{_STATE}")
    return ("weight", "SCB", "weight_format")


def readable(module: nn.Module, names: Collection[str]) -> bool:
    """True when transformers can read the module's packed layers: all stored here, by ``names``, and of one format."""
    packed = {name: layer for name, layer in module.named_modules() if isinstance(layer, PackedLayer)}
    formats = {(layer.grid.kind, layer.grid.bits) for layer in packed.values()}
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
                set_module(module, name, _twin(library, layer))
    return kept


def _corrections(layer: PackedLinear) -> list[str]:
    known = {"codes", "scales", "zeros"}
    return [name for name, tensor in layer._buffers.items() if name not in known and tensor is not None]


def _twin(library: Any, layer: PackedLinear) -> Any:
    tensors = stored(layer.packed)
    size = (layer.in_features, layer.out_features, layer.bias is not None)
    with torch.device("meta"):
        if layer.grid.kind == "nf4":
            twin = library.nn.Linear4bit(*size, compress_statistics=False, quant_type="nf4")
        else:
            twin = library.nn.Linear8bitLt(*size, has_fp16_weights=False, threshold=THRESHOLD)
    if layer.grid.kind == "nf4":
        state = {name.removeprefix("weight."): tensor for name, tensor in tensors.items() if name != "weight"}
        device = tensors["weight"].device
        twin.weight = library.nn.Params4bit.from_prequantized(tensors["weight"], state, device=device, module=twin)
    else:
        codes = tensors["weight"]
        twin.weight = library.nn.Int8Params(
            codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=tensors["SCB"]
        )
    twin.bias = layer.bias
    return twin.train(layer.training)


def kernel_weight(packed: Packed) -> Callable[[Tensor], Tensor] | None:
    """The library's product of rows ``(n, in)`` with an NF4 weight, giving ``(n, out)``; None where it has none."""
    library = bitsandbytes()
    columns = math.prod(packed.shape[1:])
    if library is None or packed.grid.group_size not in BLOCKS or columns % packed.grid.group_size:
        return None
    rows = packed.shape[0]
    on_cpu = packed.codes.device.type == "cpu"
    pad = -rows % _CPU_ROWS if on_cpu and has_cpu_kernel() else 0
    codes = F.pad(_swapped(packed.codes).reshape(rows, -1), (0, 0, 0, pad), value=_NF4_ZERO)
    absmax = F.pad(packed.scales.float(), (0, 0, 0, pad))
    state = library.functional.QuantState(
        absmax=absmax.reshape(-1),
        shape=torch.Size((rows + pad, columns)),
        code=NF4.to(codes.device),
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


def _swapped(codes: Tensor) -> Tensor:
    """The two 4-bit codes of each byte in the other order: bitsandbytes has the first one in the high nibble."""
    return ((codes << 4) | (codes >> 4)).contiguous()
