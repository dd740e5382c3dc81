"""What a user has, as a model's inputs: texts, image files, rows of numbers, arrays."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from compresskit.data.archive import read_npz
from compresskit.data.folder import SUFFIXES, read_image, wanted
from compresskit.data.prepare import Normalize, check_values, complete, make_plan, primary, taken
from compresskit.data.tables import read_table, read_text
from compresskit.data.tokens import Encoder
from compresskit.errors import InputError, PathError, UsageError
from compresskit.model import InputSpec
from compresskit.usage import Usage

Feeds = dict[str, np.ndarray]
_UNBOUND = 1 << 30
_TEXTS = (".txt", ".csv", ".jsonl")


@dataclass
class Preparing:
    """Makes a model's inputs of what a user has.

    Attributes:
        specs: What the model takes, a row a sample.
        usage: How its inputs are prepared.
        folder: Where its tokenizer lies.
    """

    specs: tuple[InputSpec, ...]
    usage: Usage
    folder: Path

    def __post_init__(self) -> None:
        self.kind = taken(self.specs)

    @cached_property
    def _encoder(self) -> Encoder:
        return Encoder(self.folder, self.usage.tokens or _UNBOUND, self.specs)

    def texts(self, texts: Sequence[str]) -> Feeds:
        """Token ids and masks, each ``(n, L)``, padded to the longest text.

        Raises:
            InputError: There is no tokenizer, or not this model's.
            MachineError: The tokenizers library isn't installed.
        """
        ready = [self.usage.prompt + text for text in texts]
        return self._encoder([text.lower() for text in ready] if self.usage.lower else ready)

    def images(self, paths: Sequence[Path]) -> Feeds:
        """The pixels of image files, ``(n, …)`` as the model takes them.

        Raises:
            InputError: A file is missing, or no image.
            MachineError: Pillow isn't installed.
            UsageError: Nobody said how pixels are normalized.
        """
        channels, size = wanted(primary(self.specs)[0])
        if self.usage.pixels is None:
            raise UsageError(
                "the model's files do not say how pixels become its numbers",
                "give `normalize` MEAN/STD (0,0,0/1,1,1: from 0 to 1), or an .npz of ready numbers",
            )
        for path in paths:
            if not path.is_file():
                raise PathError(f"{path} does not exist", f"images end in {', '.join(SUFFIXES)}")
        shaped = self.usage.pixels
        blocks = [read_image(path, "L" if channels == 1 else "RGB", size, shaped) for path in paths]
        if any(block.shape != blocks[0].shape for block in blocks):
            raise InputError("the images are of different sizes, and the model takes any", "give them one by one")
        return self.arrays({"x": np.stack(blocks)})

    def arrays(self, arrays: Mapping[str, np.ndarray]) -> Feeds:
        """Arrays by input, or one under any name where the model takes one: pixels as bytes, or ready numbers.

        Raises:
            InputError: Names, shapes, types or values that the model doesn't take.
        """
        own = {spec.name: spec for spec in primary(self.specs)}
        if len(own) == len(arrays) == 1:
            arrays = {next(iter(own)): next(iter(arrays.values()))}
        found: Feeds = {}
        for name, array in arrays.items():
            spec = own.get(name)
            if spec is not None and np.dtype(spec.dtype).kind == "f":
                array = self._numbers(name, array, spec)
            check_values(f"the input '{name}'", array, spec.dtype if spec else str(array.dtype), spec)
            found[name] = array
        return complete(found, self.specs)

    def _numbers(self, name: str, array: np.ndarray, spec: InputSpec) -> np.ndarray:
        """Floats as the model takes them; bytes are pixels, which are scaled and normalized."""
        pixels, normalize = self.usage.pixels, None
        if array.dtype == np.uint8 and len(spec.shape) == 4 and pixels is not None:
            normalize = Normalize(pixels.mean, pixels.std) if pixels.mean else None
            if abs(pixels.scale * 255 - 1) > 1e-6:
                array = array.astype(np.float32) * np.float32(pixels.scale)
        return make_plan(f"the input '{name}'", array, name, spec, normalize).apply(array)


def typed(words: Sequence[str], kind: str) -> list[str | Path] | dict[str, np.ndarray]:
    """The samples that words of the command line stand for.

    Args:
        words: Image files, or folders of them; for texts the texts themselves, ``.txt``, ``.csv`` and ``.jsonl`` files,
            and ``-`` for the lines of standard input; a ``.csv`` of numbers; a single ``.npz`` for every model.
        kind: What a sample of the model is; see :func:`compresskit.data.prepare.taken`.

    Returns:
        Texts, paths of images, or arrays by name.

    Raises:
        InputError: A file is missing, empty or damaged.
        UsageError: Words that such a model doesn't take.
    """
    if any(word.lower().endswith(".npz") for word in words):
        if len(words) > 1:
            raise UsageError("an .npz goes alone: it holds all samples", "predict them one file after the other")
        arrays = read_npz(Path(words[0]))
        return {name: array for name, array in arrays.items() if name not in ("y", "labels")}
    if kind == "texts":
        return [text for word in words for text in _texts(word)]
    if kind == "images":
        return [path for word in words for path in _images(Path(word))]
    if kind == "rows" and all(word.lower().endswith(".csv") for word in words):
        return {"x": np.concatenate([rows_of(Path(word)) for word in words])}
    takes = "a .csv of numbers, or an .npz" if kind == "rows" else "an .npz with arrays named as its inputs"
    raise UsageError(f"'{words[0]}' is no input of this model, which takes {takes}")


def _texts(word: str) -> list[str]:
    path = Path(word)
    if word == "-":
        return [line.strip() for line in sys.stdin if line.strip()]
    if path.suffix.lower() not in _TEXTS:
        return [word]
    if not path.is_file():
        raise PathError(f"{path} does not exist", "a text that ends so is given in a file, or on standard input: -")
    if path.suffix.lower() == ".txt":
        return [line.strip() for line in read_text(path).split("\n") if line.strip()]
    table = read_table(path)
    if table.second is not None:
        return [text for pair in zip(table.first, table.second, strict=True) for text in pair]
    return table.first


def _images(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not found:
        raise InputError(f"{path} holds no images", f"images end in {', '.join(SUFFIXES)}")
    return found


def rows_of(path: Path) -> np.ndarray:
    """The numbers of a ``.csv``, float32 ``(n, columns)``; a first line without a number is a header.

    Raises:
        InputError: Missing, empty, lines of different lengths, or something that is no number; names the line.
    """
    if not path.is_file():
        raise PathError(f"{path} does not exist", "check the path")
    found: list[list[float]] = []
    for line, cells in enumerate(csv.reader(read_text(path).splitlines()), start=1):
        if not cells:
            continue
        try:
            row = [float(cell) for cell in cells]
        except ValueError as error:
            if line == 1 and not any(_is_number(cell) for cell in cells):
                continue
            raise InputError(f"{path} line {line}: numbers were expected: {error}") from error
        if found and len(row) != len(found[0]):
            raise InputError(f"{path} line {line}: {len(row)} numbers, the lines before have {len(found[0])}")
        found.append(row)
    if not found:
        raise InputError(f"{path} has no rows of numbers")
    return np.array(found, np.float32)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
