"""From what the user typed after `data` to a source."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from compresskit.data.arrays import open_npz
from compresskit.data.choices import KEYS, ChoiceSource, read_questions
from compresskit.data.folder import open_folder
from compresskit.data.prepare import parse_normalize
from compresskit.data.source import Source
from compresskit.data.tables import json_rows, read_table, read_text
from compresskit.data.text import PairSource, RunningText, TextSource
from compresskit.data.tokens import UNCUT, Encoder
from compresskit.data.usercode import PythonSource, is_reference, load_object
from compresskit.data.windows import Window, WindowedText
from compresskit.errors import InputError, PathError, UsageError
from compresskit.model import InputSpec

_FORMS = "data is an .npz, a folder of class folders, a .txt, .csv or .jsonl, or FILE.py:NAME"
_TEXT = (".txt", ".csv", ".jsonl")


def open_source(
    spec: str,
    *,
    normalize: str | None = None,
    tokenizer: Path | None = None,
    sequence: int = 128,
    window: Window | None = None,
    inputs: tuple[InputSpec, ...] = (),
    task: str = "unknown",
    allow_code: bool = True,
) -> Source:
    """Open samples by the form of their name.

    Args:
        spec: ``.npz`` (``x`` and ``y``, or arrays named as the model's inputs); a folder of class folders; ``.txt``
            (a line a sample, or running text for a causal language model), ``.csv`` or ``.jsonl`` (texts, or questions
            with ``context``, ``choices`` and ``answer``); ``FILE.py:NAME``.
        normalize: ``MEAN/STD`` a channel or ``imagenet``, applied to pixels in 0…1.
        tokenizer: The model's ``tokenizer.json``, or the folder that holds it; for text.
        sequence: Most tokens of a sample, and the length of a piece of running text; the model's own limits hold too.
        window: Running text in windows instead of pieces; most tokens of questions, which else are cut by the model's
            own limit alone.
        inputs: The model's inputs; the data is checked against them and gets their names, dtypes and axes.
        task: The model's task; ``causal-lm`` reads ``.txt`` as running text, ``unknown`` asks the tokenizer.
        allow_code: False refuses ``FILE.py:NAME``.

    Raises:
        InputError: Missing, damaged, hostile or of another shape than the model takes.
        UsageError: An unknown form, or an option that doesn't fit it.
        MachineError: An optional library isn't installed.
    """
    path = Path(spec)
    parse_normalize(normalize)
    suffix = path.suffix.lower()
    if window is not None and (is_reference(spec) or suffix not in _TEXT):
        raise _no_windows(spec)
    if is_reference(spec):
        _no_normalize(normalize, "your code's batches")
        return PythonSource(spec, load_object(spec, "`data`", allow_code=allow_code), inputs)
    if not path.exists():
        raise PathError(f"{spec} does not exist", _FORMS)
    if path.is_dir():
        return open_folder(spec, path, normalize, tuple(one.by_sample for one in inputs))
    if not path.is_file():  # opening a FIFO would wait for who writes it
        raise InputError(f"{spec} is not a regular file", _FORMS)
    if suffix == ".npz":
        return open_npz(spec, path, normalize, inputs)
    if suffix in _TEXT:
        _no_normalize(normalize, "text")
        text = read_text(path)
        questions = suffix == ".jsonl" and _has_questions(path, text)
        if questions or window is not None:
            sequence = UNCUT if window is None else window.tokens
        encoder = Encoder(tokenizer, sequence, inputs)
        if questions:
            return ChoiceSource(spec, read_questions(path, text), encoder)
        return _open_text(spec, text, encoder, task, window)
    raise UsageError(f"{spec} is of no known form", _FORMS)


def _no_normalize(normalize: str | None, what: str) -> None:
    if normalize is not None:
        raise UsageError(f"`normalize` is for images, not for {what}")


def _no_windows(name: str) -> UsageError:
    return UsageError(
        f"`window` is for the running text of a causal language model and for questions, not for {name}",
        "give a .txt, or a .jsonl with context, choices and answer",
    )


def _has_questions(path: Path, text: str) -> bool:
    """Whether the first line of a ``.jsonl`` has what makes a question."""
    row = next(json_rows(path, text), (0, {}))[1]
    return len(KEYS & row.keys()) > 1


def _open_text(name: str, text: str, encoder: Encoder, task: str, window: Window | None) -> Source:
    path = Path(name)
    if path.suffix.lower() == ".txt" and (task == "causal-lm" or (task == "unknown" and not encoder.masked)):
        return RunningText(name, text, encoder) if window is None else WindowedText(name, text, encoder, window)
    if window is not None:
        raise _no_windows(name)
    if path.suffix.lower() == ".txt":
        return TextSource(name, [line.strip() for line in text.split("\n") if line.strip()], None, encoder)
    table = read_table(path)
    if table.second is not None and table.targets is not None:
        return PairSource(name, table.first, table.second, table.targets, encoder)
    return TextSource(name, table.first, table.targets, encoder)


def input_specs(source: Source) -> tuple[InputSpec, ...]:
    """A model's inputs as far as data tells them: first axis ``batch``, second of token ids ``sequence``.

    ``high`` of integers is the tokenizer's vocabulary, else one past the largest value in the first 64 samples.

    Raises:
        InputError: The source is empty or damaged.
    """
    batch = next(source.batches(64))
    specs = []
    for name, array in batch.inputs.items():
        integers = array.dtype.kind in "ui"
        free = integers and array.ndim == 2 and source.kind in ("tokens", "pairs")
        shape: tuple[int | str, ...] = ("batch", "sequence") if free else ("batch", *array.shape[1:])
        high = _high(source, name, array) if integers else None
        specs.append(InputSpec(name, str(array.dtype), shape, high))
    return tuple(specs)


def _high(source: Source, name: str, array: np.ndarray) -> int:
    vocabulary = getattr(source, "vocabulary", None)
    if vocabulary is not None and name == "input_ids":
        return int(vocabulary)
    return max(2, int(array.max()) + 1)
