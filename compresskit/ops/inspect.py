"""What a model is made of: parameters, bytes, MACs, dtypes and zeros, layer by layer, as JSON data."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from compresskit.benchmark.feeds import make_feeds
from compresskit.errors import CompressKitError, printable
from compresskit.model import InputSpec
from compresskit.ops.inspect_summary import WEIGHTLESS, summary
from compresskit.ops.macs import count_macs, countable
from compresskit.ops.packed.grid import Packed, dequantize, levels_of, look_up, unpack
from compresskit.ops.packed.modules import PackedLayer

_BLOCK = 1 << 22
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


class TensorFile(Protocol):
    """Named tensors that are read one at a time."""

    def names(self) -> Iterable[str]:
        """All names, in the order of the file."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape, without reading the tensor."""
        ...

    def dtype(self, name: str) -> object:
        """torch's name of the dtype (``float32``), or the dtype itself."""
        ...

    def get(self, name: str) -> Tensor:
        """The tensor."""
        ...


def inspect_module(module: nn.Module, inputs: tuple[InputSpec, ...] = ()) -> dict[str, Any]:
    """A module, one entry a layer that owns tensors.

    Args:
        module: Any module; it is run once in eval mode, and left as it was.
        inputs: What it takes; without them no MACs are counted. Batch 1, sequences of 128.

    Returns:
        ``kind``, ``totals``, ``dtypes`` (bytes by dtype), ``inputs`` (shapes that the MACs hold for), ``layers``,
        ``biggest`` (names by bytes) and ``notes``. A tensor that two layers share is counted in the first; the second
        has ``tied_to``.
    """
    macs, shapes, notes = _try_macs(module, inputs)
    owners: dict[tuple[int, int], str] = {}
    layers = []
    for name, layer in module.named_modules():
        tensors = _own_tensors(layer)
        if not tensors:
            continue
        entry = _packed_entry(layer) if isinstance(layer, PackedLayer) else _plain_entry(layer, tensors)
        entry = {"name": name, "type": type(layer).__name__, **entry, "macs": _layer_macs(layer, name, macs)}
        entry.update(_tie(tensors, owners, entry))
        for tensor, _ in tensors:
            owners.setdefault(_identity(tensor), name)
        layers.append(entry)
    return summary("module", layers, None if macs is None else sum(macs.values()), shapes, notes)


def inspect_tensors(tensors: TensorFile) -> dict[str, Any]:
    """A file of bare tensors, one entry a tensor, read one after the other; the same data as :func:`inspect_module`.

    A name that shares its values with an earlier one (``ties``, where the file knows) is counted once.
    There are no MACs without an architecture. Running statistics of BatchNorm count as bytes, not as parameters.
    """
    layers = []
    ties: dict[str, str] = getattr(tensors, "ties", {})
    for name in tensors.names():
        shape, dtype = tuple(tensors.shape(name)), _dtype_name(tensors.dtype(name))
        count = math.prod(shape)
        tensor = tensors.get(name)
        parameters = 0 if name.rpartition(".")[2] in _BUFFERS else count
        size = count * tensor.element_size()
        entry = {
            "name": name,
            "type": "tensor",
            "shape": list(shape),
            "dtype": dtype,
            "parameters": parameters,
            "bytes": size,
            "zeros": count_zeros(tensor) if parameters else 0,
            "macs": None,
        }
        if name in ties:
            entry |= {"tied_to": ties[name], "tied_bytes": size, "tied_parameters": parameters}
        layers.append(entry)
    return summary("tensors", layers, None, {}, ["MACs need the architecture: give it with `arch`"])


def count_zeros(tensor: Tensor) -> int | None:
    """How many entries are exactly zero; None when the tensor holds no data (meta)."""
    if tensor.is_meta:
        return None
    if tensor.is_floating_point() and tensor.element_size() == 1:  # float8 has no comparison; ±0 is 0x00 and 0x80
        if tensor.dtype is torch.float8_e8m0fnu:
            return 0
        tensor = tensor.view(torch.uint8) & 0x7F
    return tensor.numel() - int(torch.count_nonzero(tensor))


def packed_zeros(packed: Packed) -> int:
    """How many weights stand for exactly zero: code equal to zero point, or a level of zero. Some rows at a time."""
    grid, rows = packed.grid, packed.shape[0]
    columns = math.prod(packed.shape[1:])
    groups, size, _ = grid.layout(columns)
    total = 0
    step = max(1, _BLOCK // max(columns, 1))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        codes = unpack(packed.codes[part], grid.bits, size)
        if grid.two_level is not None:
            same = dequantize(packed.rows(part)) == 0
        elif packed.levels is not None:
            same = look_up(levels_of(packed.rows(part)), codes) == 0
        elif packed.zeros is None:
            same = codes == grid.middle
        else:
            same = codes == unpack(packed.zeros[part], grid.bits, groups).unsqueeze(-1)
        total += int(same.flatten(1)[:, :columns].sum())
    return total


def _try_macs(
    module: nn.Module, inputs: tuple[InputSpec, ...]
) -> tuple[dict[str, int] | None, dict[str, list[int]], list[str]]:
    if not inputs:
        return None, {}, ["MACs need the shape of the input: give it with `input_shape`"]
    try:
        feeds = make_feeds(inputs)
        shapes = {name: list(array.shape) for name, array in feeds.items()}
        # One input may have any name: by position it fits every forward.
        return count_macs(module, feeds if len(feeds) > 1 else list(feeds.values())), shapes, [WEIGHTLESS]
    except CompressKitError as error:
        return None, {}, [f"MACs were not counted: {error.message}"]
    except Exception as error:  # the module's own code may raise anything
        return None, {}, [f"MACs were not counted, the model failed: {type(error).__name__}: {printable(error, 200)}"]


def _own_tensors(layer: nn.Module) -> list[tuple[Tensor, bool]]:
    """The layer's own tensors that a checkpoint stores; True for parameters."""
    out: list[tuple[Tensor, bool]] = [(tensor, True) for tensor in layer._parameters.values() if tensor is not None]
    for name, tensor in layer._buffers.items():
        if tensor is not None and name not in layer._non_persistent_buffers_set:
            out.append((tensor, False))
    return out


def _tie(
    tensors: list[tuple[Tensor, bool]], owners: dict[tuple[int, int], str], entry: dict[str, Any]
) -> dict[str, Any]:
    """The owner of the tensors that an earlier layer has already, and how much of the entry they make up."""
    shared = [(tensor, is_parameter) for tensor, is_parameter in tensors if _identity(tensor) in owners]
    if not shared:
        return {}
    whole = len(shared) == len(tensors)
    return {
        "tied_to": owners[_identity(shared[0][0])],
        "tied_bytes": sum(_bytes(tensor) for tensor, _ in shared),
        "tied_parameters": entry["parameters"]
        if whole
        else sum(t.numel() for t, is_parameter in shared if is_parameter),
    }


def _plain_entry(layer: nn.Module, tensors: list[tuple[Tensor, bool]]) -> dict[str, Any]:
    parameters = [tensor for tensor, is_parameter in tensors if is_parameter]
    main = max(parameters or [tensor for tensor, _ in tensors], key=lambda t: t.numel())
    zeros = [count_zeros(tensor) for tensor in parameters]
    return {
        "shape": list(main.shape),
        "dtype": _dtype_name(main.dtype),
        "parameters": sum(tensor.numel() for tensor in parameters),
        "bytes": sum(_bytes(tensor) for tensor, _ in tensors),
        "zeros": None if None in zeros else sum(zero or 0 for zero in zeros),
    }


def _packed_entry(layer: PackedLayer) -> dict[str, Any]:
    packed, bias = layer.packed, getattr(layer, "bias", None)
    known = not packed.codes.is_meta
    return {
        "shape": list(packed.shape),
        "dtype": packed.grid.dtype,
        "group_size": packed.grid.group_size,
        "parameters": math.prod(packed.shape) + (0 if bias is None else bias.numel()),
        "bytes": packed.nbytes() + (0 if bias is None else _bytes(bias)),
        "zeros": packed_zeros(packed) + ((count_zeros(bias) or 0) if bias is not None else 0) if known else None,
    }


def _layer_macs(layer: nn.Module, name: str, macs: dict[str, int] | None) -> int | None:
    """None: not known. Layers with vectors only (norms), embeddings, and layers that weren't called have none."""
    if macs is None:
        return None
    embedding = isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) or hasattr(layer, "num_embeddings")
    if countable(layer) or embedding or all(p.dim() < 2 for p in layer.parameters(recurse=False)):
        return macs.get(name, 0)
    return None


def _identity(tensor: Tensor) -> tuple[int, int]:
    """The same for two tensors that are one piece of memory."""
    address = 0 if tensor.is_meta else tensor.data_ptr()
    return (address, tensor.numel()) if address else (id(tensor), -1)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _dtype_name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
