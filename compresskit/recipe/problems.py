"""What is wrong with a recipe: all of it at once, each with its file and line."""

from __future__ import annotations

from dataclasses import dataclass

from compresskit.errors import UsageError, printable

SHOWN = 50
"""Problems that are printed; the rest is only counted."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        file: As the user may open it, or what was typed: ``--set steps.0.bits=9``.
        line: Counted from 1; 0 where there is none.
        text: What was expected, what was found, what to do.
    """

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return printable(f"{self.file}:{self.line}: {self.text}" if self.line else f"{self.file}: {self.text}", 600)


class RecipeError(UsageError):
    """A recipe can't be run.

    Args:
        problems: At least one.
    """

    def __init__(self, problems: list[Problem]) -> None:
        left = len(problems) - SHOWN
        super().__init__(str(problems[0]), f"and {left} more" if left > 0 else "")
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(filter(None, (*self.messages(), self.hint)))

    def messages(self) -> list[str]:
        """A line a problem, as far as a screen has room."""
        return [str(problem) for problem in self.problems[:SHOWN]]


class Problems:
    """Collects problems; the same one counts once, as a matrix meets it at every point."""

    def __init__(self) -> None:
        self._found: dict[Problem, None] = {}
        self._closed: set[str] = set()

    def close(self, file: str) -> None:
        """Say of a file's problems where they are, and nothing of what stands there."""
        self._closed.add(file)

    def add(self, file: str, line: int, text: str) -> None:
        """One more."""
        if file in self._closed:
            text = "no recipe that can be included; it is not in the including recipe's folder, so no more is shown"
        self._found.setdefault(Problem(file, line, text))

    def raise_any(self) -> None:
        """Raise what was found, each file's problems in the order of its lines.

        Raises:
            RecipeError: There are problems.
        """
        files = list(dict.fromkeys(problem.file for problem in self._found))
        if found := sorted(self._found, key=lambda problem: (files.index(problem.file), problem.line)):
            raise RecipeError(found)
