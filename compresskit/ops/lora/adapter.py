"""What an adapter adds to one layer, and layers that hold it beside their weight.

Whatever trained it, an adapter is kept in one form: ``gain · (layer(before · x) + up(down(before · x))) + shift``.
LoRA (Hu et al., 2021, arXiv:2106.09685) and its kin are ``down`` and ``up``, DoRA adds ``gain`` and ``shift``, IA³ is a
``gain`` or a ``before`` alone. All of these are linear and can be merged. A bottleneck (``serial``) is not: it adds
``up(relu(down(y)))`` to the layer's output ``y``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresskit.errors import InputError, UsageError, listing
from compresskit.facts import to_json
from compresskit.facts.lora import AdapterFacts, Part
from compresskit.ops.packed.modules import PackedLayer, PackedLinear, set_module

PARTS: tuple[Part, ...] = get_args(Part)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Term:
    """The tensors of one layer's adapter, float32.

    Attributes:
        down: ``(rank, in)``; of a convolution ``(rank, in, *kernel)``; of a bottleneck ``(rank, out)``. None for none.
        up: ``(out, rank)``; of a convolution ``(out, rank, 1, …)``. The adapter's scale is in it.
        gain: ``(out,)``, a factor of the output.
        shift: ``(out,)``, added to it.
        before: ``(in,)``, a factor of the input.
        serial: The bottleneck's form.
    """

    down: Tensor | None = None
    up: Tensor | None = None
    gain: Tensor | None = None
    shift: Tensor | None = None
    before: Tensor | None = None
    serial: bool = False

    @property
    def rank(self) -> int:
        """0 where there is no low-rank part."""
        return 0 if self.down is None else self.down.shape[0]

    def tensors(self) -> dict[Part, Tensor]:
        """Those that there are, by name."""
        return {name: tensor for name in PARTS if (tensor := getattr(self, name)) is not None}

    def numel(self) -> int:
        """Numbers in all of them."""
        return sum(tensor.numel() for tensor in self.tensors().values())


class Adapter(nn.Module):
    """A term as parameters; they take no gradients unless told to."""

    down: Tensor | None
    up: Tensor | None
    gain: Tensor | None
    shift: Tensor | None
    before: Tensor | None

    def __init__(self, term: Term) -> None:
        super().__init__()
        self.serial = term.serial
        for name in PARTS:
            tensor = getattr(term, name)
            self.register_parameter(name, None if tensor is None else nn.Parameter(tensor, requires_grad=False))

    @property
    def term(self) -> Term:
        """The tensors, sharing memory."""
        known = {name: None if (t := getattr(self, name)) is None else t.detach() for name in PARTS}
        return Term(**known, serial=self.serial)


class Adapted(nn.Module):
    """A layer's second class, put before its own: the same tensors under the same names, and an adapter."""

    adapter: Adapter

    def forward(self, x: Tensor) -> Tensor:
        """What the layer gives, changed by the adapter."""
        own = self.adapter
        channels = 1 if isinstance(self, _CONVOLUTIONS) else -1
        if own.before is not None:
            x = x * _along(own.before, x, channels)
        out: Tensor = super().forward(x)
        if own.down is not None and own.up is not None:
            out = out + (self._low(F.relu(F.linear(out, own.down)), own.up) if own.serial else self._term(x))
        if own.gain is not None:
            out = out * _along(own.gain, out, channels)
        return out if own.shift is None else out + _along(own.shift, out, channels)

    def _term(self, x: Tensor) -> Tensor:
        own = self.adapter
        if own.down is None or own.up is None:
            raise TypeError("there is no low-rank part")
        if isinstance(self, _CONVOLUTIONS):
            return _pointwise(self._conv_forward(x, own.down, None), own.up)
        return self._low(F.linear(x, own.down), own.up)

    @staticmethod
    def _low(x: Tensor, up: Tensor) -> Tensor:
        return F.linear(x, up)


def _along(values: Tensor, like: Tensor, axis: int) -> Tensor:
    """``(n,)`` so that it meets an axis of a tensor: the last one, or 1 (of images without a batch: the first)."""
    if axis == -1:
        return values
    return values.reshape(-1, *[1] * (like.dim() - 2))


def _pointwise(x: Tensor, up: Tensor) -> Tensor:
    """A convolution of one pixel: ``up`` is ``(out, rank, 1, …)``."""
    return (F.conv1d, F.conv2d, F.conv3d)[up.dim() - 3](x, up)


@cache
def _adapted_class(kind: Any) -> Any:
    return type(f"Adapted{kind.__name__}", (Adapted, kind), {})


def attach(module: nn.Module, terms: Mapping[str, Term]) -> None:
    """Put adapters beside layers, in place. Beside packed weights they are the layer's ``repair``, in float16.

    Args:
        module: Layers of plain kinds (Linear, Conv1d/2d/3d, transformers' Conv1D), or packed linear layers.
        terms: By layer name.

    Raises:
        InputError: A layer isn't there, or its adapter has another shape.
    """
    for name, term in terms.items():
        layer = adaptable(module, name)
        check_shape(name, layer, term)
        if isinstance(layer, PackedLinear):
            _repair(layer, term)
        else:
            set_module(module, name, _with(layer, Adapter(term)))


def _with(layer: nn.Module, adapter: Adapter) -> nn.Module:
    own: Any = type(layer)
    kind = _adapted_class(own)
    found: nn.Module = kind.__new__(kind)
    found.__dict__.update(layer.__dict__)
    found.__dict__["_modules"] = dict(layer._modules)
    found.adapter = adapter.train(layer.training)
    return found


def _repair(layer: PackedLinear, term: Term) -> None:
    if term.down is None or term.up is None or len(term.tensors()) > 2 or term.serial:
        raise InputError("beside packed weights there is a low-rank term, and nothing else")
    down, up = term.down.half(), term.up.half()
    if layer.repair_in is not None and layer.repair_out is not None:
        down, up = torch.cat([layer.repair_in, down]), torch.cat([layer.repair_out, up], 1)
    layer.repair_in, layer.repair_out = down, up


def layer_at(module: nn.Module, name: str) -> nn.Module:
    """A layer by its name.

    Raises:
        InputError: There is none.
    """
    try:
        return module.get_submodule(name)
    except AttributeError:
        raise InputError(
            f"the model has no layer '{name}', which the adapter is for", "is it for this model?"
        ) from None


def adaptable(module: nn.Module, name: str) -> nn.Module:
    """The layer of a name, which an adapter fits.

    Raises:
        InputError: There is none, or it is of another kind.
    """
    layer = layer_at(module, name)
    if not _plain(layer):
        raise InputError(f"'{name}' is a {type(layer).__name__}, which takes no adapter", "is it for this model?")
    return layer


def adapted(module: nn.Module) -> dict[str, Adapted]:
    """The layers with an adapter beside a floating-point weight, by name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, Adapted)}


def detach(module: nn.Module) -> dict[str, Term]:
    """Take the adapters off the layers with floating-point weights, in place; gives them by layer name."""
    found: dict[str, Term] = {}
    for name, layer in adapted(module).items():
        found[name] = layer.adapter.term
        kind: Any = type(layer).__bases__[1]
        plain = kind.__new__(kind)
        plain.__dict__.update(layer.__dict__)
        plain.__dict__["_modules"] = {leaf: child for leaf, child in layer._modules.items() if leaf != "adapter"}
        set_module(module, name, plain)
    return found


@torch.no_grad()
def merge(module: nn.Module, terms: Mapping[str, Term]) -> None:
    """Fold adapters into the weights, in place; computed in float64 and rounded once.

    Raises:
        UsageError: A weight is packed or shared with another layer, or an adapter is a bottleneck.
        InputError: A layer isn't there, or its adapter has another shape.
    """
    for name, term in terms.items():
        layer = layer_at(module, name)
        if isinstance(layer, PackedLayer):
            raise UsageError(
                f"'{name}' is quantized: merging needs requantization",
                "merge into the unquantized model, then quantize; or keep the adapter beside the codes",
            )
        if term.serial:
            raise UsageError(
                f"the adapter of '{name}' is a bottleneck, which is not linear: it can't be merged", "keep it beside"
            )
        check_shape(name, adaptable(module, name), term)
        shared = tied_with(module, name)
        if shared:
            raise UsageError(
                f"'{name}' shares its weight with {listing(shared)}: merging would change both",
                "keep the adapter beside, or leave that layer out with `targets`",
            )
    for name, term in terms.items():
        layer = layer_at(module, name)
        weight, bias = layer.get_parameter("weight"), layer._parameters.get("bias")
        weight.copy_(_merged(layer, term))
        if bias is not None:
            value = bias.double()
            value = value if term.gain is None else value * term.gain.double()
            bias.copy_(value if term.shift is None else value + term.shift.double())
        elif term.shift is not None:
            layer.bias = nn.Parameter(term.shift.to(weight.dtype))


def _merged(layer: nn.Module, term: Term) -> Tensor:
    """The weight in float64, in the layer's own layout."""
    weight = layer.get_parameter("weight").detach().double()
    turned = turns(layer)
    weight = weight.T if turned else weight
    if term.down is not None and term.up is not None:
        rank = term.rank
        weight = weight + (term.up.double().reshape(-1, rank) @ term.down.double().reshape(rank, -1)).reshape(
            weight.shape
        )
    if term.before is not None:
        weight = weight * term.before.double().reshape(1, -1, *[1] * (weight.dim() - 2))
    if term.gain is not None:
        weight = weight * term.gain.double().reshape(-1, *[1] * (weight.dim() - 1))
    return weight.T if turned else weight


def turns(layer: nn.Module) -> bool:
    """True for transformers' Conv1D: a linear layer whose weight is ``(in, out)``."""
    return any(
        kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils" for kind in type(layer).mro()
    )


def sizes(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a layer; channels of a convolution."""
    shape = tuple(layer.shape) if isinstance(layer, PackedLayer) else tuple(layer.get_parameter("weight").shape)
    groups = int(getattr(layer, "groups", 1))
    return (shape[0], shape[1]) if turns(layer) else (shape[1] * groups, shape[0])


def tied_with(module: nn.Module, name: str) -> list[str]:
    """Other layers that share the weight of a layer."""
    weight = layer_at(module, name)._parameters.get("weight")
    return [
        other
        for other, layer in module.named_modules(remove_duplicate=False)
        if other != name and weight is not None and layer._parameters.get("weight") is weight
    ]


def check_shape(name: str, layer: nn.Module, term: Term) -> None:
    """Refuse an adapter that doesn't fit its layer.

    Raises:
        InputError: A tensor has another shape, or the layer takes no adapter.
    """
    inputs, outputs = sizes(layer)
    kernel = tuple(layer.kernel_size) if isinstance(layer, _CONVOLUTIONS) else ()
    rank = term.rank
    wanted = {
        "down": (rank, outputs) if term.serial else (rank, inputs, *kernel),
        "up": (outputs, rank, *[1] * len(kernel)),
        "gain": (outputs,),
        "shift": (outputs,),
        "before": (inputs,),
    }
    for part, tensor in term.tensors().items():
        if tuple(tensor.shape) != wanted[part]:
            raise InputError(
                f"the adapter of '{name}' is {list(tensor.shape)} ({part}), the layer needs {list(wanted[part])}",
                "it was made for another model",
            )


def _plain(layer: nn.Module) -> bool:
    """True for the kinds of layers that an adapter fits."""
    if isinstance(layer, _CONVOLUTIONS) and (layer.groups > 1 or type(layer) not in _CONVOLUTIONS):
        return False
    return (
        type(layer) in (nn.Linear, *_CONVOLUTIONS)
        or isinstance(layer, PackedLinear)
        or type(layer).__name__ == "Conv1D"
    )


def facts_of(terms: Mapping[str, Term]) -> dict[str, dict[str, Any]]:
    """What a card records of adapters that stay beside: enough for :func:`replay`."""
    return {
        name: to_json(AdapterFacts(parts={p: list(t.shape) for p, t in term.tensors().items()}, serial=term.serial))
        for name, term in terms.items()
    }


def replay(module: nn.Module, facts: Mapping[str, AdapterFacts]) -> None:
    """Put empty adapters beside the layers that :func:`facts_of` recorded; their tensors are loaded afterwards.

    Raises:
        InputError: The facts don't fit the architecture.
    """
    terms = {}
    for name, fact in facts.items():
        layer = adaptable(module, name)
        inside = layer.shape if isinstance(layer, PackedLayer) else layer.get_parameter("weight").shape
        if sum(map(math.prod, fact.parts.values())) > 64 * math.prod(inside) + 1024:
            raise InputError(f"the adapter of '{name}' is far larger than its layer: the card is damaged")
        terms[name] = Term(**{part: torch.empty(shape) for part, shape in fact.parts.items()}, serial=fact.serial)
    attach(module, terms)
