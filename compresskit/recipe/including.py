"""A recipe file with what it includes, as one mapping."""

from __future__ import annotations

import os
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from compresskit.recipe import shipped
from compresskit.recipe.problems import Problems
from compresskit.recipe.tree import MAX_BYTES, Node, Place, parse

MAX_DEEP = 8
MAX_FILES = 32
_PLAIN = ("arch-args", "matrix")
"""Keys whose own keys are kept as they are written."""


def canonical(key: str) -> str:
    """A key with hyphens."""
    return key.replace("_", "-")


def read(where: str | Path, problems: Problems) -> Node | None:
    """Read a recipe and all that it includes.

    Args:
        where: A file, or the name of a built-in recipe.
        problems: Takes what is wrong.

    Returns:
        Its mapping, without ``include``; None where there is none.
    """
    path = found(where, Path())
    if path is None:
        problems.add(str(where), 0, _missing(str(where)))
        return None
    return _Reading(problems).file(path, ())


def found(where: str | Path, folder: Path) -> Path | None:
    """The file that a path or a shipped recipe's name stands for; None where there is neither."""
    path = Path(os.path.normpath(folder / where))
    return path if _is_file(path) else shipped.path_of(str(where))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _missing(where: str) -> str:
    near = get_close_matches(where.removesuffix(".yaml"), shipped.names(), 1)
    return "there is no such file, nor a recipe of that name; " + (
        f"did you mean '{near[0]}'?" if near else "those that ship: compresskit recipe ls"
    )


class _Reading:
    """One recipe; counts what is read for it."""

    def __init__(self, problems: Problems) -> None:
        self._problems, self._files = problems, 0

    def file(self, path: Path, above: tuple[Path, ...]) -> Node | None:
        self._files += 1
        place = Place(str(path), path.parent)
        if above and not path.resolve().is_relative_to(above[0].parent) and path.parent != shipped.folder():
            self._problems.close(place.name)
        try:
            with path.open("rb") as stream:
                data = stream.read(MAX_BYTES + 1)
        except OSError as error:
            self._problems.add(place.name, 0, f"can't be read: {error.strerror}")
            return None
        root = parse(data, place, self._problems)
        if root is None:
            return None
        if not isinstance(root.value, dict):
            self._problems.add(place.name, root.line, "a recipe is a mapping, as steps: [quantize.rtn]")
            return None
        root = self._canonical(root)
        bases = self._bases(root, (*above, path.resolve()))
        own = (
            {key: node for key, node in root.value.items() if key != "include"} if isinstance(root.value, dict) else {}
        )
        return _merged([*bases, replace(root, value=own)])

    def _canonical(self, node: Node) -> Node:
        """Hyphens in the keys of a recipe and of its ``checks``; steps are read later."""
        if not isinstance(node.value, dict):
            return node
        whole: dict[str, Node] = {}
        for key, value in node.value.items():
            name = canonical(key)
            if name in whole:
                self._problems.add(
                    value.place.name, value.line, f"'{key}' is given twice, first in line {whole[name].line}"
                )
            else:
                whole[name] = self._canonical(value) if name == "checks" else value
        return replace(node, value=whole)

    def _bases(self, root: Node, above: tuple[Path, ...]) -> list[Node]:
        wish = root.value.get("include") if isinstance(root.value, dict) else None
        if wish is None:
            return []
        bases = []
        for node in wish.value if isinstance(wish.value, list) else [wish]:
            base = self._base(node, above)
            bases += [] if base is None else [base]
        return bases

    def _base(self, node: Node, above: tuple[Path, ...]) -> Node | None:
        wrong = ""
        path = None
        if not isinstance(node.value, str) or not node.value:
            wrong = "include: expected the path of a file, or a list of them"
        elif (path := found(node.value, node.place.folder or Path())) is None:
            wrong = f"include: '{node.value}': {_missing(node.value)}"
        elif path.resolve() in above:
            wrong = f"include: '{node.value}' includes itself in the end"
        elif len(above) >= MAX_DEEP:
            wrong = f"include: more than {MAX_DEEP} files deep"
        elif self._files >= MAX_FILES:
            wrong = f"include: more than {MAX_FILES} files"
        if wrong or path is None:
            self._problems.add(node.place.name, node.line, wrong)
            return None
        return self.file(path, above)


def _merged(nodes: list[Node]) -> Node:
    """Mappings become one, the later value wins; steps and other lists are replaced."""
    whole = nodes[0]
    for node in nodes[1:]:
        if not isinstance(whole.value, dict) or not isinstance(node.value, dict):
            whole = node
            continue
        both = dict(whole.value)
        for key, value in node.value.items():
            both[key] = _merged([both[key], value]) if key in both else value
        whole = replace(node, value=both)
    return whole
