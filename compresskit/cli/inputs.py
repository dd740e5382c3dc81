"""From what was typed to models, data and numbers."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskit.errors import UsageError

if TYPE_CHECKING:
    from compresskit.model import Model


_PASSWORD = re.compile(r"(://)[^/@\s]*:[^/@\s]*@")
"""Of an address as ``postgresql://user:password@host``."""


def parse_shape(text: str | None) -> tuple[int, ...] | None:
    """``1,3,32,32``.

    Raises:
        UsageError: Anything but positive numbers with commas.
    """
    if text is None:
        return None
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise UsageError(f"--input-shape is numbers with commas as 1,3,32,32, found '{text}'")
    return shape


def parse_counts(option: str, text: str, *, least: int = 1) -> list[int]:
    """The numbers of a sweep: ``1,8``.

    Args:
        option: What it was given to.
        text: As typed.
        least: The smallest that is allowed.

    Raises:
        UsageError: Anything but different whole numbers with commas.
    """
    found: list[int] = []
    for part in text.split(","):
        digits = part.strip()
        if not (digits.isascii() and digits.isdigit() and len(digits) < 10) or int(digits) < least:
            raise UsageError(f"{option} is whole numbers from {least} with commas as 1,8, found '{text}'")
        if int(digits) in found:
            raise UsageError(f"{option} {text} has {int(digits)} twice", "give each number once")
        found.append(int(digits))
    return found


def parse_generation(text: str) -> tuple[int, int]:
    """Tokens of a prompt and new ones: ``512,128``.

    Raises:
        UsageError: Anything but two whole numbers from 1 with a comma.
    """
    parts = text.split(",")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and 0 < int(part) < 1 << 20 for part in parts):
        raise UsageError(f"--generate is tokens of the prompt and new ones as 512,128, found '{text}'")
    return int(parts[0]), int(parts[1])


def parse_args(text: str | None) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UsageError: Anything else.
    """
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--arch-args is not JSON: {error}", """for example --arch-args '{"depth": 20}'""") from error
    if not isinstance(found, dict):
        raise UsageError(f"--arch-args must be a JSON object, found {type(found).__name__}")
    return found


def parse_axes(given: list[str] | None) -> dict[str, int | None]:
    """The values of ``--batch-axis`` by input; None for ``none``.

    Raises:
        UsageError: One isn't ``NAME=AXIS`` or ``NAME=none``.
    """
    found: dict[str, int | None] = {}
    for text in given or ():
        name, _, axis = text.rpartition("=")
        if not name or not (axis == "none" or (axis.isascii() and axis.isdigit() and len(axis) < 3)):
            raise UsageError(
                f"--batch-axis {text}: expected NAME=AXIS or NAME=none", "for example --batch-axis state=1"
            )
        found[name] = None if axis == "none" else int(axis)
    return found


def load_options(
    arch: str | None,
    arch_args: str | None,
    input_shape: str | None,
    allow_nonfinite: bool,
    key: str | None = None,
) -> dict[str, Any]:
    """The keyword arguments of :func:`compresskit.runner.loading.load`; JSON."""
    args = parse_args(arch_args)
    if args and arch is None:
        raise UsageError("--arch-args is for --arch, which is not given")
    shape = parse_shape(input_shape)
    return {"arch": arch, "arch_args": args, "input_shape": shape, "key": key, "allow_nonfinite": allow_nonfinite}


def load_model(path: Path, options: dict[str, Any]) -> Model:
    """Read MODEL, to be changed."""
    from compresskit.runner.loading import load

    return load(path, **options)


def command_line() -> str:
    """How this program was called, as any machine may read it: absolute paths are cut, passwords left out."""
    words = [_PASSWORD.sub(r"\1…@", a) for a in sys.argv[1:]]
    words = [Path(a).name if Path(a).is_absolute() and Path(a).name else a for a in words]
    return shlex.join(["compresskit", *words])


def default_output(model: Path, method: str) -> Path:
    """Where a stage writes when it isn't told: beside nothing, in the current folder."""
    stem = model.resolve().name.removesuffix(model.suffix) if model.is_file() else model.resolve().name
    return Path(f"{stem or 'model'}-{method}")


def value_of(arguments: list[str], option: str) -> str | None:
    """The last value of an option, read without knowing the other options."""
    found = None
    for index, word in enumerate(arguments):
        if word.startswith(option + "="):
            found = word[len(option) + 1 :]
        elif word == option and index + 1 < len(arguments):
            found = arguments[index + 1]
    return found
