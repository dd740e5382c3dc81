"""Reading ``.txt``, ``.csv`` and ``.jsonl`` into texts and targets; every complaint names the line."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compresskit.errors import InputError

_KEYS = {"text", "label", "sentence1", "sentence2", "score"}
_DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
_FORMS = "expected sentence1,sentence2,score or text,label or text"


@dataclass(frozen=True)
class Table:
    """Texts, second sentences where samples are pairs, and targets ``(n,)``: labels or scores."""

    first: list[str]
    second: list[str] | None
    targets: np.ndarray | None


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark.

    Raises:
        InputError: Missing, empty, or not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: byte {error.start} is no character") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if not text.strip():
        raise InputError(f"{path} is empty")
    return text


def read_table(path: Path) -> Table:
    """Rows of a ``.csv`` or ``.jsonl``.

    A ``.csv`` has the columns sentence1,sentence2,score or text,label or text, by position, or in any order under a
    header of these names. Its columns are parted by commas, semicolons, tabs or bars. A ``.jsonl`` has an object with
    these keys on each line; lines end at a line feed only. Labels are integers from 0.

    Raises:
        InputError: Not such a file; names the line, what was expected and what was found.
    """
    text = read_text(path)
    rows = _csv_rows(path, text) if path.suffix.lower() == ".csv" else json_rows(path, text)
    first: list[str] = []
    second: list[str] = []
    targets: list[float] = []
    keys: frozenset[str] | None = None
    for line, row in rows:
        where = f"{path} line {line}"
        keys = keys if keys is not None else _form(where, frozenset(row))
        if not keys <= row.keys():
            raise InputError(
                f"{where}: expected {', '.join(sorted(keys))} as on the first line, found {', '.join(row)}"
            )
        first.append(_sentence(where, row, "sentence1" if "sentence1" in keys else "text"))
        if "sentence2" in keys:
            second.append(_sentence(where, row, "sentence2"))
        if target := keys & {"score", "label"}:
            targets.append(_number(where, next(iter(target)), row))
    if keys is None:
        raise InputError(f"{path} has no rows")
    kind = np.int64 if "label" in keys else np.float64
    return Table(first, second if "sentence2" in keys else None, np.array(targets, kind) if targets else None)


def _form(where: str, found: frozenset[str]) -> frozenset[str]:
    for form in ({"sentence1", "sentence2", "score"}, {"text", "label"}, {"text"}):
        if form <= found:
            return frozenset(form)
    raise InputError(f"{where}: {_FORMS}, found {', '.join(sorted(found)) or 'nothing'}")


def _sentence(where: str, row: dict[str, object], key: str) -> str:
    value = row[key]
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: '{key}' should be text, found {'nothing' if value in ('', None) else repr(value)}")
    return value


def _number(where: str, key: str, row: dict[str, object]) -> float:
    value = row[key]
    try:
        number = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if key == "label" and not (number.is_integer() and 0 <= number < 1 << 31):
        raise InputError(
            f"{where}: 'label' should be the number of a class, from 0; found {value!r}",
            "number the classes in the order of the model's outputs",
        )
    if not math.isfinite(number):
        raise InputError(f"{where}: 'score' should be a number, found {value!r}")
    return number


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, object]]]:
    delimiter = _delimiter(path, text)
    lone_header = delimiter == "," and _lone_header(text)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    names: list[str] = []
    try:
        for cells in reader:
            if not cells:
                continue
            if not names:
                names = _columns(path, reader.line_num, cells)
                if lone_header or {c.strip().lower() for c in cells} <= _KEYS:
                    continue
            if len(cells) != len(names):
                raise InputError(
                    f"{path} line {reader.line_num}: expected {len(names)} columns, found {len(cells)}",
                    f"put text that holds {_DELIMITERS[delimiter]} between double quotes",
                )
            yield reader.line_num, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num} is not CSV: {error}") from error


def _delimiter(path: Path, text: str) -> str:
    """What parts the columns: where it gives a known header, or rows of equal length that end in numbers.

    Raises:
        InputError: Nothing does, and another character than a comma stands equally often in each line.
    """
    tables = {delimiter: _parsed(text, delimiter) for delimiter in _DELIMITERS}
    for delimiter, rows in tables.items():
        header = [cell.strip().lower() for cell in rows[0]] if rows else []
        if len(header) > 1 and set(header) <= _KEYS:
            return delimiter
    for delimiter, rows in tables.items():
        body = rows[1:] or rows  # the first may be a header of other names, which is refused by its line
        if rows and {len(row) for row in rows} in ({2}, {3}) and all(_is_number(row[-1]) for row in body):
            return delimiter
    for delimiter, rows in tables.items():
        even = len(rows) > 1 and len(rows[0]) > 1 and len({len(row) for row in rows}) == 1
        if delimiter != "," and even and all(len(row) == 1 for row in tables[","]):
            raise InputError(
                f"{path}: {_DELIMITERS[delimiter]} parts each line into {len(rows[0])} columns; {_FORMS}",
                "number the classes, or put text that is one column between double quotes",
            )
    return ","


def _parsed(text: str, delimiter: str) -> list[list[str]]:
    """All rows; none where the text is no table of this delimiter."""
    try:
        return [row for row in csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter) if row]
    except csv.Error:
        return []


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def _lone_header(text: str) -> bool:
    """True for a single column whose first line is a name, and most of whose others are not of one word."""
    rows = _parsed(text, ",")
    if len(rows) < 2 or any(len(row) != 1 for row in rows):
        return False
    words = sum(" " not in row[0].strip() for row in rows[1:])
    return rows[0][0].strip().isidentifier() and 2 * words < len(rows) - 1


def _columns(path: Path, line: int, cells: list[str]) -> list[str]:
    header = [c.strip().lower() for c in cells]
    if set(header) <= _KEYS and len(set(header)) == len(header):
        return header
    forms = {1: ["text"], 2: ["text", "label"], 3: ["sentence1", "sentence2", "score"]}
    if len(cells) not in forms:
        raise InputError(f"{path} line {line}: {_FORMS}, found {len(cells)} columns")
    return forms[len(cells)]


def json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, object]]]:
    """The objects of a ``.jsonl``, each with the number of its line; empty lines are left out.

    Raises:
        InputError: A line that isn't an object in JSON.
    """
    for line, raw in enumerate(text.split("\n"), start=1):
        if not raw.strip():
            continue
        try:
            row = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} line {line} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise InputError(
                f"{path} line {line}: expected an object with the keys text, sentence1 or context, found {raw[:40]}"
            )
        yield line, row
