"""What a recipe names: files beside it, and code, which is to be allowed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from compresskit.data.usercode import is_reference
from compresskit.errors import UsageError, printable
from compresskit.quality.metrics import open_metric
from compresskit.recipe.head import CODE, OUTPUT, PATH
from compresskit.recipe.problems import Problems
from compresskit.recipe.tree import Node
from compresskit.recipe.wording import said
from compresskit.stage import MODEL, Stage

_ALLOW = "which a recipe may not: add `allow_code` if you trust it"


@dataclass(frozen=True)
class Naming:
    """How names become paths.

    Attributes:
        allow_code: The user trusts the code that the recipe names; what they typed themselves is always trusted.
        problems: Takes what is missing, or not allowed.
    """

    allow_code: bool
    problems: Problems

    def values(self, given: dict[str, Node], cls: type[BaseModel], where: str) -> dict[str, str]:
        """The values of fields that name something, as the command line would take them.

        Args:
            given: By field.
            cls: Whose fields.
            where: For messages: ``steps[0].distill.kd``.
        """
        found = {}
        for name, node in given.items():
            kind = _formats(cls).get(name)
            word = node.value
            if kind is None or not isinstance(word, str) or not word or word == MODEL:
                continue
            at = f"{where}.{name.replace('_', '-')}".lstrip(".")
            found[name] = self._code(node, word, at) if kind == CODE else self._path(node, word, at, kind == PATH)
        return found

    def metric(self, node: Node | None) -> str | None:
        """A metric's name, or that of its code."""
        if node is None or not isinstance(node.value, str):
            return None
        if is_reference(node.value):
            return self._code(node, node.value, "metric")
        try:
            open_metric(node.value, allow_code=False)
        except UsageError as error:
            self._add(node, f"metric: {said(error)}")
        return node.value

    def _path(self, node: Node, word: str, at: str, must_exist: bool) -> str:
        if is_reference(word):
            return self._code(node, word, at)
        if word.startswith("$"):
            self._add(node, f"{at}: '{word}': the one such word is {MODEL}, the recipe's own model")
            return word
        path = _from(node, word)
        if must_exist:
            self._check_file(node, path, word, at)
        return path

    def _code(self, node: Node, word: str, at: str) -> str:
        file, _, name = word.rpartition(":")
        if not file or not name.isidentifier():
            self._add(node, f"{at}: expected FILE.py:NAME or package.module:NAME, found '{printable(word, 60)}'")
            return word
        if node.place.folder is not None and not self.allow_code:
            self._add(node, f"{at}: '{printable(word, 80)}' would run code, {_ALLOW}")
        if not file.endswith(".py"):
            return word
        path = _from(node, file)
        self._check_file(node, path, file, at)
        return f"{path}:{name}"

    def _check_file(self, node: Node, path: str, word: str, at: str) -> None:
        try:
            there, readable = Path(path).exists(), os.access(path, os.R_OK)
        except (OSError, ValueError):
            there, readable = False, False
        if not there:
            beside = f" (that is {printable(path, 120)})" if path != word else ""
            self._add(node, f"{at}: '{printable(word, 120)}'{beside} does not exist")
        elif not readable:
            self._add(node, f"{at}: '{printable(word, 120)}' can't be read: permission denied")

    def _add(self, node: Node, text: str) -> None:
        self.problems.add(node.place.name, node.line, text)


def _from(node: Node, word: str) -> str:
    """A path of the recipe as it is from here."""
    folder = node.place.folder
    return word if folder is None or Path(word).is_absolute() else os.path.normpath(folder / word)


def named_by(stage: Stage, *formats: str) -> list[str]:
    """What the options of a stage name: files and folders that it reads, code that it runs, outputs that it writes.

    Args:
        stage: With its options.
        formats: Of :mod:`compresskit.recipe.head`: those that are wanted.
    """
    values = (getattr(stage, name) for name, kind in _formats(type(stage)).items() if kind in formats)
    return [str(value) for value in values if value is not None and value != MODEL]


@cache
def _formats(cls: type[BaseModel]) -> dict[str, str]:
    """The fields that name something, with what they name."""
    known = (PATH, CODE, OUTPUT)
    found = {}
    for field, (name, about) in zip(cls.model_fields, cls.model_json_schema()["properties"].items(), strict=True):
        kinds: list[dict[str, Any]] = [about, *about.get("anyOf", [])]
        kind = next((k["format"] for k in kinds if k.get("format") in known), None)
        if kind is not None and name:
            found[field] = kind
    return found
