"""Dotted keys: ``steps.1.bits``, ``checks.max-drop``, ``data``; what `set` and a matrix give them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from compresskit.recipe.including import canonical
from compresskit.recipe.problems import Problems
from compresskit.recipe.tree import Node, Place, node_of, parse

MAX_POINTS = 256
OF_STEP = ("max-drop", "rollback")
"""Keys of a step besides its method."""
_INSIDE = ("checks", "arch-args")
_FORM = "expected KEY=VALUE, as steps.0.bits=4, checks.max-drop=1% or data=train.npz"


def is_method(key: str) -> bool:
    """Whether a key of a step names a method."""
    return canonical(key) not in OF_STEP


def key_of(text: str) -> str:
    """A dotted key with hyphens; keys of ``arch-args`` stay as they are."""
    parts = text.strip().split(".")
    if canonical(parts[0]) == "arch-args":
        return ".".join(["arch-args", *parts[1:]])
    return ".".join(map(canonical, parts))


def typed(sets: Sequence[str], overrides: Mapping[str, Any], problems: Problems) -> dict[str, Node]:
    """What was typed, by dotted key: ``KEY=VALUE`` with a YAML value, and options, which win."""
    found: dict[str, Node] = {}
    for text in sets:
        place = Place(f"`set` {text}")
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            problems.add(place.name, 0, _FORM)
            continue
        nothing = value.strip() in ("", "~", "null")
        read = Node(None, place) if nothing else parse(value.encode("utf-8", "replace"), place, problems)
        if read is not None:
            found[key_of(key)] = replace(read, line=0)
    for key, value in overrides.items():
        if value is not None:
            found[key_of(key)] = node_of(value, Place(f"`{key.rpartition('.')[2].replace('-', '_')}`"))
    return found


def put(root: Node, key: str, value: Node, problems: Problems) -> Node:
    """The recipe with a value under a dotted key; a problem where the key leads nowhere."""
    parts = key.split(".")
    changed = _put(root, parts, value)
    if changed is None:
        steps = root.at(["steps"]).value if isinstance(root.value, dict) and "steps" in root.value else None
        count = len(steps) if isinstance(steps, list) else 0
        have = f"; the recipe has steps.0 to steps.{count - 1}" if parts[0] == "steps" and count else ""
        problems.add(value.place.name, value.line, f"'{key}' addresses nothing{have}")
        return root
    return changed


def _put(node: Node, parts: list[str], value: Node) -> Node | None:
    if not isinstance(node.value, dict):
        return None
    first, rest = parts[0], parts[1:]
    if first in ("steps", "matrix", "include") and not rest:
        return None
    if not rest:
        return replace(node, value={**node.value, first: value})
    inner: Node | None = None
    if first == "steps":
        inner = _in_steps(node.value.get("steps"), rest, value)
    elif first in _INSIDE and len(rest) == 1:
        old = node.value.get(first) or Node({}, value.place, value.line)
        if isinstance(old.value, dict) or old.value is None:
            inner = replace(old, value={**(old.value or {}), rest[0]: value})
    return None if inner is None else replace(node, value={**node.value, first: inner})


def _in_steps(steps: Node | None, parts: list[str], value: Node) -> Node | None:
    if steps is None or not isinstance(steps.value, list) or len(parts) != 2:
        return None
    place, option = parts
    if not (place.isascii() and place.isdigit() and len(place) < 6 and int(place) < len(steps.value)):
        return None
    step = _in_step(steps.value[int(place)], option, value)
    if step is None:
        return None
    return replace(steps, value=[*steps.value[: int(place)], step, *steps.value[int(place) + 1 :]])


def _in_step(step: Node, option: str, value: Node) -> Node | None:
    whole = {step.value: replace(step, value=None)} if isinstance(step.value, str) else step.value
    if not isinstance(whole, dict):
        return None
    if option in OF_STEP:
        return replace(step, value={**{k: v for k, v in whole.items() if canonical(k) != option}, option: value})
    method = next((key for key in whole if is_method(key)), None)
    if method is None:
        return None
    options = whole[method]
    if options.value is not None and not isinstance(options.value, dict):
        return None
    others = {key: node for key, node in (options.value or {}).items() if canonical(key) != option}
    return replace(step, value={**whole, method: replace(options, value={**others, option: value})})


def _rows(matrix: Mapping[str, Node], fixed: Mapping[str, Node], problems: Problems) -> dict[str, list[Node]]:
    """The values of each row of a matrix that were not typed."""
    rows: dict[str, list[Node]] = {}
    for text, node in matrix.items():
        key = key_of(text)
        if key in fixed:
            continue
        if not isinstance(node.value, list) or not node.value:
            problems.add(node.place.name, node.line, f"matrix: {text}: expected a list of values, as [3, 4, 8]")
        elif key in rows:
            problems.add(node.place.name, node.line, f"matrix: {text} is given twice")
        else:
            rows[key] = [replace(item, line=item.line or node.line) for item in node.value]
    return rows


def points(root: Node, fixed: Mapping[str, Node], problems: Problems) -> list[tuple[dict[str, Any], Node]]:
    """Every point of the matrix with its recipe; one without values where there is no matrix.

    Args:
        root: With or without ``matrix``.
        fixed: What was typed: it takes the place of a row of the matrix.
        problems: Takes what is wrong.
    """
    if not isinstance(root.value, dict):
        return []
    matrix = root.value.get("matrix")
    base = replace(root, value={key: node for key, node in root.value.items() if key != "matrix"})
    if matrix is None or matrix.value is None:
        return [({}, base)]
    if not isinstance(matrix.value, dict):
        problems.add(matrix.place.name, matrix.line, "matrix: expected a mapping, as {steps.0.bits: [3, 4, 8]}")
        return [({}, base)]
    rows = _rows(matrix.value, fixed, problems)
    count = prod(map(len, rows.values()))
    if count > MAX_POINTS:
        problems.add(matrix.place.name, matrix.line, f"matrix: {count:,} combinations, at most {MAX_POINTS} are run")
        rows = {key: values[:1] for key, values in rows.items()}
    found = []
    for values in itertools.product(*rows.values()):
        whole = base
        for key, value in zip(rows, values, strict=True):
            whole = put(whole, key, value, problems)
        found.append(({key: value.plain() for key, value in zip(rows, values, strict=True)}, whole))
    return found
