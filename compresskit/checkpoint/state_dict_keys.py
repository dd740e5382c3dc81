"""The state dict inside what was saved, and its keys without the wrappers' prefixes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from compresskit.checkpoint.region import Region
from compresskit.errors import InputError, listing

_WRAPPERS = (
    "state_dict", "model_state_dict", "model", "model_state", "net", "network", "weights", "params", "module",
    "generator_state_dict", "ema_state_dict", "model_ema", "state_dict_ema", "params_ema", "ema", "ema_model",
)  # fmt: skip
_TRAINING_PREFIXES = ("module.", "_orig_mod.")
_PREFIXES = (*_TRAINING_PREFIXES, "model.", "net.", "backbone.")
_T = TypeVar("_T")


def find_state_dict(path: Path, saved: Any) -> dict[str, Region]:
    """The tensors by name.

    A wrapper's key (``state_dict``, ``model`` …; an average of weights comes last) wins over tensors that lie beside
    it, such as a saved best accuracy. Entries that are no tensors are left out.

    Args:
        path: For messages.
        saved: Nested dictionaries with regions in them.

    Raises:
        InputError: There is no state dict, or several and nothing says which.
    """
    if isinstance(saved, Region):
        raise InputError(f"{path} holds a single tensor, a state dict was expected")
    if not isinstance(saved, dict):
        raise InputError(f"{path} holds no state dict", "save the weights with torch.save(model.state_dict(), ...)")
    for _ in range(4):
        inner = _inner(path, saved)
        if inner is None:
            break
        saved = inner
    found = {name: value for name, value in saved.items() if isinstance(value, Region)}
    if not found:
        keys = f"its keys are {listing(list(saved))}" if saved else "it is an empty dictionary"
        raise InputError(
            f"{path} holds no tensors: {keys}", "save the weights with torch.save(model.state_dict(), ...)"
        )
    return found


def _inner(path: Path, saved: dict[str, Any]) -> dict[str, Any] | None:
    known: dict[int, bool] = {}
    groups = {name: value for name, value in saved.items() if isinstance(value, dict) and _holds_tensors(value, known)}
    for name in _WRAPPERS:
        if name in groups:
            return groups[name]
    if any(isinstance(value, Region) for value in saved.values()):
        return None
    groups.pop("optimizer", None)
    if len(groups) > 1:
        raise InputError(
            f"{path} holds {len(groups)} groups of tensors: {listing(list(groups))}",
            "save the one that is wanted under the key 'state_dict'",
        )
    return next(iter(groups.values()), None)


def _holds_tensors(value: dict[str, Any], known: dict[int, bool]) -> bool:
    """Whether a tensor is in a dictionary or below it; ``known`` has what was found before, as they may be shared."""
    if id(value) not in known:
        known[id(value)] = False  # until found, also for one that holds itself
        known[id(value)] = any(
            isinstance(item, Region) or (isinstance(item, dict) and _holds_tensors(item, known))
            for item in value.values()
        )
    return known[id(value)]


def strip_training(entries: Mapping[str, _T]) -> dict[str, _T]:
    """The same entries without ``module.`` and ``_orig_mod.`` where every key begins with it, as often as it does."""
    out = dict(entries)
    while out:
        for prefix in _TRAINING_PREFIXES:
            if all(name.startswith(prefix) and name != prefix for name in out):
                out = {name.removeprefix(prefix): value for name, value in out.items()}
                break
        else:
            return out
    return out


def match_keys(names: Iterable[str], expected: Iterable[str]) -> dict[str, str]:
    """Which saved name is which of the module's.

    Wrapper prefixes that all saved names share are taken off, and those that all of the module's names share are put
    on; the reading that covers most names wins, the plainest among equals. ``_orig_mod.`` inside a name (a compiled
    submodule) is ignored.

    Args:
        names: The saved names.
        expected: The names in the module's state dict.

    Returns:
        Saved name to module name, for every saved name; a name that the module lacks is mapped all the same.
    """
    saved, wanted = list(names), set(expected)
    best: dict[str, str] = {name: name for name in saved}
    best_hits = -1
    for strip in _chains(saved):
        for add in _chains(wanted):
            trial = {name: add + name.removeprefix(strip) for name in saved}
            trial = {k: v if v in wanted else _without_compile(v, wanted) for k, v in trial.items()}
            hits = len(wanted.intersection(trial.values()))
            if hits > best_hits and len(set(trial.values())) == len(trial):
                best, best_hits = trial, hits
    return best


def _without_compile(name: str, wanted: set[str]) -> str:
    plain = name.replace("_orig_mod.", "")
    return plain if plain in wanted else name


def _chains(names: Iterable[str]) -> list[str]:
    """The empty prefix, then every chain of known prefixes that all names share, shortest first."""
    left, chain, out = list(names), "", [""]
    while left:
        shared = next((p for p in _PREFIXES if all(n.startswith(p) and n != p for n in left)), None)
        if shared is None:
            return out
        chain += shared
        out.append(chain)
        left = [n.removeprefix(shared) for n in left]
    return out
