"""Layers that keep their weight packed, and the surgery that puts them into a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresskit.errors import InputError
from compresskit.ops.packed.experts import Experts, Stacked
from compresskit.ops.packed.grid import PARTS, Packed, dequantize


def computes(layer: nn.Module) -> torch.dtype:
    """The dtype that a layer with a weight multiplies in: that of the weight, unless the layer says another."""
    dtype: torch.dtype = getattr(layer, "computes", None) or layer.get_parameter("weight").dtype
    return dtype


class PackedLayer(nn.Module):
    """Base of the packed layers: holds the parts of a :class:`Packed` weight as buffers.

    ``weight`` dequantizes on each access, so code that reads a layer's weight directly still works.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    levels: Tensor | None
    multiples: Tensor | None

    def __init__(self, packed: Packed, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.grid = packed.grid
        self.shape = packed.shape
        self.dtype = dtype
        for part in PARTS:
            self.register_buffer(part, getattr(packed, part))

    @property
    def packed(self) -> Packed:
        """The weight as stored; shares memory with the buffers."""
        return self._packed(self.shape)

    def _packed(self, shape: tuple[int, ...]) -> Packed:
        return Packed(self.codes, self.scales, self.zeros, shape, self.grid, self.levels, self.multiples)

    @property
    def weight(self) -> Tensor:
        """The dequantized weight, in the original shape."""
        return dequantize(self.packed, self.dtype)

    @contextmanager
    def unpacked(self, x: Tensor) -> Iterator[Tensor]:
        """The weight for a product with ``x``; gradients don't hold on to it, it is dequantized again for them."""
        if not (torch.is_grad_enabled() and x.requires_grad):
            yield self.weight
            return
        dtype = self.dtype
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)  # cast here: a copy made by autocast would be kept
        weight = self.weight.to(dtype)
        place = weight.untyped_storage().data_ptr()

        def pack(saved: Tensor) -> Any:
            if saved.untyped_storage().data_ptr() != place:
                return saved
            return tuple(saved.shape), saved.stride(), saved.storage_offset()

        def unpack(saved: Any) -> Tensor:
            return saved if isinstance(saved, Tensor) else self.weight.to(dtype).as_strided(*saved)

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield weight

    def extra_repr(self) -> str:
        """Shape and grid, for ``print(model)``."""
        return f"{tuple(self.shape)}, {self.grid}"


class PackedLinear(PackedLayer):
    """``nn.Linear`` with a packed weight: ``(…, in) -> (…, out)``.

    Attributes:
        input_scale: float32 ``(in,)``: what inputs are multiplied by before the product; None for nothing.
        repair_in: float16 ``(rank, in)``: with ``repair_out`` a low-rank term that is added to the product, of the
            inputs as the packed weight gets them; None for none.
        repair_out: float16 ``(out, rank)``.
    """

    input_scale: Tensor | None
    repair_in: Tensor | None
    repair_out: Tensor | None

    def __init__(self, layer: nn.Linear, packed: Packed) -> None:
        super().__init__(packed, computes(layer))
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias
        self.register_buffer("input_scale", None)
        self.register_buffer("repair_in", None)
        self.register_buffer("repair_out", None)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply, repair, and add the bias."""
        if self.input_scale is not None:
            x = x * self.input_scale.to(x.dtype)
        out = self.product(x)
        if self.repair_in is not None and self.repair_out is not None:
            out = out + F.linear(F.linear(x, self.repair_in.to(x.dtype)), self.repair_out.to(x.dtype))
        return out if self.bias is None else out + self.bias

    def product(self, x: Tensor) -> Tensor:
        """``x`` times the weight, dequantized now; ``fast.py`` has kernels that don't unpack it."""
        with self.unpacked(x) as weight:
            return F.linear(x, weight)


class PackedEmbedding(PackedLayer):
    """``nn.Embedding`` with packed rows; only the rows asked for are dequantized.

    Attributes:
        embed_scale: What rows are multiplied by once they were looked up, as transformers' scaled embeddings do; None
            for nothing. It is part of the architecture and isn't stored.
    """

    embed_scale: Tensor | None

    def __init__(self, layer: nn.Embedding, packed: Packed) -> None:
        super().__init__(packed, computes(layer))
        self.num_embeddings, self.embedding_dim = layer.num_embeddings, layer.embedding_dim
        self.padding_idx = layer.padding_idx
        scale = getattr(layer, "embed_scale", None) if _is_scaled(layer) else None
        self.register_buffer("embed_scale", None if scale is None else torch.as_tensor(scale), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """int64 ``(…)`` to ``(…, embedding_dim)``."""
        rows = self.rows(ids)
        return rows if self.embed_scale is None else rows * self.embed_scale.to(self.dtype)

    def rows(self, ids: Tensor) -> Tensor:
        """The rows as they are stored."""
        flat = ids.reshape(-1)
        return dequantize(self.packed.rows(flat), self.dtype).reshape(*ids.shape, self.embedding_dim)


class PackedConv(PackedLayer):
    """``nn.Conv1d/2d/3d`` with a packed weight."""

    def __init__(self, layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, packed: Packed) -> None:
        super().__init__(packed, computes(layer))
        self.in_channels, self.out_channels, self.groups = layer.in_channels, layer.out_channels, layer.groups
        self.kernel_size, self.stride, self.padding, self.dilation = (
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
        )
        self.padding_mode = layer.padding_mode
        self._pad = layer._reversed_padding_repeated_twice
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Dequantize and convolve."""
        with self.unpacked(x) as weight:
            return self.convolve(x, weight)

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """The convolution with a given weight."""
        conv: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[weight.dim() - 3]
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            x = F.pad(x, self._pad, mode=self.padding_mode)
            padding = 0
        return conv(x, weight, self.bias, self.stride, padding, self.dilation, self.groups)


class PackedExperts(Stacked, PackedLayer):
    """:class:`~compresskit.ops.packed.experts.Experts` with a packed weight; one expert alone is dequantized alone."""

    def __init__(self, layer: Experts, packed: Packed) -> None:
        super().__init__(packed, computes(layer))
        self.shape = layer.shape

    @property
    def packed(self) -> Packed:
        """The weight as stored, as the matrix that the layer had."""
        return self._packed((self.shape[0] * self.shape[1], self.shape[2]))

    def __getitem__(self, index: Any) -> Tensor:
        """Those experts."""
        if isinstance(index, Tensor) and index.dim():
            return super().__getitem__(index)
        rows = self.shape[1]
        part = slice(int(index) * rows, (int(index) + 1) * rows)
        return dequantize(self.packed.rows(part, self.shape[1:]), self.dtype)


_PACKED: dict[type[nn.Module], type[PackedLayer]] = {
    Experts: PackedExperts,
    nn.Linear: PackedLinear,
    nn.Embedding: PackedEmbedding,
    nn.Conv1d: PackedConv,
    nn.Conv2d: PackedConv,
    nn.Conv3d: PackedConv,
}


def packable(layer: nn.Module) -> str | None:
    """None when a packed twin of the layer exists, else the reason why not.

    Subclasses are refused, but for embeddings that scale their rows: their ``forward`` may use the weight in ways that
    a packed layer can't follow.
    """
    if _kind(layer) not in _PACKED:
        return f"{type(layer).__name__} has no packed form"
    if isinstance(layer, nn.Embedding) and layer.max_norm is not None:
        return "Embedding with max_norm changes its weight in forward"
    if nn.utils.parametrize.is_parametrized(layer) or "weight" not in layer._parameters:
        return "its weight is computed (parametrized)"
    return None


def packed_twin(layer: nn.Module, packed: Packed) -> PackedLayer:
    """The packed layer that takes the place of ``layer``."""
    return _PACKED[_kind(layer)](layer, packed)  # type: ignore[arg-type]


def _kind(layer: nn.Module) -> type[nn.Module]:
    return nn.Embedding if _is_scaled(layer) else type(layer)


def _is_scaled(layer: nn.Module) -> bool:
    """True for transformers' embeddings that multiply their rows by ``embed_scale``."""
    named = type(layer).__name__.endswith("ScaledWordEmbedding")
    return isinstance(layer, nn.Embedding) and named and hasattr(layer, "embed_scale")


def layer_of_card(root: nn.Module, name: str, what: str) -> nn.Module:
    """The submodule that a card names.

    Args:
        root: The architecture.
        name: Dotted.
        what: What was done to the layer, for the error: ``"was pruned"``.

    Raises:
        InputError: There is none.
    """
    try:
        if name:
            return root.get_submodule(name)
    except AttributeError:
        pass
    raise InputError(f"the architecture has no layer '{name}', which {what}", "check `arch` and `arch_args`")


def set_module(root: nn.Module, name: str, new: nn.Module) -> None:
    """Replace the submodule called ``name`` (dotted).

    ``nn.TransformerEncoderLayer`` reads its layers' weights without calling them where it can (its fast path). Where
    the weight alone isn't all that ``new`` computes, the holders of that kind are told to call their layers.

    Raises:
        ValueError: ``name`` is empty: a module can't replace itself in itself.
    """
    if not name:
        raise ValueError("the root module can't be replaced")
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, new)
    if not _weight_says_all(new):
        parts = name.split(".")
        for depth in range(len(parts)):
            holder = root.get_submodule(".".join(parts[:depth]))
            if isinstance(holder, nn.TransformerEncoderLayer):
                holder.activation_relu_or_gelu = 0
            elif isinstance(holder, nn.TransformerEncoder):
                holder.use_nested_tensor = False  # nested tensors need the fast path in every layer


def _weight_says_all(layer: nn.Module) -> bool:
    """True where code that reads ``weight`` and ``bias`` instead of calling the layer computes the same."""
    if isinstance(layer, PackedLinear):
        return layer.input_scale is None and layer.repair_in is None
    return isinstance(layer, PackedLayer) or type(layer).__module__.startswith("torch.nn.")


def same_tensor(tensor: Tensor) -> tuple[Any, ...]:
    """What two tensors have in common when they are the same values read the same way; an address alone may be a view.

    On the meta device, where nothing has an address, it is the tensor itself. Tensors without elements may all stand at
    address 0: callers leave them out.
    """
    if tensor.is_meta:
        return (id(tensor),)
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype
