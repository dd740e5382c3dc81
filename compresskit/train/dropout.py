"""Dropout, switched off for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

_RATES = ("dropout", "attention_dropout", "attn_dropout", "dropout_prob", "dropout_p")
"""Where layers that drop by themselves keep the rate: recurrent ones, attention."""


@contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """Within it the rates of all dropout in a module are zero; the module may be in train mode.

    A rate that user code has written into its ``forward`` is out of reach.
    """
    found: list[tuple[nn.Module, str]] = [(layer, "p") for layer in module.modules() if isinstance(layer, _DropoutNd)]
    found += [(layer, n) for layer in module.modules() for n in _RATES if isinstance(vars(layer).get(n), float)]
    rates = [vars(layer)[name] for layer, name in found]
    for layer, name in found:
        setattr(layer, name, 0.0)
    try:
        yield
    finally:
        for (layer, name), rate in zip(found, rates, strict=True):
            setattr(layer, name, rate)
