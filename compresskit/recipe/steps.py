"""The steps of a recipe: methods with their options."""

from __future__ import annotations

import types
from dataclasses import replace
from functools import cache
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from compresskit import registry
from compresskit.errors import CompressKitError, UsageError
from compresskit.quality.drop import parse_drop
from compresskit.recipe.addresses import OF_STEP
from compresskit.recipe.including import canonical
from compresskit.recipe.plan import Step
from compresskit.recipe.problems import Problems
from compresskit.recipe.tree import Node, shown
from compresskit.recipe.wording import expected, nearest, said
from compresskit.stage import Stage

MAX_STEPS = 64


def read_steps(steps: Node | None, file: str, problems: Problems) -> list[tuple[Step, Node] | None]:
    """The steps, each with the node of its options; None in the place of one that can't be read.

    Args:
        steps: What stands under ``steps``.
        file: Of the recipe, for what is missing.
        problems: Takes what is wrong.
    """
    if steps is None or steps.value in (None, []):
        problems.add(file, steps.line if steps else 0, "steps: a recipe needs at least one, as steps: [quantize.rtn]")
        return []
    if not isinstance(steps.value, list):
        problems.add(steps.place.name, steps.line, f"steps: expected a list, found {shown(steps.plain())}")
        return []
    if len(steps.value) > MAX_STEPS:
        problems.add(steps.place.name, steps.line, f"steps: {len(steps.value)} steps, at most {MAX_STEPS} are run")
        return []
    return [_step(node, f"steps[{place}]", problems) for place, node in enumerate(steps.value)]


def _step(node: Node, where: str, problems: Problems) -> tuple[Step, Node] | None:
    whole = {node.value: replace(node, value=None)} if isinstance(node.value, str) else node.value
    if not isinstance(whole, dict):
        problems.add(node.place.name, node.line, f"{where}: expected a method, found {shown(node.plain())}")
        return None
    named = [key for key in whole if key in registry.rows() or "." in key]
    about, fine = _about(whole, named, where, problems)
    if len(named) > 1:
        text = f"{' and '.join(named)} are one step: begin the second with a '-' of its own"
        problems.add(node.place.name, whole[named[1]].line, f"{where}: {text}")
        return None
    if not named:
        if fine:
            problems.add(node.place.name, node.line, f"{where}: names no method, as quantize.gptq")
        return None
    cls = _class(named[0], whole[named[0]], where, problems)
    limits = _limits(about, where, problems)
    stage = None if cls is None else _stage(cls, whole[named[0]], f"{where}.{named[0]}", problems)
    if stage is None or limits is None or not fine:
        return None
    return Step(stage, limits[0], limits[1], whole[named[0]].line or node.line), whole[named[0]]


def _about(whole: dict[str, Node], named: list[str], where: str, problems: Problems) -> tuple[dict[str, Node], bool]:
    """The keys beside the method that a step may have; False where others are among them."""
    about: dict[str, Node] = {}
    fine = True
    for key, value in whole.items():
        if key in named:
            continue
        if canonical(key) in OF_STEP and canonical(key) not in about:
            about[canonical(key)] = value
            continue
        fine = False
        problems.add(value.place.name, value.line, f"{where}: {_misplaced(key, named, about)}")
    return about, fine


def _misplaced(key: str, named: list[str], about: dict[str, Node]) -> str:
    if canonical(key) in about:
        return f"'{key}' is given twice"
    if len(named) == 1 and named[0] in registry.rows() and key.replace("-", "_") in registry.get(named[0]).model_fields:
        return f"'{key}' is an option of {named[0]}: indent it further, or write {{{key}: …}} behind the method"
    methods = [row for row in registry.rows() if row.partition(".")[2] == canonical(key)]
    if methods and not named:
        return f"there is no method '{key}'; did you mean '{methods[0]}'?"
    known = [*OF_STEP, *([] if named else registry.rows())]
    return f"'{key}' is not a key of a step{nearest(key, known)}"


def _class(name: str, node: Node, where: str, problems: Problems) -> type[Stage] | None:
    try:
        cls = registry.get(name)
    except CompressKitError as error:
        problems.add(node.place.name, node.line, f"{where}: {said(error)}")
    else:
        return cls
    return None


def _limits(about: dict[str, Node], where: str, problems: Problems) -> tuple[str | None, bool] | None:
    drop, rollback = about.get("max-drop"), about.get("rollback")
    fine = True
    if drop is not None and drop.value is not None:
        try:
            if isinstance(drop.value, (dict, list, bool)):
                raise UsageError("a limit is text")
            parse_drop(str(drop.value))
        except UsageError:
            fine = False
            text = f"expected points as 0.5pt or a share as 1%, found {shown(drop.plain())}"
            problems.add(drop.place.name, drop.line, f"{where}.max-drop: {text}")
    if rollback is not None and not isinstance(rollback.value, bool):
        fine = False
        text = f"expected true or false, found {shown(rollback.plain())}"
        problems.add(rollback.place.name, rollback.line, f"{where}.rollback: {text}")
    if not fine:
        return None
    return (None if drop is None or drop.value is None else str(drop.value)), bool(rollback and rollback.value)


def _stage(cls: type[Stage], node: Node, where: str, problems: Problems) -> Stage | None:
    if not isinstance(node.value, dict) and node.value is not None:
        text = f"expected its options, as {{{_some_option(cls)}: …}}, found {shown(node.plain())}"
        problems.add(node.place.name, node.line, f"{where}: {text}")
        return None
    known = [canonical(name) for name in cls.model_fields]
    given: dict[str, Node] = {}
    fine = True
    for key, value in (node.value or {}).items():
        name = key.replace("-", "_")
        if name not in cls.model_fields or name in given:
            fine = False
            text = (
                f"'{key}' is given twice"
                if name in given
                else f"'{key}' is not an option{nearest(canonical(key), known)}"
            )
            problems.add(value.place.name, value.line, f"{where}: {text}")
        else:
            given[name] = value
    # Made even where it can't be taken, as more may be wrong; but what lacks may be what was misspelt.
    stage = made(cls, given, node, where, problems, whole=fine)
    return stage if fine else None


def _some_option(cls: type[Stage]) -> str:
    return canonical(next(iter(cls.model_fields), "option"))


def made(
    cls: type[Stage], given: dict[str, Node], node: Node, where: str, problems: Problems, *, whole: bool
) -> Stage | None:
    """A stage from the nodes of its options; None where it doesn't take them.

    Args:
        cls: Of the stage.
        given: By field.
        node: All of them.
        where: For messages: ``steps[0].quantize.gptq``.
        problems: Takes what is wrong.
        whole: These are all that the recipe has: what must be given must be among them.
    """
    values = checked(cls, given, where, problems)
    try:
        stage = cls(**values)
        if whole and len(values) == len(given):
            stage.check_options()
    except ValidationError as error:
        note(error, given, node, where, problems)
    except CompressKitError as error:  # of a rule between options
        problems.add(node.place.name, node.line, f"{where}: {said(error)}")
    else:
        return stage if len(values) == len(given) else None
    return None


def checked(cls: type[BaseModel], given: dict[str, Node], where: str, problems: Problems) -> dict[str, Any]:
    """Plain values, without truth values in the place of numbers: pydantic would take true for 1."""
    good = {}
    for name, value in given.items():
        kinds = _kinds(cls, name)
        number = next((word for kind, word in ((int, "a whole number"), (float, "a number")) if kind in kinds), None)
        if isinstance(value.value, bool) and number and bool not in kinds:
            text = f"expected {number}, found {shown(value.value)}"
            problems.add(value.place.name, value.line, f"{where}.{canonical(name)}: {text}".lstrip("."))
        else:
            good[name] = value.plain()
    return good


def note(error: ValidationError, given: dict[str, Node], node: Node, where: str, problems: Problems) -> set[str]:
    """Add what pydantic found, each where it stands; returns the fields."""
    names = set()
    for finding in error.errors():
        path = [part if isinstance(part, int) else str(part).replace("-", "_") for part in finding["loc"]]
        first = str(path[0]) if path else ""
        names.add(first)
        at = given[first].at([canonical(p) if isinstance(p, str) else p for p in path[1:]]) if first in given else node
        inside = "".join(f"[{p}]" if isinstance(p, int) else f".{canonical(str(p))}" for p in path)
        problems.add(at.place.name, at.line, f"{(where + inside).lstrip('.')}: {expected(finding)}")
    return names


@cache
def _kinds(cls: type[BaseModel], name: str) -> frozenset[Any]:
    """The plain types that a field takes."""

    def walk(annotation: Any) -> set[Any]:
        origin = get_origin(annotation)
        if origin in (Union, types.UnionType):
            return {kind for part in get_args(annotation) for kind in walk(part)}
        return {type(get_args(annotation)[0])} if str(origin) == "typing.Literal" else {annotation}

    return frozenset(walk(cls.model_fields[name].annotation))
