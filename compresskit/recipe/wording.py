"""pydantic's findings in the words of a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from compresskit.errors import CompressKitError, spelled
from compresskit.recipe.tree import shown

_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list, as [a, b]",
    "list": "a list, as [a, b]",
    "dict": "a mapping",
    "model": "a mapping",
    "path": "a path",
}


def expected(finding: Mapping[str, Any]) -> str:
    """One of pydantic's errors as ``expected 2, 3, 4 or 8, found 5``."""
    kind, context, found = str(finding["type"]), finding.get("ctx", {}), shown(finding["input"])
    if kind == "missing":
        return "must be given"
    if kind == "value_error":
        return f"{as_keys(str(context.get('error', finding['msg'])))}, found {found}"
    for name, word in _BOUNDS.items():
        if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal") and name in context:
            return f"expected {word} {context[name]}, found {found}"
    if kind == "literal_error":
        return f"expected {context['expected']}, found {found}"
    what = _KINDS.get(kind.partition("_")[0])
    if what:
        return f"expected {what}, found {found}"
    return f"{str(finding['msg']).replace('Input should be', 'expected')}, found {found}"


def as_keys(text: str) -> str:
    """A message as a recipe shows it: ```max_drop``` is ``max-drop``."""
    return spelled(text, str)


def said(error: CompressKitError) -> str:
    """An error and its hint, on one line."""
    return as_keys(f"{error.message}; {error.hint}" if error.hint else error.message)


def nearest(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'bits'?``, or all there is."""
    names = list(known)
    near = get_close_matches(word, names, 1)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; there are: {', '.join(names)}" if names else ""
