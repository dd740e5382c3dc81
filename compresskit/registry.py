"""The kinds and methods there are, by name: built-ins and those that installed packages offer. Imports no torch.

A plugin is a package with an entry point in the group ``compresskit.stages``:
``"quantize.mine" = "package.module:Class"``. What stands before the dot is a kind: a built-in one, or one that the
class declares.
"""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from compresskit import kinds
from compresskit.errors import MachineError, UsageError

if TYPE_CHECKING:
    from compresskit.stage import Stage

GROUP = "compresskit.stages"
BUILT_IN = {f"{kind.name}.{method}": row for kind in kinds.BUILT_IN for method, row in kind.methods.items()}
_KINDS = {kind.name: kind for kind in kinds.BUILT_IN}


@cache
def rows() -> dict[str, str]:
    """Name to ``module:Class``, built-ins first; a plugin can't replace one."""
    from importlib.metadata import entry_points

    plugins = {point.name: point.value for point in entry_points(group=GROUP)}
    return BUILT_IN | {name: plugins[name] for name in sorted(plugins) if name not in BUILT_IN}


def get(name: str) -> type[Stage]:
    """The class of one method.

    Raises:
        UsageError: No such method; the nearest name is given.
        MachineError: A plugin's can't be imported, or doesn't declare what a method must.
    """
    if name not in rows():
        near = get_close_matches(name, rows(), 1)
        raise UsageError(
            f"there is no method '{name}'", f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(rows())}"
        )
    if name in BUILT_IN:
        return _imported(BUILT_IN[name])
    try:
        found = _imported(rows()[name])
        _check(name, found)
    except Exception as error:  # a package of somebody else's, which may fail in any way
        raise MachineError(
            f"the plugin {name} ({rows()[name]}) can't be used: {type(error).__name__}: {error}",
            "fix or remove the package that provides it",
        ) from error
    return found


def methods(kind: str) -> list[str]:
    """The methods of a kind, built-ins first."""
    return [name.partition(".")[2] for name in rows() if name.partition(".")[0] == kind]


def kind_names() -> list[str]:
    """The kinds there are, in the order in which they make sense, those of plugins last."""
    return list(dict.fromkeys(name.partition(".")[0] for name in rows()))


def kind(name: str) -> kinds.Kind | None:
    """The kind of that name; None where no method of it is installed.

    Raises:
        MachineError: It is a plugin's that can't be used.
    """
    if name in _KINDS:
        return _KINDS[name]
    known = methods(name)
    return get(f"{name}.{known[0]}").kind if known else None


def _imported(row: str) -> type[Stage]:
    module, _, attribute = row.partition(":")
    found: type[Stage] = getattr(import_module(module), attribute)
    return found


def _check(name: str, found: type[Stage]) -> None:
    """Hold a plugin's class to the name of its entry point.

    Raises:
        TypeError: It isn't a stage's, has another name, or a kind of its own where there is one of that name.
    """
    from compresskit.stage import Stage

    if not (isinstance(found, type) and issubclass(found, Stage)):
        raise TypeError("it is not a subclass of compresskit.stage.Stage")
    if "method" not in vars(found):
        raise TypeError("the class declares no method")
    if found.name() != name:
        raise TypeError(f"the class is of {found.name()}")
    known = _KINDS.get(found.kind.name)
    if known is not None and known is not found.kind:
        raise TypeError(f"there is a kind {known.name} already: declare kind = compresskit.kinds.{known.name.upper()}")
