"""The fast path of packed linear layers in torch: products with 4-bit codes that are never unpacked into memory.

At batch 1 a linear layer takes as long as its weight takes to read, so a weight of a quarter of the bytes is read in a
quarter of the time, if nothing writes it out in between. torch has one such kernel for CPUs (``_weight_int4pack_mm``:
weights as ``(code − 8) · scale + zero``, bfloat16 activations), bitsandbytes another for NF4. Every linear grid is
brought into the first: 2 and 3 bit as 4-bit codes, 8 bit as the sum of two, its high and its low nibbles. The codes are
those of the layer; scales, activations and products are rounded to bfloat16 (about .003 relative in the output).

Where no kernel fits, the layer dequantizes as before: groups of 16, other devices and processors, gradients. Many rows
at once multiply by the unpacked weight, in bfloat16 where the processor does that fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresskit.benchmark.machine import cpu_flags
from compresskit.ops.packed.format import LINEAR, Format
from compresskit.ops.packed.grid import Packed, dequantize, unpack
from compresskit.ops.packed.modules import PackedLinear, set_module
from compresskit.ops.packed.nf4 import NF4
from compresskit.ops.quantize.bnb import kernel_weight

_GROUPS = (256, 128, 64, 32)  # what torch's kernel knows, the fastest first
_ROWS = 16  # its outputs come in blocks of this many
# Above so many rows at once unpacking is faster (measured), by passes of the kernel; 0: the kernel never pays.
_MOST_ROWS = {"AVX512": {1: 384, 2: 96}, "AVX2": {1: 96, 2: 0}}
_PROBED = 64
_TOLERANCE = 0.02
Kernel = Callable[[Tensor], Tensor]


def speed_up(module: nn.Module) -> dict[str, str]:
    """Let the packed linear layers of a module run through the fastest kernel there is; in place, for inference.

    The module's codes stay as they are beside the kernel's own copy of them, which is in the order that the kernel
    reads. Weights that are shared are repacked once for each layer.

    Returns:
        Layer name to the reason why it goes on dequantizing.
    """
    slow: dict[str, str] = {}
    for name, layer in list(module.named_modules()):
        if type(layer) is PackedLinear:
            fast = _fast(layer)
            set_module(module, name, fast)
            if isinstance(fast.kernel, str):
                slow[name] = fast.kernel
    return slow


def kernel_for(packed: Packed) -> Kernel | str:
    """What multiplies rows ``(n, in)`` by a packed weight, giving ``(n, out)``; or the reason why nothing does.

    The kernel is tried on some rows first: a library that computes something else than the codes say isn't used.
    """
    look = _KERNELS.get(packed.grid.format)
    if look is None:
        return f"no kernel for {packed.grid.format.name}"
    kernel = look(packed)
    if not isinstance(kernel, str) and not _agrees(kernel, packed):
        return "the library's kernel computes something else here"
    return kernel


class FastLinear(PackedLinear):
    """A packed linear layer that looks for a kernel; made by :func:`speed_up`."""

    kernel: Kernel | str
    place: torch.device

    def look(self) -> None:
        """Find the kernel for the device that the codes are on."""
        self.place = self.codes.device
        self.kernel = kernel_for(self.packed)

    def product(self, x: Tensor) -> Tensor:
        """``(…, in) -> (…, out)``, by the kernel where there is one."""
        if self.codes.device != self.place:
            self.look()
        if isinstance(self.kernel, str) or x.numel() == 0 or (torch.is_grad_enabled() and x.requires_grad):
            return super().product(x)
        if x.dim() == 2:  # a token's time is short enough for reshaping to show
            return self.kernel(x).to(x.dtype)
        out = self.kernel(x.reshape(-1, x.shape[-1]))
        return out.to(x.dtype).reshape(*x.shape[:-1], self.out_features)


def _fast(layer: PackedLinear) -> FastLinear:
    fast = FastLinear.__new__(FastLinear)
    fast.__dict__.update(layer.__dict__)
    fast.look()
    return fast


@dataclass(frozen=True)
class _Int4:
    """torch's kernel: the sum of one or two products.

    Attributes:
        packed: The weight as it is stored, for many rows at once.
        parts: Codes as the kernel orders them, and bfloat16 ``(groups, rows, 2)`` of scales and zeros.
        group: Group size: columns that share a scale.
        columns: With padding.
        most: Rows at once; more are multiplied by the unpacked weight.
    """

    packed: Packed
    parts: tuple[tuple[Tensor, Tensor], ...]
    group: int
    columns: int
    most: int

    def __call__(self, x: Tensor) -> Tensor:
        """``(n, in) -> (n, out)``."""
        if x.shape[0] > self.most:
            dtype = torch.bfloat16 if _multiplies_bfloat16() else torch.float32
            return F.linear(x.to(dtype), dequantize(self.packed, dtype))
        x = x.to(torch.bfloat16)
        if x.shape[1] < self.columns:
            x = F.pad(x, (0, self.columns - x.shape[1]))
        first, *more = (
            torch.ops.aten._weight_int4pack_mm_for_cpu(x, codes, self.group, scales) for codes, scales in self.parts
        )
        out: Tensor = first if not more else first.float().add_(more[0])
        return out[:, : self.packed.shape[0]]


def _int4(packed: Packed) -> _Int4 | str:
    if packed.codes.device.type != "cpu":
        return f"no kernel on {packed.codes.device.type}"
    if not hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu"):
        return "this torch has no 4-bit kernel"
    rows, grid = packed.shape[0], packed.grid
    most = _MOST_ROWS.get(torch.backends.cpu.get_cpu_capability(), {}).get(2 if grid.bits == 8 else 1, 0)
    if not most:
        return "torch has no kernel that pays on this processor"
    groups, size, _ = grid.layout(math.prod(packed.shape[1:]))
    columns = groups * size + (-size % 32 if groups == 1 else 0)
    group = next((g for g in _GROUPS if (columns if groups == 1 else size) % g == 0), None)
    if group is None:
        return f"no kernel for groups of {size}"
    repeat = columns // (groups * group)
    codes = unpack(packed.codes, grid.bits, size).reshape(rows, groups * size)
    codes = F.pad(codes, (0, columns - codes.shape[1], 0, -rows % _ROWS))
    scales = _spread(packed.scales.float(), repeat)
    zeros = torch.full_like(scales, grid.middle)
    if packed.zeros is not None:
        zeros = _spread(unpack(packed.zeros, grid.bits, groups).float(), repeat)
    parts: tuple[tuple[Tensor, Tensor], ...]
    if grid.bits < 8:
        shift = 8 - (1 << (grid.bits - 1))  # the middle code lands on 8, so that zero · scale stays small
        parts = (_part(codes + shift, scales, (8 - shift - zeros) * scales),)
    else:
        # c = 16h + l, so (c − z)·s = (h − 8)·16s + (136 − z)·s + (l − 8)·s
        high = _part(codes >> 4, 16 * scales, (136 - zeros) * scales)
        parts = (high, _part(codes & 15, scales, torch.zeros_like(scales)))
    return _Int4(packed, parts, group, columns, most)


def _nf4(packed: Packed) -> Kernel | str:
    kernel = kernel_weight(packed)
    return kernel or f"bitsandbytes is not there, or has no kernel for groups of {packed.grid.group_size}"


_KERNELS: dict[Format, Callable[[Packed], Kernel | str]] = {LINEAR: _int4, NF4: _nf4}


def _spread(values: Tensor, repeat: int) -> Tensor:
    """Values of groups ``(rows, groups)`` for the kernel's groups, padded to its rows."""
    return F.pad(values.repeat_interleave(repeat, dim=1), (0, 0, 0, -values.shape[0] % _ROWS))


def _part(codes: Tensor, scales: Tensor, zeros: Tensor) -> tuple[Tensor, Tensor]:
    ordered: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
    return ordered, torch.stack((scales, zeros), dim=-1).transpose(0, 1).to(torch.bfloat16).contiguous()


def _multiplies_bfloat16() -> bool:
    """True where torch multiplies bfloat16 matrices faster than float32 ones."""
    return bool({"avx512_bf16", "amx_bf16"} & cpu_flags())


def _agrees(kernel: Kernel, packed: Packed) -> bool:
    """Whether the kernel's first outputs are those of the dequantized weight."""
    columns, rows = math.prod(packed.shape[1:]), min(_PROBED, packed.shape[0])
    weight = dequantize(packed.rows(slice(rows))).reshape(rows, columns)
    x = torch.randn(2, columns, generator=torch.Generator().manual_seed(0)).to(weight.device)
    try:
        found, wanted = kernel(x)[:, :rows].float(), F.linear(x, weight)
    except (RuntimeError, AssertionError, AttributeError, TypeError, ValueError, NotImplementedError):
        return False
    scale = x.norm(dim=1, keepdim=True) * weight.norm(dim=1)
    return bool(((found - wanted).abs() <= _TOLERANCE * scale).all())
