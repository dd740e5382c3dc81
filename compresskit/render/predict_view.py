"""Answers of a model, as text and as JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from compresskit.render import figures
from compresskit.render.console import make_console

_SHOWN = 4
"""Numbers of a longer row."""


def print_answers(answers: Any, samples: list[str] | None) -> None:
    """Draw them, a line a sample.

    Args:
        answers: See :data:`compresskit.predict.answers.Answers`.
        samples: Texts or paths; None where samples have no name.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False, pad_edge=False)
    table.add_column(overflow="fold", max_width=48)
    table.add_column(overflow="fold")
    for index, answer in enumerate(_each(answers)):
        name = str(index) if samples is None else figures.clean(samples[index])
        table.add_row(Text(name), Text(_line(answer)))
    make_console().print(table)


def as_json(answers: Any, samples: list[str] | None) -> str:
    """A list with an object for each sample: its ``input``, and its ``classes``, ``embedding`` or ``outputs``."""
    found = []
    for index, answer in enumerate(_each(answers)):
        if isinstance(answer, list):
            entry: dict[str, Any] = {"classes": answer}
        elif isinstance(answer, dict):
            entry = {"outputs": {name: array.tolist() for name, array in answer.items()}}
        else:
            entry = {"embedding": answer.tolist()}
        found.append({**({} if samples is None else {"input": samples[index]}), **entry})
    return json.dumps(found, ensure_ascii=False, indent=1) + "\n"


def _each(answers: Any) -> list[Any]:
    """The answer to each sample."""
    if not isinstance(answers, dict):
        return list(answers)
    count = len(next(iter(answers.values())))
    return [{name: array[index] for name, array in answers.items()} for index in range(count)]


def _line(answer: Any) -> str:
    if isinstance(answer, list):
        return "  ".join(f"{figures.clean(one['label'])} {one['score']:.4f}" for one in answer)
    if isinstance(answer, dict):
        return "  ".join(f"{figures.clean(name)} {_numbers(array)}" for name, array in answer.items())
    return _numbers(answer)


def _numbers(array: np.ndarray) -> str:
    flat = array.reshape(-1)
    shown = " ".join(f"{value:.4g}" for value in flat[:_SHOWN])
    return shown if flat.size <= _SHOWN else f"{shown} … ({'×'.join(map(str, array.shape))} numbers)"
