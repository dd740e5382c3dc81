"""Questions with possible answers, of which a language model should find one likeliest; read from a ``.jsonl``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compresskit.data.source import Batch
from compresskit.data.tables import json_rows
from compresskit.data.tokens import Encoder
from compresskit.data.walking import Fingerprint, spans
from compresskit.errors import InputError

KEYS = frozenset({"context", "choices", "answer"})


@dataclass(frozen=True)
class Question:
    """A text, how it may go on, and how it should.

    Attributes:
        context: What comes before.
        choices: Two or more texts that may follow.
        answer: Index of the right one.
    """

    context: str
    choices: tuple[str, ...]
    answer: int


def read_questions(path: Path, text: str) -> list[Question]:
    """The questions of a ``.jsonl``: an object with ``context``, ``choices`` and ``answer`` on each line.

    ``answer`` is the index of a choice from 0 (also as text: ``"2"``), a choice's text, or its letter from A.

    Args:
        path: Its name, for errors.
        text: What the file holds.

    Raises:
        InputError: Names the line, what was expected and what was found.
    """
    return [_question(f"{path} line {line}", row) for line, row in json_rows(path, text)]


def _question(where: str, row: dict[str, object]) -> Question:
    if not row.keys() >= KEYS:
        raise InputError(f"{where}: expected {', '.join(sorted(KEYS))}, found {', '.join(row) or 'nothing'}")
    context, choices = row["context"], row["choices"]
    if not isinstance(context, str):
        raise InputError(f"{where}: 'context' should be text, found {context!r}")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
        raise InputError(f"{where}: 'choices' should be a list of two or more texts")
    return Question(context, tuple(choices), _answer(where, row["answer"], choices))


def _answer(where: str, given: Any, choices: list[str]) -> int:
    index = -1
    if isinstance(given, str) and given in choices:
        index = choices.index(given)
    elif isinstance(given, str) and given.isascii() and given.isdigit() and len(given) < 4:
        index = int(given)
    elif isinstance(given, str) and len(given) == 1 and given.isascii() and given.isupper():
        index = ord(given) - ord("A")
    elif type(given) is int:
        index = given
    if not 0 <= index < len(choices):
        raise InputError(
            f"{where}: 'answer' should be 0 to {len(choices) - 1}, a letter from A or one of the choices; "
            f"found {given!r}"
        )
    return index


class ChoiceSource:
    """A row for each choice of each question: its context with the choice behind it, of which the choice is scored.

    Where neither ends or begins with white space, a space comes between them. Spaces at the end of a context belong to
    the choice, as tokenizers put a space into the word that follows. What is longer than the model takes loses the
    beginning of its context.
    """

    kind, labelled = "choices", True

    def __init__(self, name: str, questions: list[Question], encoder: Encoder) -> None:
        """Tokenize all questions.

        Raises:
            InputError: There is none, or a choice that is longer than the model takes or has nothing before it.
        """
        if not questions:
            raise InputError(f"{name} has no questions")
        self.name, self.vocabulary = name, encoder.vocabulary
        self._questions, self._encoder = questions, encoder
        self._rows: list[list[tuple[np.ndarray, int]]] = []
        cut = 0
        for number, question in enumerate(questions, 1):
            rows = [encoder.continued(*_joined(question.context, choice)) for choice in question.choices]
            for ids, start in rows:
                if start < 1 or len(ids) - start >= encoder.sequence:
                    why = "nothing comes before a choice" if start < 1 else f"a choice has {len(ids) - start} tokens"
                    raise InputError(
                        f"{name}, question {number}: {why}", f"the model takes {encoder.sequence} tokens, context first"
                    )
            cut += any(len(ids) > encoder.sequence for ids, _ in rows)
            self._rows.append([_kept(ids, start, encoder.sequence) for ids, start in rows])
        self.notes = [f"the beginning of {cut} contexts is cut to {encoder.sequence} tokens"] if cut else []

    def __len__(self) -> int:
        return len(self._questions)

    def batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        """See :class:`~compresskit.data.source.Source`; ``size`` counts questions."""
        for span in spans(len(self), size, limit):
            found = [row for rows in self._rows[span] for row in rows]
            inputs = self._encoder.padded([ids for ids, _ in found])
            width = next(iter(inputs.values())).shape[1]
            at = np.arange(width)
            scored = np.stack([(at >= start) & (at < len(ids)) for ids, start in found])
            targets = [
                (number, index == question.answer, len(choice))
                for number, question in enumerate(self._questions[span], span.start)
                for index, choice in enumerate(question.choices)
            ]
            yield Batch(inputs, np.array(targets, np.int64), scored)

    def fingerprint(self) -> str:
        """See :class:`~compresskit.data.source.Source`; of the tokens, the answers and the length of a sample."""
        prepared = Fingerprint({"kind": "choices", "sequence": self._encoder.sequence})
        for question, rows in zip(self._questions, self._rows, strict=True):
            prepared.array("choices", np.array([[question.answer, len(rows)]]))
            for (ids, start), choice in zip(rows, question.choices, strict=True):
                prepared.array("row", np.concatenate([ids, [start, len(choice)]]))
        return prepared.hex()


def _joined(context: str, choice: str) -> tuple[str, str]:
    """What is scored last, and what comes before it."""
    kept = context.rstrip()
    between = context[len(kept) :]
    if context and not between and not choice[0].isspace():
        between = " "
    return kept, between + choice


def _kept(ids: np.ndarray, start: int, most: int) -> tuple[np.ndarray, int]:
    """The last tokens, and where among them the choice begins."""
    left = max(0, len(ids) - most)
    return ids[left:], start - left
