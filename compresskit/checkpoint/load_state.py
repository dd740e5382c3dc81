"""Tensors into a module: every name accounted for, every shape checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from compresskit.checkpoint.state_dict_keys import match_keys
from compresskit.checkpoint.tensors import Tensors
from compresskit.errors import InputError, listing

if TYPE_CHECKING:
    import torch
    from torch import nn

_WIDE = ("float", "bfloat", "complex")


def load_into(module: nn.Module, tensors: Tensors) -> list[str]:
    """Load a module's whole state and put it into eval mode.

    Values are cast to the module's dtypes (fp16, bf16 and fp64 files load into an fp32 module). A name of a tied
    parameter suffices for all of them. On a module of the meta device the file map's tensors take the parameters'
    place without a copy; otherwise they are copied into it.

    Args:
        module: The module; changed in place.
        tensors: The tensors; wrappers' prefixes on either side are matched.

    Returns:
        Names of tensors that lie outside of the module: beside the wrapper that held it.

    Raises:
        InputError: Names missing or left over, a shape or a kind of number that doesn't fit; nothing was loaded then.
    """
    state: dict[str, torch.Tensor] = module.state_dict(keep_vars=True)
    wanted = {name: value for name, value in state.items() if not name.endswith("_extra_state")}
    names = match_keys(tensors.names(), wanted)
    # Older versions of a class save buffers that newer ones compute (position_ids): those are computed, not loaded.
    computed = {name for name, _ in module.named_buffers()} - set(wanted)
    found = {new: old for old, new in names.items() if new not in computed}
    _check_names(tensors, wanted, found)
    _check_shapes(tensors, wanted, found)
    on_meta = any(value.is_meta for value in wanted.values())
    chosen = {new: tensors.get(old) for new, old in found.items()}
    if on_meta:
        chosen = {new: value.to(wanted[new].dtype) for new, value in chosen.items()}
        for group in _tied(wanted):
            given = next((name for name in group if name in chosen), None)
            if given is not None:
                chosen.update(dict.fromkeys(group, chosen[given]))
    _load(module, chosen, assign=on_meta, tensors=tensors)
    if on_meta:
        _tie_again(module, wanted)
    module.eval()
    return [name for name in tensors.names() if name not in names]


def _load(module: nn.Module, chosen: dict[str, torch.Tensor], *, assign: bool, tensors: Tensors) -> None:
    try:
        module.load_state_dict(chosen, strict=False, assign=assign)
    except MemoryError:
        raise
    except Exception as error:  # hooks of the user's module may raise anything
        raise InputError(
            f"{tensors.source} does not load into {type(module).__name__}: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _check_names(tensors: Tensors, wanted: Mapping[str, torch.Tensor], found: Mapping[str, str]) -> None:
    covered = set(found)
    for group in _tied(wanted):
        if covered.intersection(group):
            covered.update(group)
    # Checkpoints of before torch 0.4.1 lack this counter; BatchNorm uses it only to train without momentum.
    missing = [n for n in wanted if n not in covered and not n.endswith("num_batches_tracked")]
    unexpected = [old for new, old in found.items() if new not in wanted]
    if not missing and not unexpected:
        return
    parts = []
    if missing:
        parts.append(f"{len(missing)} of {len(wanted)} are missing: {listing(missing)}")
    if unexpected:
        parts.append(f"{len(unexpected)} were not expected: {listing(unexpected)}")
    raise InputError(
        f"the tensors of {tensors.source} are not those of this architecture; {'; '.join(parts)}",
        "check `arch` and `arch_args`",
    )


def _check_shapes(tensors: Tensors, wanted: Mapping[str, torch.Tensor], found: Mapping[str, str]) -> None:
    from torch.nn.parameter import is_lazy

    for new, old in found.items():
        target = wanted[new]
        if is_lazy(target):
            continue
        expected, have = tuple(target.shape), tensors.shape(old)
        if expected != have and not (expected == () and have == (1,)):
            raise InputError(
                f"{tensors.source}: the tensor '{old}' is {list(have)}, the architecture expects {list(expected)}",
                "check `arch` and `arch_args`",
            )
        stored = tensors.dtype_name(old)
        inexact = target.dtype.is_floating_point or target.dtype.is_complex
        if stored.startswith(_WIDE) != inexact or (stored.startswith("complex") and not target.dtype.is_complex):
            raise InputError(
                f"{tensors.source}: the tensor '{old}' is of {stored}, the architecture expects {str(target.dtype)[6:]}"
            )


def _tied(wanted: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """Names that are one and the same parameter."""
    groups: dict[int, list[str]] = {}
    for name, value in wanted.items():
        groups.setdefault(id(value), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _tie_again(module: nn.Module, before: Mapping[str, torch.Tensor]) -> None:
    """Assigning gave each name a parameter of its own: make tied names one again."""
    for group in _tied(before):
        parent, _, leaf = group[0].rpartition(".")
        shared = getattr(module.get_submodule(parent), leaf)
        for name in group[1:]:
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, shared)
