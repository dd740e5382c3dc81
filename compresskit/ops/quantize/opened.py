"""Weights that lie elsewhere than in a layer of torch's own, as such layers while a module is quantized.

transformers' ``Conv1D`` (GPT-2) is a Linear whose weight is ``(in, out)``. Mixtures of experts keep the weights of all
experts of a block in one parameter of three axes, ``(experts, rows, columns)``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from compresskit.facts.quantize import PackedFacts
from compresskit.ops.packed.experts import Experts
from compresskit.ops.prune.rewrite import conv1d_to_linear, linear_to_conv1d


@contextmanager
def opened(module: nn.Module) -> Iterator[None]:
    """Conv1D are Linear and fused experts are layers; what nobody replaced is as before in the end.

    Args:
        module: Any module; what it computes stays. May be opened already.
    """
    conv1d, experts = conv1d_to_linear(module), list(fused_experts(module))
    open_experts(module, experts)
    try:
        yield
    finally:
        linear_to_conv1d(module, [name for name in conv1d if type(module.get_submodule(name)) is nn.Linear])
        for name in experts:
            layer = module.get_submodule(name)
            if isinstance(layer, Experts):
                parent, _, leaf = name.rpartition(".")
                holder = module.get_submodule(parent)
                del holder._modules[leaf]
                holder.register_parameter(leaf, nn.Parameter(layer.tensor.detach()))


def open_recorded(module: nn.Module, layers: Mapping[str, PackedFacts]) -> None:
    """Open those that a card says were quantized as such layers."""
    known = {name for name, fact in layers.items() if fact.kind == nn.Linear.__name__}
    conv1d_to_linear(module, list(known))
    open_experts(module, [name for name in fused_experts(module) if name in layers])


def open_experts(module: nn.Module, names: Iterable[str]) -> None:
    """Put a layer in the place of each parameter of fused experts, which shares its values."""
    for name in names:
        parent, _, leaf = name.rpartition(".")
        holder = module.get_submodule(parent)
        parameter = holder._parameters.pop(leaf)
        if parameter is None:
            raise ValueError(f"{name} is no parameter")
        holder.add_module(leaf, Experts(parameter))


def fused_experts(module: nn.Module) -> dict[str, Tensor]:
    """Parameters that hold the weights of more than one expert."""
    return {
        f"{prefix}.{leaf}": parameter
        for prefix, layer in module.named_modules()
        if prefix and type(layer).__name__.endswith("Experts")
        for leaf, parameter in layer._parameters.items()
        if parameter is not None and parameter.dim() == 3 and parameter.is_floating_point() and 0 not in parameter.shape
    }
