"""The state dict inside what was saved, and its keys without the wrappers' prefixes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from compresskit.checkpoint.region import Aside, Region
from compresskit.errors import InputError, UsageError, listing

_WRAPPERS = (
    "state_dict", "model_state_dict", "model", "model_state", "net", "network", "weights", "params", "module",
    "generator_state_dict", "ema_state_dict", "model_ema", "state_dict_ema", "params_ema", "ema", "ema_model",
)  # fmt: skip
_TRAINING = ("optim", "sched")
"""What the names of groups hold that are of the training, not of the model."""
_INNER = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch.compile, FSDP and activation checkpointing put into names, at any place."""
_DATA_PARALLEL = "module."
_PREFIXES = (_DATA_PARALLEL, "model.", "net.", "backbone.")
_AVERAGED = "n_averaged"
"""The counter that ``torch.optim.swa_utils.AveragedModel`` keeps beside its module."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class StateDict:
    """The tensors of one model among all that was saved.

    Attributes:
        entries: Tensors by name.
        taken: Keys that led to them, joined by points; empty where they lie outermost.
        others: Groups of tensors that could have been taken instead, by their keys.
        left: What else was saved and could be tensors, by its keys; optimizer state among it.
    """

    entries: dict[str, Region]
    taken: str = ""
    others: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    def notes(self, path: Path) -> list[str]:
        """What a user must know of the choice."""
        found = []
        if self.others:
            found.append(
                f"the weights of {path.name} are those under '{self.taken}'; `key` takes {listing(list(self.others))}"
            )
        if self.left:
            found.append(f"left out of {path.name}: {listing(list(self.left))}; sizes are of the weights alone")
        return found


def find_state_dict(path: Path, saved: Any, key: str | None = None) -> StateDict:
    """The tensors by name.

    A wrapper's key (``state_dict``, ``model`` …; an average of weights comes last) wins over tensors that lie beside
    it, such as a saved best accuracy. Entries that are no tensors are left out.

    Args:
        path: For messages.
        saved: Nested dictionaries with regions in them.
        key: Of the state dict, where it is to be chosen; keys one inside another are joined by points.

    Raises:
        InputError: There is no state dict, or several and nothing says which.
        UsageError: There is nothing under ``key``.
    """
    if isinstance(saved, Region):
        raise InputError(f"{path} holds a single tensor, a state dict was expected")
    if not isinstance(saved, dict):
        raise InputError(f"{path} holds no state dict", "save the weights with torch.save(model.state_dict(), ...)")
    keys: list[str] = []
    others: list[str] = []
    left: list[str] = []

    def passed_by(groups: Iterable[str]) -> None:
        for group in groups:
            (left if _of_training(group) else others).append(".".join([*keys, group]))

    if key is not None:
        passed_by(group for group in _groups(saved) if not f"{key}.".startswith(f"{group}."))
        saved, keys = _under(path, saved, key), [key]
    for _ in range(4):
        name = _inner(path, saved)
        if name is None:
            break
        passed_by(group for group in _groups(saved) if group != name)
        keys.append(name)
        saved = saved[name]
    found = {name: value for name, value in saved.items() if isinstance(value, Region)}
    if not found:
        keyed = f"its keys are {listing(list(saved))}" if saved else "it is an empty dictionary"
        raise InputError(
            f"{path} holds no tensors: {keyed}", "save the weights with torch.save(model.state_dict(), ...)"
        )
    within = [*_groups(saved), *(name for name, value in saved.items() if isinstance(value, Aside))]
    left += [".".join([*keys, name]) for name in within]
    return StateDict(found, ".".join(keys), tuple(others), tuple(left))


def _under(path: Path, saved: dict[str, Any], key: str) -> dict[str, Any]:
    found: Any = saved
    rest = key
    while isinstance(found, dict) and rest:
        # The longest name that is there: names may hold points themselves.
        name = max((n for n in found if rest == n or rest.startswith(f"{n}.")), key=len, default=None)
        found, rest = (None, "") if name is None else (found[name], rest[len(name) + 1 :])
    if not key or not isinstance(found, dict) or not _holds_tensors(found, {}):
        raise UsageError(f"{path} has no tensors under '{key}'", f"it has {listing(list(_groups(saved)))}")
    return dict(found)


def _groups(saved: dict[str, Any]) -> dict[str, dict[str, Any]]:
    known: dict[int, bool] = {}
    return {name: value for name, value in saved.items() if isinstance(value, dict) and _holds_tensors(value, known)}


def _of_training(name: str) -> bool:
    return any(word in name.lower() for word in _TRAINING)


def _inner(path: Path, saved: dict[str, Any]) -> str | None:
    """The key under which the state dict lies; None where it is this."""
    groups = _groups(saved)
    for name in _WRAPPERS:
        if name in groups:
            return name
    groups = {name: value for name, value in groups.items() if not _of_training(name)}
    beside = {name: value for name, value in saved.items() if isinstance(value, Region)}
    if beside and not (groups and _incidental(beside, groups.values())):
        return None
    if len(groups) > 1:
        raise InputError(
            f"{path} holds {len(groups)} groups of tensors: {listing(list(groups))}",
            "choose one with `key`",
        )
    return next(iter(groups), None)


def _incidental(beside: Mapping[str, Region], groups: Iterable[dict[str, Any]]) -> bool:
    """True for a saved loss and the like: names of no layer, and fewer numbers than a group's own tensors."""
    largest = max(sum(v.numel for v in group.values() if isinstance(v, Region)) for group in groups)
    return not any("." in name for name in beside) and sum(v.numel for v in beside.values()) < largest


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
    """The same entries without what training put into their names.

    ``_orig_mod.`` and the like go wherever they stand, ``module.`` where every key begins with it, as often as it does.
    The counter of an averaged model is no tensor of the module and goes too.
    """
    out = {_plain(name): value for name, value in entries.items()}
    if len(out) < len(entries):  # two names would become one
        return dict(entries)
    while out:
        inside = {name for name in out if name.startswith(_DATA_PARALLEL) and name != _DATA_PARALLEL}
        if not inside or not set(out) - inside <= {_AVERAGED}:
            return out
        out = {name.removeprefix(_DATA_PARALLEL): value for name, value in out.items() if name in inside}
    return out


def _plain(name: str) -> str:
    plain = name
    for wrapper in _INNER:
        plain = plain.replace(wrapper, "")
    return plain or name


def match_keys(names: Iterable[str], expected: Iterable[str]) -> dict[str, str]:
    """Which saved name is which of the module's.

    Wrapper prefixes that all saved names share are taken off, and those that all of the module's names share are put
    on; the reading that covers most names wins, the plainest among equals. Where none covers the module, a prefix of
    some names does if their rest is the whole module: what lacks it lies outside of the module (a loss's weight, the
    counter of an average). What torch.compile, FSDP and activation checkpointing put inside names is ignored.

    Args:
        names: The saved names.
        expected: The names in the module's state dict.

    Returns:
        Saved name to module name, for all but those outside of the module; a name that the module lacks is mapped all
        the same.
    """
    saved, wanted = {name: _plain(name) for name in names}, list(expected)
    best = _reading(saved, wanted, _chains(saved.values()))
    if set(wanted) <= set(best.values()):
        return best
    whole = {}
    for head in dict.fromkeys(plain.partition(".")[0] + "." for plain in saved.values()):
        inside = {name: plain for name, plain in saved.items() if plain.startswith(head) and plain != head}
        trial = _reading(inside, wanted, [head, *_chains(inside.values())])
        if inside and set(wanted) <= set(trial.values()):
            whole[head] = trial
    if len(whole) > 1:
        whole = {head: trial for head, trial in whole.items() if head in _PREFIXES}
    return next(iter(whole.values())) if len(whole) == 1 else best


def _reading(saved: Mapping[str, str], wanted: list[str], strips: Iterable[str]) -> dict[str, str]:
    """Saved name to the module's, under the prefix to take off that covers most of ``wanted``.

    Args:
        saved: The saved names, and each without what stands inside.
        wanted: The module's names.
        strips: Prefixes that all plain saved names share; the first of equals wins.
    """
    table = {_joined(name): name for name in wanted} | {_plain(name): name for name in wanted}
    table |= {name: name for name in wanted}
    best: dict[str, str] = {name: name for name in saved}
    best_hits = -1
    for strip in strips:
        for add in _chains(map(_plain, wanted)):
            plain = {name: add + p.removeprefix(strip) for name, p in saved.items()}
            trial = {name: table.get(p) or table.get(_joined(p), p) for name, p in plain.items()}
            hits = len(set(wanted).intersection(trial.values()))
            if hits > best_hits and len(set(trial.values())) == len(trial):
                best, best_hits = trial, hits
    return best


def _joined(name: str) -> str:
    """A plain name without the ``module.`` of a part that was trained in parallel."""
    return _plain(name).replace(f".{_DATA_PARALLEL}", ".")


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
