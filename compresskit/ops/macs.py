"""How many multiplications a forward pass takes, layer by layer."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from compresskit.ops.packed.experts import unrouted
from compresskit.ops.packed.modules import PackedConv, PackedLayer, PackedLinear


def count_macs(module: nn.Module, feeds: Mapping[str, Any] | Sequence[Any]) -> dict[str, int]:
    """Multiply-accumulates with weights, by the name of the layer, in one forward pass.

    Counted by hooks: Linear, convolutions, recurrent layers, attention projections, and the packed layers. Products
    without weights (attention scores) and elementwise work are left out. A layer that is called twice counts twice.

    Args:
        module: Any module, on the meta device too; its training flags are as before afterwards.
        feeds: Tensors or arrays, by keyword of ``forward`` or in its order; in its order also where it doesn't know
            the names, which data without a name for its one input bring.

    Returns:
        MACs by layer name; layers that weren't called are missing.

    Raises:
        Exception: Whatever the module's ``forward`` raises.
    """
    counts: dict[str, int] = {}
    with ExitStack() as stack:
        stack.enter_context(calling(module))
        for name, layer in module.named_modules():
            if countable(layer):
                handle = layer.register_forward_hook(_counter(counts, name), with_kwargs=True)
                stack.callback(handle.remove)
        device = next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))
        if device.type == "meta":
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            stack.enter_context(unrouted(module))
        if isinstance(feeds, Mapping) and _takes(module, feeds):
            module(**{name: _fed(value, device) for name, value in feeds.items()})
        else:
            module(*(_fed(value, device) for value in (feeds.values() if isinstance(feeds, Mapping) else feeds)))
    return counts


def _fed(value: Any, device: torch.device) -> Tensor:
    if device.type != "meta":
        return torch.as_tensor(value, device=device)
    return torch.empty(value.shape, dtype=getattr(torch, str(value.dtype).removeprefix("torch.")), device=device)


def _takes(module: nn.Module, feeds: Mapping[str, Any]) -> bool:
    """Whether ``forward`` can be called with these keywords."""
    try:
        inspect.signature(module.forward).bind(**feeds)
    except TypeError:
        return False
    return True


def countable(layer: nn.Module) -> bool:
    """True when the layer's MACs follow from its weight and the shapes that it sees."""
    kinds = (nn.Linear, _ConvNd, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, PackedLinear, PackedConv)
    return isinstance(layer, kinds) or _is_conv1d(layer)


def _counter(counts: dict[str, int], name: str) -> Any:
    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        counts[name] = counts.get(name, 0) + layer_macs(layer, [*args, *kwargs.values()], out)

    return hook


def layer_macs(layer: nn.Module, inputs: list[Any], out: Any) -> int:
    """Multiply-accumulates of one call of a countable layer.

    A weight is used once at each position: MACs = positions · size of the weight.
    """
    first = inputs[0]
    if isinstance(layer, nn.MultiheadAttention):
        return _attention_macs(layer, inputs)
    if isinstance(layer, nn.RNNBase):
        data = first if isinstance(first, Tensor) else first.data  # a PackedSequence
        return data.numel() // layer.input_size * sum(p.numel() for p in layer.parameters() if p.dim() == 2)
    if isinstance(layer, nn.RNNCellBase):
        return int(first.numel()) // layer.input_size * sum(p.numel() for p in layer.parameters() if p.dim() == 2)
    if isinstance(layer, _ConvTransposeNd):
        return int(first.numel()) // layer.in_channels * layer.weight.numel()
    if isinstance(layer, PackedLayer):
        return int(out.numel()) // layer.shape[0] * math.prod(layer.shape)
    weight: Any = layer.weight
    outputs = weight.shape[1] if _is_conv1d(layer) else weight.shape[0]
    return int(out.numel()) // int(outputs) * int(weight.numel())


def _attention_macs(layer: nn.MultiheadAttention, inputs: list[Any]) -> int:
    """The four projections; ``out_proj`` is never called as a module, so it is counted here."""
    query, key, value = (int(x.numel()) for x in inputs[:3])
    tokens = query // int(layer.embed_dim)
    width = int(layer.embed_dim)
    return width * (query + key + value + tokens * width)


def _is_conv1d(layer: nn.Module) -> bool:
    """GPT-2's Conv1D of transformers: a Linear with its weight the other way round, ``(in, out)``."""
    return (
        type(layer).__name__ == "Conv1D"
        and hasattr(layer, "nf")
        and getattr(layer, "weight", torch.empty(0)).dim() == 2
    )


@contextmanager
def calling(module: nn.Module) -> Iterator[None]:
    """Eval mode without gradients, and without the fused attention kernels that call no submodule."""
    flags = [(layer, layer.training) for layer in module.modules()]
    fused = torch.backends.mha.get_fastpath_enabled()
    module.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for layer, flag in flags:
            layer.training = flag
