"""What a transformers config must say of a model that lost layers or neurons, proven by building the model from it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from compresskit.errors import InputError
from compresskit.ops.prune.same import same

_DEPTHS = ("num_hidden_layers", "num_layers", "encoder_layers", "decoder_layers", "num_decoder_layers")


def with_fewer_layers(module: nn.Module, of: int, kept: Sequence[int]) -> dict[str, Any]:
    """The entries of ``config.json`` that describe a model with fewer layers.

    Args:
        module: A transformers model that lost them; its ``config`` is changed to describe it.
        of: How many layers it had.
        kept: Numbers of those it still has.

    Returns:
        Keys as the file has them, and their new values.

    Raises:
        InputError: No config of its class describes it.
    """
    config: Any = module.config
    lists = {
        name: [value[index] for index in kept]
        for name, value in config.to_dict().items()
        if isinstance(value, list) and len(value) == of and not name.startswith("_")
    }
    for name in _DEPTHS:
        if getattr(config, name, None) == of:
            for parts in (lists, {}):
                changes = {name: len(kept), **parts}
                if _describes(changed(config, changes), module):
                    return _settle(module, changes)
    raise InputError(
        f"no config of {type(module).__name__} describes it with {len(kept)} of {of} layers in this row",
        "drop blocks of a model that is given by `arch`, or prune `method` structured",
    )


def with_sizes(module: nn.Module, sizes: Mapping[str, int]) -> dict[str, Any]:
    """The entries of ``config.json`` that describe a model with other sizes; its ``config`` is changed to say so.

    Raises:
        InputError: A model of its class isn't the given one under these sizes.
    """
    if not _describes(changed(module.config, sizes), module):
        raise InputError(f"no config of {type(module).__name__} describes it with {dict(sizes)}")
    return _settle(module, dict(sizes))


def changed(config: Any, changes: Mapping[str, Any]) -> Any:
    """A copy of a config with other values; sizes first, since lists may be checked against them."""
    found = copy.deepcopy(config)
    for name, value in sorted(changes.items(), key=lambda item: isinstance(item[1], list)):
        setattr(found, name, value)
    return found


def accepts(config: Any, changes: Mapping[str, Any]) -> bool:
    """True where a config's own checks let other values pass: the width as a multiple of the heads, say."""
    validate = getattr(changed(config, changes), "validate", None)
    try:
        if validate is not None:
            validate()
    except Exception:  # of transformers' own kinds
        return False
    return True


@torch.no_grad()
def check_config(module: nn.Module, run: Callable[[nn.Module], Any]) -> None:
    """Build the model anew from its config, with the same tensors, and compare its output with the module's own.

    Args:
        module: A transformers model in eval mode.
        run: Calls a module with some input.

    Raises:
        InputError: They differ: the class does something that its config doesn't tell.
    """
    import transformers

    no_init = getattr(getattr(transformers, "initialization", None), "no_init_weights", contextlib.nullcontext)
    with no_init():
        twin: Any = type(module)(copy.deepcopy(module.config)).eval()
    twin.load_state_dict(module.state_dict(), assign=True)
    twin.tie_weights()
    if not same(run(module), run(twin)):
        raise InputError(
            f"{type(module).__name__} computes something else when it is built from its changed config",
            "prune other parts of it",
        )


def _describes(config: Any, module: nn.Module) -> bool:
    """True where a model built from a config has the names and shapes of a module."""
    try:
        with torch.device("meta"):
            built = type(module)(config)
    except Exception:  # a config that its class refuses
        return False
    return {n: t.shape for n, t in built.state_dict().items()} == {n: t.shape for n, t in module.state_dict().items()}


def _settle(module: nn.Module, changes: dict[str, Any]) -> dict[str, Any]:
    config: Any = module.config
    for name, value in sorted(changes.items(), key=lambda item: isinstance(item[1], list)):
        setattr(config, name, value)
    return {config.attribute_map.get(name, name): value for name, value in changes.items()}
