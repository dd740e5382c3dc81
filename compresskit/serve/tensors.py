"""The tensors of the Open Inference Protocol: JSON, or bytes after the JSON, to numpy and back.

Whatever a client sends is checked against what the model takes, and the first thing that doesn't fit is named.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any, NoReturn

import numpy as np

from compresskit.errors import InputError
from compresskit.model import InputSpec
from compresskit.serve.refused import Refused

DATATYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
}  # fmt: skip
_REQUEST = {"id", "inputs", "outputs", "parameters"}
_INPUT = {"name", "shape", "datatype", "data", "parameters"}
_OUTPUT = {"name", "parameters"}
_ID = 256


@dataclass(frozen=True)
class Limits:
    """The largest request.

    Attributes:
        batch: Rows of an input whose first axis is free.
        length: Size of any other free axis; tokens of a prompt and its answer together.
        body: Bytes.
        timeout: Seconds that a request may take to arrive, and again to be answered.
    """

    batch: int = 64
    length: int = 4096
    body: int = 16_000_000
    timeout: float = 30.0


@dataclass(frozen=True)
class Request:
    """What a client asked for.

    Attributes:
        feeds: Array by input name.
        outputs: The names that are wanted, and whether each is to come as bytes.
        id: Sent back as it came; None where there was none.
    """

    feeds: dict[str, np.ndarray]
    outputs: dict[str, bool]
    id: str | None = None


def read_request(
    body: bytes, header: int | None, inputs: tuple[InputSpec, ...], outputs: tuple[str, ...], limits: Limits
) -> Request:
    """Read the body of an inference request.

    Args:
        body: As it came.
        header: Bytes of JSON at its start, where the data of tensors follow; None when all of it is JSON.
        inputs: What the model takes.
        outputs: What the model gives.
        limits: The largest request.

    Raises:
        Refused: Something is wrong with it (400).
    """
    if header is not None and not 0 <= header <= len(body):
        _bad(f"Inference-Header-Content-Length is {header}, the body has {len(body)} bytes")
    end = len(body) if header is None else header
    document = _object(_parse(body[:end]), _REQUEST, "the request")
    name = document.get("id")
    if name is not None and (not isinstance(name, str) or len(name) > _ID):
        _bad(f"id: expected a string of at most {_ID} characters")
    feeds = _read_inputs(document.get("inputs"), inputs, memoryview(body)[end:], limits)
    return Request(feeds, _wanted(document, outputs), name)


def _read_inputs(
    tensors: Any, inputs: tuple[InputSpec, ...], rest: memoryview, limits: Limits
) -> dict[str, np.ndarray]:
    """All inputs of the model; ``rest`` are the bytes after the JSON."""
    if not isinstance(tensors, list):
        _bad("inputs: expected a list of tensors")
    specs = {spec.name: spec for spec in inputs}
    feeds: dict[str, np.ndarray] = {}
    for tensor in tensors:
        given = _object(tensor, _INPUT, "an input")
        spec = specs.get(given["name"]) if isinstance(given.get("name"), str) else None
        if spec is None:
            _bad(f"input {given.get('name')!r}: the model takes {', '.join(specs)}")
        if spec.name in feeds:
            _bad(f"input '{spec.name}' is given twice")
        feeds[spec.name], rest = _read_tensor(given, spec, rest, limits)
    if missing := [spec for spec in specs if spec not in feeds]:
        _bad(f"input '{missing[0]}' is missing: the model takes {', '.join(specs)}")
    if len(rest):
        _bad(f"{len(rest)} bytes follow the data of the last tensor")
    return feeds


def write_response(model: str, request: Request, results: dict[str, np.ndarray]) -> tuple[bytes, int | None]:
    """The body that answers a request, and the bytes of JSON at its start where data of tensors follow.

    Raises:
        Refused: An output holds NaN or Inf, which JSON has no word for and nobody should act on (500).
    """
    described: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for name, binary in request.outputs.items():
        array = results[name]
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise Refused(500, f"output '{name}' holds NaN or Inf: the model can't be trusted with this input")
        entry: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": DATATYPES[array.dtype.name]}
        if binary:
            blobs.append(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
            entry["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            entry["data"] = array.ravel().tolist()
        described.append(entry)
    document: dict[str, Any] = {"model_name": model, "outputs": described}
    if request.id is not None:
        document["id"] = request.id
    head = json.dumps(document, allow_nan=False, separators=(",", ":")).encode("utf-8")
    return (head + b"".join(blobs), len(head)) if blobs else (head, None)


def _bad(message: str) -> NoReturn:
    raise Refused(400, message)


def _not_json(word: str) -> NoReturn:
    _bad(f"the body holds {word}, which is not JSON")


def _parse(text: bytes) -> Any:
    """JSON, without the NaN and Infinity that Python adds to it."""
    try:
        return json.loads(text.decode("utf-8"), parse_constant=_not_json)
    except RecursionError:
        _bad("the body is nested too deeply")
    except UnicodeDecodeError:
        _bad("the body is not UTF-8")
    except ValueError as error:
        _bad(f"the body is not JSON: {error}")


def _object(found: Any, known: set[str], what: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        _bad(f"{what}: expected a JSON object, found {_kind(found)}")
    if unknown := sorted(set(found) - known):
        _bad(f"{what} has the unknown key '{unknown[0]}': known are {', '.join(sorted(known))}")
    return found


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _flag(parameters: Any, name: str, default: bool) -> bool:
    value = parameters.get(name, default) if isinstance(parameters, dict) else default
    if not isinstance(value, bool):
        _bad(f"parameter {name}: expected true or false")
    return value


def _wanted(document: dict[str, Any], outputs: tuple[str, ...]) -> dict[str, bool]:
    """The outputs asked for, all of them where none is named."""
    binary = _flag(document.get("parameters"), "binary_data_output", False)
    asked = document.get("outputs")
    if asked is None or asked == []:
        return dict.fromkeys(outputs, binary)
    if not isinstance(asked, list):
        _bad("outputs: expected a list of objects with a name")
    found: dict[str, bool] = {}
    for item in asked:
        entry = _object(item, _OUTPUT, "an output")
        name = entry.get("name")
        if not isinstance(name, str) or name not in outputs:
            _bad(f"output {name!r}: the model gives {', '.join(outputs)}")
        found[name] = _flag(entry.get("parameters"), "binary_data", binary)
    return found


def _read_tensor(
    given: dict[str, Any], spec: InputSpec, rest: memoryview, limits: Limits
) -> tuple[np.ndarray, memoryview]:
    """One input, and the bytes that it left for the next."""
    what = f"input '{spec.name}'"
    if given.get("datatype") != DATATYPES[spec.dtype]:
        _bad(f"{what}: expected datatype {DATATYPES[spec.dtype]}, found {given.get('datatype')!r}")
    shape = _shape(given.get("shape"), spec, limits)
    parameters = given.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is None:
        array = _from_json(given.get("data"), shape, np.dtype(spec.dtype), what)
    elif "data" in given:
        _bad(f"{what} has data and binary_data_size")
    else:
        array = _from_bytes(rest, size, shape, np.dtype(spec.dtype), what)
        rest = rest[size:]
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        _bad(f"{what} holds NaN, Inf or a number too large for {DATATYPES[spec.dtype]}")
    if spec.high is not None and array.dtype.kind in "iu" and (array.max() >= spec.high or array.min() < -spec.high):
        _bad(f"{what} holds {array.max() if array.max() >= spec.high else array.min()}: it is the row of a table of "
             f"{spec.high}")  # fmt: skip
    return array, rest


def _from_bytes(rest: memoryview, size: Any, shape: tuple[int, ...], dtype: np.dtype, what: str) -> np.ndarray:
    """The first ``size`` bytes, little-endian."""
    if type(size) is not int or size != prod(shape) * dtype.itemsize or size > len(rest):
        _bad(f"{what}: binary_data_size is {size!r}, its shape has {prod(shape) * dtype.itemsize} bytes and "
             f"{len(rest)} follow")  # fmt: skip
    raw = rest[:size]
    if dtype.kind == "b" and np.frombuffer(raw, np.uint8).max(initial=0) > 1:
        _bad(f"{what}: a BOOL is a byte of 0 or 1")
    return np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype).reshape(shape)


def _shape(given: Any, spec: InputSpec, limits: Limits) -> tuple[int, ...]:
    what = f"input '{spec.name}'"
    if not isinstance(given, list) or any(type(size) is not int or size < 1 for size in given):
        _bad(f"{what}: shape is a list of numbers of at least 1")
    if len(given) != len(spec.shape):
        _bad(f"{what}: expected shape {free(spec)}, found one of {len(given)} axes")
    for axis, (found, size) in enumerate(zip(given, spec.shape, strict=True)):
        most = limits.length if axis else limits.batch
        if isinstance(size, int) and size != found:
            _bad(f"{what}: expected shape {free(spec)}, found {given[:8]}")
        if isinstance(size, str) and found > most:
            _bad(f"{what}: axis {axis} is {found}, this server takes {'a batch of ' if not axis else ''}at most {most}")
    return tuple(given)


def free(spec: InputSpec) -> list[int]:
    """A shape as the protocol writes it: -1 for an axis that may vary."""
    return [size if isinstance(size, int) else -1 for size in spec.shape]


def _from_json(data: Any, shape: tuple[int, ...], dtype: np.dtype, what: str) -> np.ndarray:
    """Flat or nested lists of numbers, by row."""
    data = _flat(data, shape, what)
    allowed: set[type] = {bool} if dtype.kind == "b" else {int} if dtype.kind in "iu" else {int, float}
    if strange := set(map(type, data)) - allowed:
        kinds = {bool: "a boolean", int: "an integer", float: "a fraction"}
        names = sorted(kinds.get(kind) or _kind(kind()) for kind in strange)
        _bad(f"{what}: {DATATYPES[dtype.name]} was expected, found {names[0]}")
    try:
        with np.errstate(over="ignore"):
            return np.array(data, dtype).reshape(shape)
    except (OverflowError, ValueError):
        _bad(f"{what} holds a number too large for {DATATYPES[dtype.name]}")


def _flat(data: Any, shape: tuple[int, ...], what: str) -> Any:
    """The values of a shape, in one list."""
    if not isinstance(data, list):
        _bad(f"{what}: data is a list of numbers, found {_kind(data)}" if data is not None else f"{what} has no data")
    found = [len(data)]
    while data and isinstance(data[0], list):
        if len(found) == len(shape) or any(type(row) is not list or len(row) != len(data[0]) for row in data):
            _bad(f"{what}: data is nested unlike its shape {list(shape)}")
        found.append(len(data[0]))
        data = list(chain.from_iterable(data))
    if len(data) != prod(shape) or (len(found) > 1 and tuple(found) != shape):
        _bad(f"{what}: shape {list(shape)} is {prod(shape)} values, found {len(data)} as {found}")
    return data


def check_types(inputs: tuple[InputSpec, ...], results: dict[str, np.ndarray]) -> None:
    """Refuse a model whose inputs or outputs the protocol has no word for.

    Raises:
        InputError: It takes or gives text, bfloat16, or something that is no tensor.
    """
    for spec in inputs:
        if spec.dtype not in DATATYPES:
            raise InputError(f"input '{spec.name}' is of type {spec.dtype or 'unknown'}, which can't be served")
    for name, array in results.items():
        if not isinstance(array, np.ndarray) or array.dtype.name not in DATATYPES:
            raise InputError(f"output '{name}' is of type {getattr(array, 'dtype', 'unknown')}, which can't be served")
