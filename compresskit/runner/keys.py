"""What a step's result depends on, as one hash: bytes of inputs, options, code, versions, seed, threads, machine."""

from __future__ import annotations

import hashlib
import json
import os
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from compresskit.benchmark.machine import environment
from compresskit.checkpoint.bundle import extras_of, sha256
from compresskit.errors import PathError
from compresskit.model import portable
from compresskit.runner.candidate import files_of
from compresskit.stage import Stage

_MORE = ("torch-pruning", "bitsandbytes", "peft", "tensorly", "accelerate", "tokenizers", "onnxscript", "pydantic")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def digest(*parts: object) -> str:
    """Hex SHA-256 of JSON data."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def surroundings(threads: int) -> dict[str, Any]:
    """What the bytes of a result may depend on besides its inputs: machine, versions, and this program's own code.

    Args:
        threads: As asked for; 0 is all cores.
    """
    found = environment(threads)
    packages = {name: known for name in _MORE if (known := _version(name))}
    found["packages"] = {**found["packages"], **packages}
    found["code"] = _code()
    found["variables"] = {name: os.environ[name] for name in _THREADS if name in os.environ}
    return found


@lru_cache(maxsize=1)
def _code() -> str:
    """Of every module of this package: the version alone says too little while it is being worked on."""
    root = Path(__file__).parent.parent
    return digest([(p.relative_to(root).as_posix(), sha256(p)) for p in sorted(root.rglob("*.py"))])


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def content(path: Path) -> str:
    """Of a MODEL's files, or of one file; their names count, the folder's place does not.

    Raises:
        InputError: It can't be read.
    """
    if not path.exists():
        raise PathError(f"{path} does not exist")
    files = {file.relative_to(path.parent if path.is_file() else path): file for file in files_of(path)}
    if path.is_dir():
        files |= {name: path / name for name in extras_of(path)}
    return digest(sorted((name.as_posix(), sha256(file)) for name, file in files.items()))


def code_of(word: str | None) -> str | None:
    """The content of the file that ``FILE.py:NAME`` names; another word as it is."""
    place = Path((word or "").rpartition(":")[0])
    return content(place) if place.suffix == ".py" and place.is_file() else word


def options_of(stage: Stage) -> dict[str, Any]:
    """A stage's options, with the content of every file that one of them names, and its path as a card records it.

    Fields that a card leaves away are left away: the state of a training changes as it goes on, the result doesn't.
    """
    return {name: _named(value) for name, value in stage.model_dump(mode="json").items()}


def _named(value: Any) -> Any:
    if not isinstance(value, str) or not value:
        return value
    place = Path(value.rpartition(":")[0]) if value.rpartition(":")[0].endswith(".py") else Path(value)
    try:
        return {"content": content(place), "as": portable(value)} if place.exists() else value
    except OSError:  # too long for a path: an option like any other
        return value
