"""A module computed otherwise: exactly, in float64, and with the roundings that other float32 kernels may make."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import get_decompositions
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

_aten = torch.ops.aten
_NARROW = (torch.float32, torch.float16, torch.bfloat16)
_ROUNDING = 2.0**-23
_TIE = 1e-4
"""Of the spread of scores: what is nearer may be chosen either way, after all layers that round before."""
_MIX = 0x1E3779B97F4A7C15  # odd, its bits without a pattern
_MATRIX_PRODUCTS = {_aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm, _aten.mv, _aten.addmv, _aten.dot}
_PARTS = get_decompositions(
    [
        _aten.native_batch_norm,
        _aten.native_layer_norm,
        _aten.native_group_norm,
        _aten._scaled_dot_product_flash_attention_for_cpu,
    ]
)
"""Of operators that take sums or products inside: what they are made of."""


def float64_copy(module: nn.Module) -> nn.Module:
    """A copy of a module whose floating-point tensors are float64, registered or not; call it within :func:`float64`.

    Tensors that have a history (the weight that ``weight_norm`` computes) can't be copied by ``copy``, so all are
    converted beforehand.

    Raises:
        Exception: Whatever the module's attributes raise when they are copied.
    """
    memo: dict[int, Any] = {}
    for layer in module.modules():
        for holder in (layer._parameters, layer._buffers, vars(layer)):
            for tensor in holder.values():
                if isinstance(tensor, Tensor) and id(tensor) not in memo:
                    wide = _widened(tensor.detach()).clone()
                    memo[id(tensor)] = nn.Parameter(wide, False) if isinstance(tensor, nn.Parameter) else wide
    return copy.deepcopy(module, memo)


@contextmanager
def float64() -> Iterator[None]:
    """Code computes in float64, also where it names a narrower type or holds constants of one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Wide():
            yield
    finally:
        torch.set_default_dtype(before)


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in _NARROW:
        return value.double()
    return torch.float64 if isinstance(value, torch.dtype) and value in _NARROW else value


class _Wide(TorchFunctionMode):
    """Calls functions of torch with float64 in the place of narrower types."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (Tensor.float, Tensor.half, Tensor.bfloat16):
            func = Tensor.double
        args, kwargs = tree_map(_widened, (tuple(args), kwargs or {}))
        return tree_map(_widened, func(*args, **kwargs))


class OtherKernels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Rounds as some float32 kernel may, whatever the precision that is computed in.

    A kernel rounds after each term that it adds. Of a product of n terms that leaves the error of factors which are off
    by √n / 2 units in the last place, at random. Equal factors are off alike: the error of a picture of one colour is
    that of one pixel, and doesn't average out. Means, sums and norms are taken one term after the other in float32, the
    worst that runtimes do; that error grows with n where all terms are alike. Of scores that are nearly tied the other
    one may be the largest: experts are chosen so, and what a token gets then is another expert's.

    Args:
        seed: Of the roundings.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seed = seed

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _PARTS:
            with self:
                return _PARTS[func](*args, **kwargs)
        if func in _SUMS and args[0].is_floating_point():
            return _SUMS[func](*args, **kwargs)
        if func.overloadpacket == _aten.topk and args[0].is_floating_point():
            return self._otherwise(func, args, kwargs)
        if terms := _terms(func, args):
            args = tree_map(partial(self._rounded, max(1.0, math.sqrt(terms) / 2)), tuple(args))
        return func(*args, **kwargs)

    def _otherwise(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The largest scores, near ties decided at random; the scores themselves stay."""
        scores, dim = args[0], args[2] if len(args) > 2 else kwargs.get("dim", -1)
        spread = scores.amax(dim, keepdim=True) - scores.amin(dim, keepdim=True)
        moved = (scores + _TIE * spread * _hashed(scores, self._seed)).to(scores.dtype)
        indices = func(moved, *args[1:], **kwargs)[1]
        return scores.gather(dim, indices), indices

    def _rounded(self, units: float, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        unit = units * max(_ROUNDING, torch.finfo(value.dtype).eps)
        return value * (1 + unit * _hashed(value, self._seed)).to(value.dtype)


def _hashed(value: Tensor, seed: int) -> Tensor:
    """Numbers in -1…1 that look random, equal for elements that are equal in float32; float64."""
    bits = (value.float().contiguous().view(torch.int32).long() + seed * 7919) * _MIX
    bits = (bits ^ (bits >> 29)) * _MIX
    return ((bits >> 20) & 0xFFFFFF).double() / 2**23 - 1


def _terms(func: Any, args: Sequence[Any]) -> int:
    """How many products an element of the result is the sum of; 0 for what is no product."""
    if func.overloadpacket == _aten.convolution:
        return int(args[1].numel() // max(args[1].shape[0], 1))
    if func.overloadpacket in _MATRIX_PRODUCTS:
        factor = args[-1]
        return int(factor.shape[-2] if factor.dim() > 1 else factor.shape[0])
    return 0


def _sum(x: Tensor, dim: Sequence[int] | int | None = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """The sum over ``dim`` (all, where none is given), one term after the other in float32."""
    import numpy as np

    given = [dim] if isinstance(dim, int) else list(dim or range(x.dim()))
    dims = sorted(d % max(x.dim(), 1) for d in given) if x.dim() else []
    rest = [d for d in range(x.dim()) if d not in dims]
    terms = x.detach().cpu().permute(*rest, *dims).reshape(*(x.shape[d] for d in rest), -1).float().numpy()
    last = np.cumsum(terms, -1, dtype=np.float32)[..., -1] if terms.shape[-1] else terms.sum(-1)
    total = torch.from_numpy(np.ascontiguousarray(last)).to(x.device, dtype or x.dtype)
    return total.reshape([1 if d in dims else n for d, n in enumerate(x.shape)]) if keepdim else total


def _mean(x: Tensor, dim: Sequence[int] | int | None = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    total = _sum(x, dim, keepdim, dtype=dtype)
    return total / (x.numel() / max(total.numel(), 1))


def _var_mean(
    x: Tensor, dim: Sequence[int] | int | None = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    mean = _mean(x, dim, True)
    total = _sum((x - mean).square(), dim, True)
    var = total / (x.numel() / max(total.numel(), 1) - (1 if correction is None else correction))
    shape = mean.shape if keepdim else _sum(x, dim).shape
    return var.reshape(shape), mean.reshape(shape)


def _norm(x: Tensor, ord: float = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    if ord != 2:
        other: Tensor = torch.linalg.vector_norm(x, ord, dim, keepdim, dtype=dtype)
        return other
    return _sum(x.square(), dim, keepdim, dtype=dtype).sqrt()


def _var(*args: Any, **kwargs: Any) -> Tensor:
    return _var_mean(*args, **kwargs)[0]


_SUMS: dict[Any, Callable[..., Any]] = {
    _aten.sum.default: _sum,
    _aten.sum.dim_IntList: _sum,
    _aten.mean.default: _mean,
    _aten.mean.dim: _mean,
    _aten.linalg_vector_norm.default: _norm,
    _aten.var.correction: _var,
    _aten.var_mean.correction: _var_mean,
}
