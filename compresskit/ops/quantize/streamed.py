"""Weights of a module on the meta device: read from a checkpoint one by one, and written as soon as they are packed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from compresskit.checkpoint.shard_writer import ShardWriter
from compresskit.checkpoint.tensors import Tensors, stored_dtype
from compresskit.ops.packed.experts import Experts
from compresskit.ops.packed.grid import Packed
from compresskit.ops.packed.modules import PackedLayer
from compresskit.ops.prune.rewrite import is_conv1d
from compresskit.ops.quantize.weights import Weights, parts_of

Parts = Callable[[Packed], Mapping[str, Tensor]]


class StreamedWeights(Weights):
    """Holds one weight, and the packed ones that wait for their shard to be full.

    Args:
        module: On the meta device.
        tensors: Its values, by its names.
        writer: Where all of them go.
        parts: What is stored of a packed weight, under the layer's name.
    """

    def __init__(self, module: nn.Module, tensors: Tensors, writer: ShardWriter, parts: Parts = parts_of) -> None:
        self._module, self._tensors, self._writer, self._parts = module, tensors, writer, parts
        self._layers: dict[str, list[str]] = {}
        self._turned = {name for name, layer in module.named_modules() if is_conv1d(layer)}

    def get(self, name: str, layer: nn.Module) -> Tensor:
        """See :class:`Weights`."""
        if isinstance(layer, Experts):
            return self._tensors.get(name).reshape(layer.weight.shape)
        value = self._tensors.get(f"{name}.weight")
        return value.t().contiguous() if name in self._turned else value

    def release(self) -> None:
        """See :class:`Weights`."""
        self._tensors.release()

    def keep(self, name: str, packed: Packed) -> Packed:
        """See :class:`Weights`; the module gets the shapes alone."""
        parts = self._parts(packed)
        self._layers[name] = [f"{name}.{part}" for part in parts]
        for part, tensor in parts.items():
            self._writer.add(f"{name}.{part}", tensor)
        return packed.to("meta")

    def finish(self, half: str | None) -> Path:
        """Write what wasn't quantized, and the index.

        Args:
            half: See :class:`~compresskit.model.Model`.

        Returns:
            What :meth:`~compresskit.checkpoint.shard_writer.ShardWriter.finish` does.
        """
        order: list[str] = []
        seen: set[int] = set()
        packed = {name for name, layer in self._module.named_modules() if isinstance(layer, PackedLayer)}
        for name, value in self._module.state_dict(keep_vars=True).items():
            layer, _, leaf = name.rpartition(".")
            if layer in packed and leaf != "bias":
                order += self._layers.pop(layer, [])
            elif id(value) not in seen:
                seen.add(id(value))
                order.append(name)
                stored = self._tensors.get(name)
                if str(stored.dtype) != f"torch.{half}":
                    stored = stored.to(value.dtype)
                    stored = stored.to(stored_dtype(stored, half))
                if self._writer.add(name, stored):
                    self._tensors.release()
        path = self._writer.finish(order)
        self._tensors.release()
        return path
