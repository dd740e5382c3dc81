"""Bottleneck adapters: after a layer, down to a few numbers, through a ReLU, up again and added.

"Parameter-Efficient Transfer Learning for NLP" (Houlsby et al., 2019, arXiv:1902.00751), in the place that
"AdapterFusion" (Pfeiffer et al., 2021, arXiv:2005.00247) found enough: after the layers that bring a wide part back to
the width of the model. Left out: the layer norm and the fusion.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compresskit.ops.lora.adapter import Term, adapted, attach, sizes
from compresskit.ops.lora.folder import BOTTLENECK


def narrowing(module: nn.Module, layers: Sequence[str]) -> list[str]:
    """Of some linear layers, those with fewer outputs than inputs; all of them where there are none."""
    found = []
    for name in layers:
        inputs, outputs = sizes(module.get_submodule(name))
        if outputs < inputs:
            found.append(name)
    return found or list(layers)


def add_bottlenecks(module: nn.Module, layers: Sequence[str], width: int, seed: int) -> None:
    """Put fresh bottlenecks after linear layers, in place; the model computes what it did, and only they are trained.

    Args:
        module: Any module.
        layers: Names of linear layers.
        width: Numbers between down and up, 1 or more.
        seed: Of the start.
    """
    generator = torch.Generator().manual_seed(seed)
    terms = {}
    for name in layers:
        _, outputs = sizes(module.get_submodule(name))
        down = torch.randn(width, outputs, generator=generator) * outputs**-0.5
        terms[name] = Term(down, torch.zeros(outputs, width), serial=True)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    attach(module, terms)
    for layer in adapted(module).values():
        layer.adapter.requires_grad_(True)


def bottleneck_tensors(terms: dict[str, Term]) -> dict[str, Tensor]:
    """As an adapter's folder stores them."""
    found: dict[str, Tensor] = {}
    for name, term in terms.items():
        if term.down is not None and term.up is not None:
            found |= {f"{name}.bottleneck_down": term.down, f"{name}.bottleneck_up": term.up}
    return found


def bottleneck_config(layers: Sequence[str], width: int, base: str) -> dict[str, object]:
    """The config that goes with them; PEFT has no such kind and says so."""
    return {"peft_type": BOTTLENECK, "r": width, "target_modules": list(layers), "base_model_name_or_path": base}
