"""YAML as plain values that know their line. Nothing is constructed: tags are refused, and what may grow is bounded.

Plain scalars mean what YAML 1.2 says (``1e-4`` is a number). ``yes``, ``no``, ``on`` and ``off`` are refused: in
1.1 they are truth values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import yaml

from compresskit.errors import printable
from compresskit.recipe.problems import Problems

MAX_BYTES = 256 * 1024
MAX_DEPTH = 24
MAX_NODES = 10_000
"""Values of one file, each counted as often as an alias repeats it."""

_MERGE = "<<"
_TAG = "tag:yaml.org,2002:"
_KINDS = {"scalar": ("str", "int", "float", "bool", "null"), "list": ("seq",), "mapping": ("map",)}
_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {"true": True, "false": False}
_DOUBTFUL = {"yes", "no", "on", "off"}
_INT = re.compile(r"[-+]?[0-9]{1,300}", re.ASCII)
_BASED = re.compile(r"0o[0-7]{1,100}|0x[0-9a-fA-F]{1,100}", re.ASCII)
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", re.ASCII
)

Value: TypeAlias = "str | int | float | bool | list[Node] | dict[str, Node] | None"


@dataclass(frozen=True)
class Place:
    """Where values come from.

    Attributes:
        name: As the user may open it, or what was typed.
        folder: That relative paths start from; None for what was typed: they start where the user is.
    """

    name: str
    folder: Path | None = None


@dataclass(frozen=True)
class Node:
    """A value and where it stands; that of a key stands where the key does.

    Attributes:
        value: Plain, or with nodes inside.
        place: The file.
        line: Counted from 1; 0 where there is none.
        size: Values in it, itself included.
        height: Levels below it.
    """

    value: Value
    place: Place
    line: int = 0
    size: int = field(default=1, compare=False)
    height: int = field(default=0, compare=False)

    def plain(self) -> Any:
        """The value without its places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        return [node.plain() for node in self.value] if isinstance(self.value, list) else self.value

    def at(self, path: Sequence[int | str]) -> Node:
        """The value down a path, as far as that leads."""
        node = self
        for part in path:
            if isinstance(node.value, dict) and part in node.value:
                node = node.value[str(part)]
            elif isinstance(node.value, list) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
            else:
                break
        return node


def node_of(value: Any, place: Place) -> Node:
    """A plain value as a node."""
    if isinstance(value, dict):
        return Node({str(key): node_of(item, place) for key, item in value.items()}, place)
    return Node([node_of(item, place) for item in value] if isinstance(value, (list, tuple)) else value, place)


def shown(value: Any, limit: int = 60) -> str:
    """A value as a recipe would have it, for messages."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "nothing"}[value]
    if isinstance(value, dict):
        return "a mapping"
    return printable(f"'{value}'" if isinstance(value, str) else value, limit)


class _Stopped(Exception):
    """The rest of the file can't be read; the problem is noted."""


def parse(data: bytes, place: Place, problems: Problems) -> Node | None:
    """Read one document.

    Args:
        data: Of the file.
        place: Of the values.
        problems: Takes what is wrong.

    Returns:
        None where there is no document, or none that can be read.
    """
    if len(data) > MAX_BYTES:
        problems.add(place.name, 0, f"a recipe has at most {MAX_BYTES // 1024} KiB, this is larger")
        return None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problems.add(place.name, data.count(b"\n", 0, error.start) + 1, "not a text in UTF-8")
        return None
    try:
        return _Builder(yaml.parse(text, Loader=yaml.SafeLoader), place, problems).document()
    except _Stopped:
        return None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problems.add(place.name, line, f"not YAML: the character U+{_code(error.character):04X} isn't allowed")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ", ".join(filter(None, (error.context, error.problem)))
        problems.add(place.name, mark.line + 1 if mark else 0, f"not YAML: {what}")
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # an escape or a version that no number can hold
        problems.add(place.name, 0, f"not YAML: {error}")
    return None


def _code(character: Any) -> int:
    return character if isinstance(character, int) else ord(character)


class _Builder:
    """Makes nodes of the parser's events."""

    def __init__(self, events: Iterator[Any], place: Place, problems: Problems) -> None:
        self._events, self._place, self._problems = events, place, problems
        self._anchors: dict[str, Node | None] = {}
        self._read = 0

    def document(self) -> Node | None:
        """The only document."""
        found = None
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                if found is not None:
                    self._stop(event, "a second document begins: a recipe is one")
                found = self._node(next(self._events), 0)
        if found is None or found.value is None:
            self._problems.add(self._place.name, 0, "the file is empty")
            return None
        return found

    def _stop(self, event: Any, text: str) -> NoReturn:
        self._add(event, text)
        raise _Stopped

    def _add(self, event: Any, text: str) -> None:
        self._problems.add(self._place.name, event.start_mark.line + 1, text)

    def _node(self, event: Any, depth: int) -> Node:
        line = event.start_mark.line + 1
        self._read += 1
        if self._read > MAX_NODES:  # before the rest of a long list is read
            self._stop(event, f"holds more than {MAX_NODES:,} values")
        if isinstance(event, yaml.AliasEvent):
            known = self._anchors.get(str(event.anchor))
            if known is None:
                inside = event.anchor in self._anchors
                self._stop(
                    event, f"*{event.anchor} " + ("contains itself" if inside else f"has no anchor &{event.anchor}")
                )
            if depth + known.height > MAX_DEPTH:
                self._stop(event, f"nested more than {MAX_DEPTH} deep")
            return replace(known, line=line)
        if depth > MAX_DEPTH:
            self._stop(event, f"nested more than {MAX_DEPTH} deep")
        if event.anchor:
            self._anchors[event.anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            self._tagged(event, "scalar")
            node = Node(self._scalar(event), self._place, line)
        elif isinstance(event, yaml.SequenceStartEvent):
            self._tagged(event, "list")
            node = self._list(event, depth)
        else:
            self._tagged(event, "mapping")
            node = self._mapping(event, depth)
        if event.anchor:
            self._anchors[event.anchor] = node
        return node

    def _tagged(self, event: Any, kind: str) -> None:
        if event.tag in (None, "!") or event.tag in [_TAG + name for name in _KINDS[kind]]:
            return
        self._stop(event, f"the tag {event.tag.replace(_TAG, '!!')} isn't allowed: a recipe holds plain values")

    def _held(self, event: Any, value: Value, items: list[Node]) -> Node:
        size = 1 + sum(item.size for item in items)
        if size > MAX_NODES:
            self._stop(event, f"holds more than {MAX_NODES:,} values")
        height = 1 + max((item.height for item in items), default=0)
        return Node(value, self._place, event.start_mark.line + 1, size, height)

    def _list(self, start: Any, depth: int) -> Node:
        items: list[Node] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(event, depth + 1))
        return self._held(start, items, items)

    def _mapping(self, start: Any, depth: int) -> Node:
        found: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = event.value if isinstance(event, yaml.ScalarEvent) else None
            plain = key is not None and event.implicit[0]
            if key is None or (not key and plain):
                self._stop(event, "a key must be a word")
            self._tagged(event, "scalar")
            value = self._node(next(self._events), depth + 1)
            if key == _MERGE and plain:
                merged = {**merged, **self._merged(event, value)}
            elif key in found:
                self._add(event, f"'{key}' is given twice, first in line {found[key].line}")
            else:
                found[key] = replace(value, line=event.start_mark.line + 1)
        whole = {**merged, **found}
        return self._held(start, whole, list(whole.values()))

    def _merged(self, event: Any, value: Node) -> dict[str, Node]:
        """What ``<<: *base`` brings in; of several the first counts."""
        sources = value.value if isinstance(value.value, list) else [value]
        found: dict[str, Node] = {}
        for source in sources:
            if not isinstance(source.value, dict):
                self._stop(event, "<< takes a mapping, as <<: *base")
            found = {**source.value, **found}
        return found

    def _scalar(self, event: Any) -> Value:
        text: str = event.value
        if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
            self._add(event, "holds a character that no text has")
            return ""
        if event.tag == _TAG + "str" or event.tag == "!" or (event.tag is None and not event.implicit[0]):
            return text
        if text.lower() in _DOUBTFUL and event.tag is None:
            meant = "true" if text.lower() in ("yes", "on") else "false"
            self._add(event, f"'{text}' may be a word or a truth value: write {meant}, or \"{text}\" in quotes")
            return None
        return _resolved(text)


def _resolved(text: str) -> Value:
    if text in _NULL:
        return None
    if text.lower() in _BOOL and text in (text.lower(), text.title(), text.upper()):
        return _BOOL[text.lower()]
    if _INT.fullmatch(text):
        return int(text)
    if _BASED.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text.replace(".inf", "inf").replace(".Inf", "inf").replace(".INF", "inf").replace(".nan", "nan")
                     .replace(".NaN", "nan").replace(".NAN", "nan"))  # fmt: skip
    return text
