"""A space in a file: what ``compress`` may try, as its user writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compresskit import registry
from compresskit.errors import UsageError
from compresskit.recipe import tree
from compresskit.recipe.problems import Problems
from compresskit.search.space import NONE, Choice, Slot, Space
from compresskit.stage import Tunable

_RANGE = ("from", "to", "step", "log")


def read_space(path: Path) -> Space:
    """Read a file that says what may be tried.

    Raises:
        UsageError: With everything that is wrong.
        InputError: It can't be read.
    """
    from compresskit.recipe.including import read

    problems = Problems()
    root = read(path, problems)
    problems.raise_any()
    return space_of(None if root is None else root.plain(), str(path))


def space_of(document: Any, name: str = "the space") -> Space:
    """A space from a mapping that :meth:`Space.document` gave.

    Raises:
        UsageError: It is none.
    """
    steps = document.get("steps") if isinstance(document, dict) else None
    if not isinstance(document, dict) or not isinstance(steps, list) or not steps or len(document) > 1:
        raise UsageError(f"{name}: expected steps, a list; `dry_run` without `space` prints an example")
    return Space(tuple(_slot(step, f"{name}: steps[{place}]") for place, step in enumerate(steps)))


def _slot(step: Any, where: str) -> Slot:
    if isinstance(step, dict) and "one-of" in step:
        options = step["one-of"]
        if len(step) > 1 or not isinstance(options, list) or not options:
            raise UsageError(f"{where}: expected one-of and a list of methods")
        found = tuple(None if o == NONE else _choice(o, where) for o in options)
        if all(choice is None for choice in found):
            raise UsageError(f"{where}: names no method, as quantize.auto")
        return Slot(found)
    return Slot((_choice(step, where),))


def _choice(found: Any, where: str) -> Choice:
    step = {found: {}} if isinstance(found, str) else found
    named = [key for key in step if key != "preview"] if isinstance(step, dict) else []
    if len(named) != 1:
        raise UsageError(f"{where}: expected a method with its options, found {tree.shown(found)}")
    method, given = named[0], step[named[0]] or {}
    stage = registry.get(method)
    if not isinstance(given, dict):
        raise UsageError(f"{where}.{method}: expected options, found {tree.shown(given)}")
    options: dict[str, Any] = {}
    for key, value in given.items():
        name = str(key).replace("-", "_")
        if name not in stage.model_fields:
            raise UsageError(f"{where}.{method}: there is no option '{key}'")
        ranged = isinstance(value, dict) and set(value) & {"from", "to", "any-of"}
        options[name] = _range(value, f"{where}.{method}.{key}") if ranged else value
    ranges = {name: value for name, value in options.items() if isinstance(value, Tunable)}
    fixed = {name: value for name, value in options.items() if name not in ranges}
    preview = step.get("preview", stage.searched.preview if stage.searched and "preview" not in step else {})
    if preview is not None and preview != "skip" and not isinstance(preview, dict):
        raise UsageError(f"{where}.{method}.preview: expected options or skip, found {tree.shown(preview)}")
    shown = None if preview in (None, "skip") else {str(k).replace("-", "_"): v for k, v in preview.items()}
    return Choice(method, fixed, ranges, shown)


def _range(value: dict[str, Any], where: str) -> Tunable:
    if "any-of" in value:
        if len(value) > 1 or not isinstance(value["any-of"], list) or not value["any-of"]:
            raise UsageError(f"{where}: expected any-of and a list of values")
        return Tunable(choices=tuple(value["any-of"]))
    low, high, step = value.get("from"), value.get("to"), value.get("step")
    numbers = all(
        isinstance(n, (int, float)) and not isinstance(n, bool) for n in (low, high, 1 if step is None else step)
    )
    if set(value) - set(_RANGE) or not numbers or low is None or high is None or not low <= high or (step or 1) <= 0:
        raise UsageError(f"{where}: expected from, to, and step or log, found {tree.shown(value)}")
    return Tunable(low, high, step, bool(value.get("log", False)))
