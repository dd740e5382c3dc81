"""The user's own Python: ``FILE.py:NAME``, imported only because it was typed on the command line."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from compresskit.data.prepare import by_sample, check_values, complete, fits, shape_text
from compresskit.data.source import Batch
from compresskit.data.walking import Fingerprint, as_targets
from compresskit.errors import CompressKitError, InputError, PathError, UsageError
from compresskit.model import InputSpec

_REFERENCE = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)", re.DOTALL)
_END = object()
_FORM = "expected batches (x, y), (x,), or a dict of arrays by input name, with labels under 'y' or 'labels'"


def is_reference(spec: str) -> bool:
    """True for ``FILE.py:NAME``."""
    return _REFERENCE.fullmatch(spec) is not None


def load_object(spec: str, option: str, *, allow_code: bool) -> Any:
    """Import what ``FILE.py:NAME`` names; what it prints goes to stderr.

    Args:
        spec: The reference.
        option: The option that it was given to, for messages: `data`.
        allow_code: False where the reference wasn't typed by the user (a recipe).

    Raises:
        UsageError: Not such a reference, or code isn't allowed.
        InputError: The file is missing or fails, or has no such name.
    """
    match = _REFERENCE.fullmatch(spec)
    if match is None:
        raise UsageError(f"{option} {spec} is not FILE.py:NAME")
    if not allow_code:
        raise UsageError(f"{option} {spec} would run code, which a recipe may not", "add `allow_code` if you trust it")
    path = Path(match["file"])
    if not path.is_file():
        raise PathError(f"{path} does not exist", f"{option} FILE.py:NAME names a Python file and what it defines")
    module = _import(path)
    if not hasattr(module, match["name"]):
        raise InputError(f"{path} defines no '{match['name']}'")
    return getattr(module, match["name"])


def _import(path: Path) -> Any:
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # last, so that the user's files can't shadow a library
    name = f"_compresskit_user_{path.stem}"
    loaded = importlib.util.spec_from_file_location(name, path)
    if loaded is None or loaded.loader is None:
        raise InputError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(loaded)
    sys.modules[name] = module  # dataclasses and pickling look themselves up there
    try:
        with redirect_stdout(sys.stderr):
            loaded.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        raise failure(str(path), error) from error
    return module


def failure(where: str, error: BaseException) -> InputError:
    """The error for user code that raised; names the exception and the last line of the user's that it passed."""
    at, line = error.__traceback__, ""
    match = _REFERENCE.fullmatch(where)
    file = Path(match["file"] if match else where).name
    while at is not None:
        if Path(at.tb_frame.f_code.co_filename).name == file:
            line = f" at line {at.tb_lineno}"
        at = at.tb_next
    return InputError(f"{where} raised {type(error).__name__}{line}: {error}", "run with `debug` for the traceback")


class PythonSource:
    """Batches from a user's function (called for every walk) or from an object that can be iterated again."""

    def __init__(self, name: str, thing: Any, specs: tuple[InputSpec, ...]) -> None:
        self.name, self._thing = name, thing
        self._as_taken, self._specs = specs, tuple(spec.by_sample for spec in specs)
        self._length: int | None = None
        self.kind = "arrays"
        if not callable(thing) and not hasattr(thing, "__iter__"):
            raise InputError(f"{name} is neither a function nor iterable, found {type(thing).__name__}", _FORM)
        if not callable(thing) and iter(thing) is thing:
            raise InputError(f"{name} can be walked only once", "make it a function that returns a new iterator")
        first = next(iter(self._given()), None)
        if first is None:
            raise InputError(f"{name} gives no batches", _FORM)
        self.labelled = first.targets is not None
        values = next(iter(first.inputs.values()))
        if values.dtype.kind in "ui":
            self.kind = "tokens"
        elif values.ndim == 4:
            self.kind = "images"

    @property
    def counted(self) -> bool:
        """True once the length is known; until then it costs a walk through the user's code."""
        return self._length is not None

    def __len__(self) -> int:
        if self._length is None:
            self._length = sum(_rows(b) for b in self._given())
        return self._length

    def batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        """See :class:`~compresskit.data.source.Source`; the user's batches are cut, and joined where shapes agree."""
        if size < 1 or (limit is not None and limit < 1):
            raise UsageError(f"a batch size and a limit are at least 1, found {size} and {limit}")
        held: Batch | None = None
        left = limit
        for given in self._given():
            batch = given if left is None else _cut(given, slice(0, left))
            if left is not None:
                left -= _rows(batch)
            if held is not None and not _alike(held, batch):
                yield held
                held = None
            held = batch if held is None else _join(held, batch)
            while _rows(held) > size:
                yield _cut(held, slice(0, size))
                held = _cut(held, slice(size, None))
            if left == 0:
                break
        if held is not None:
            yield held

    def fingerprint(self) -> str:
        """See :class:`~compresskit.data.source.Source`; of the batches as given, not of the code."""
        prepared = Fingerprint({"kind": "python"})
        for batch in self._given():
            for key, array in batch.inputs.items():
                prepared.array(key, array)
            if batch.targets is not None:
                prepared.array("y", batch.targets)
        return prepared.hex()

    def _given(self) -> Iterator[Batch]:
        """The user's batches, checked; whatever their code raises becomes one error."""
        try:
            with redirect_stdout(sys.stderr):
                walk = iter(self._thing() if callable(self._thing) else self._thing)
            while True:
                with redirect_stdout(sys.stderr):
                    item = next(walk, _END)
                if item is _END:
                    return
                yield self._batch(item)
        except CompressKitError:
            raise
        except Exception as error:
            raise failure(self.name, error) from error

    def _batch(self, item: Any) -> Batch:
        if isinstance(item, dict):
            inputs = {str(k): _single(_numpy(v)) for k, v in item.items() if k not in ("y", "labels")}
            targets = item.get("y", item.get("labels"))
        elif isinstance(item, (tuple, list)) and len(item) in (1, 2):
            inputs, targets = {"x": _single(_numpy(item[0]))}, item[1] if len(item) == 2 else None
        else:
            raise InputError(f"{self.name}: {_FORM}; found {type(item).__name__}")
        inputs = complete(by_sample(self.name, inputs, self._as_taken), self._specs) if self._specs else inputs
        by_name = {s.name: s for s in self._specs}
        for key, array in inputs.items():
            _check(f"{self.name}: array '{key}'", array, by_name.get(key))
        ready = None if targets is None else as_targets("y", self.name, _numpy(targets))
        lengths = {k: len(v) for k, v in inputs.items()} | ({} if ready is None else {"y": len(ready)})
        if not inputs or len(set(lengths.values())) != 1:
            raise InputError(f"{self.name}: arrays of one batch differ in length: {lengths}")
        return Batch(inputs, ready)


def _check(where: str, array: np.ndarray, spec: InputSpec | None) -> None:
    if array.ndim == 0 or array.dtype.kind not in "buif":
        raise InputError(f"{where} should be an array of numbers, found {array.dtype}")
    if spec is not None and not fits(array.shape, spec.shape):
        raise InputError(f"{where} has the shape {shape_text(array.shape)}, expected {shape_text(spec.shape)}")
    check_values(where, array, str(array.dtype), spec)


def _numpy(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # a torch tensor, without importing torch
        value = value.detach().cpu().numpy()
    return np.asarray(value)


def _single(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _rows(batch: Batch) -> int:
    return len(next(iter(batch.inputs.values())))


def _cut(batch: Batch, span: slice) -> Batch:
    return Batch({k: v[span] for k, v in batch.inputs.items()}, None if batch.targets is None else batch.targets[span])


def _alike(a: Batch, b: Batch) -> bool:
    same = a.inputs.keys() == b.inputs.keys() and (a.targets is None) == (b.targets is None)
    return same and all(a.inputs[k].shape[1:] == b.inputs[k].shape[1:] for k in a.inputs)


def _join(a: Batch, b: Batch) -> Batch:
    inputs = {k: np.concatenate([a.inputs[k], b.inputs[k]]) for k in a.inputs}
    if a.targets is None or b.targets is None:
        return Batch(inputs)
    return Batch(inputs, np.concatenate([a.targets, b.targets]))
