"""From stored samples to what a model takes: pixels to floats, axes in the model's order, helper inputs filled in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from compresskit.errors import InputError, UsageError, listing
from compresskit.model import InputSpec

_CHANNELS = (1, 3, 4)
HELPERS = ("attention_mask", "token_type_ids", "position_ids")
"""Inputs that can be made from the others."""
_FORM = "expected MEAN/STD with one number a channel on each side, such as .485,.456,.406/.229,.224,.225, or 'imagenet'"


@dataclass(frozen=True)
class Normalize:
    """``(value - mean) / std`` a channel, on pixels in 0…1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def parse_normalize(text: str | None) -> Normalize | None:
    """Read `normalize`.

    Raises:
        UsageError: Not ``MEAN/STD``, not numbers, counts that differ, or a deviation that isn't above 0.
    """
    if text is None:
        return None
    if text.strip() == "imagenet":
        return Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    parts = text.split("/")
    try:
        mean, std = (tuple(float(v) for v in part.split(",")) for part in parts)
    except ValueError as error:
        raise UsageError(f"`normalize` '{text}' is not understood", _FORM) from error
    if len(mean) != len(std) or not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise UsageError(f"`normalize` '{text}': {len(mean)} means, {len(std)} deviations (each above 0)", _FORM)
    return Normalize(mean, std)


def shape_text(shape: tuple[int | str, ...]) -> str:
    """A shape for people: ``(batch, 3, 32, 32)``."""
    return "(" + ", ".join(str(n) for n in shape) + ")"


def fits(found: tuple[int, ...], expected: tuple[int | str, ...]) -> bool:
    """True when the shapes agree, a named axis agreeing with any size; the first axis (batch) isn't compared."""
    return len(found) == len(expected) and all(
        isinstance(e, str) or f == e for f, e in zip(found[1:], expected[1:], strict=True)
    )


@dataclass(frozen=True)
class Plan:
    """How one stored array becomes one input.

    Attributes:
        name: The model's name of the input.
        shape: The input's shape, ``batch`` first.
        dtype: numpy's name of the input's type.
        axes: Order of the stored axes; None when a channel axis is inserted instead.
        pixels: True when bytes 0…255 become floats 0…1.
        normalize: Applied along ``channel``.
        channel: The axis of the result that holds the channels.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    axes: tuple[int, ...] | None
    pixels: bool = False
    normalize: Normalize | None = None
    channel: int = 1

    def options(self) -> dict[str, Any]:
        """What changes the samples, as JSON; for the fingerprint."""
        mean_std = [self.normalize.mean, self.normalize.std] if self.normalize else None
        return {"dtype": self.dtype, "axes": self.axes, "pixels": self.pixels, "normalize": mean_std}

    def apply(self, block: np.ndarray) -> np.ndarray:
        """The stored samples ``(n, …)`` as a new array of the input's dtype and axes; pixels in one pass."""
        view = block[:, None] if self.axes is None else block.transpose(self.axes)
        if not self.pixels and self.normalize is None:
            return np.array(view, self.dtype, order="C")  # a copy: torch takes no read-only memory
        scale, shift = self._affine(view.ndim)
        # out in C order: numpy would otherwise keep the stored order and every runtime would copy once more.
        out = np.multiply(view, scale, out=np.empty(view.shape, np.float32), casting="same_kind")
        if self.normalize is not None:
            out -= shift
        result: np.ndarray = out.astype(self.dtype, copy=False)
        return result

    def _affine(self, ndim: int) -> tuple[np.ndarray, np.ndarray]:
        unit = 1 / 255 if self.pixels else 1.0
        if self.normalize is None:
            return np.float32(unit).reshape(()), np.float32(0).reshape(())
        sizes = [1] * ndim
        sizes[self.channel] = -1
        std = np.asarray(self.normalize.std)
        scale, shift = unit / std, np.asarray(self.normalize.mean) / std
        return scale.astype(np.float32).reshape(sizes), shift.astype(np.float32).reshape(sizes)


def make_plan(where: str, array: np.ndarray, name: str, spec: InputSpec | None, normalize: Normalize | None) -> Plan:
    """Decide how an array feeds an input.

    Bytes are pixels unless the model wants integers; images may be stored NHWC, NCHW or NHW. With a ``spec`` the
    axes are put in the order that fits it; without one, channels go first.

    Raises:
        InputError: Shape or dtype that the model's input can't take.
        UsageError: ``normalize`` for something that isn't an image, or with another number of channels.
    """
    dtype = spec.dtype if spec else _natural_dtype(array.dtype)
    kind = np.dtype(dtype).kind
    if kind in "ui" and array.dtype.kind == "f":
        raise InputError(f"{where} should hold integers for the model's input '{name}', found dtype {array.dtype}")
    pixels = array.dtype == np.uint8 and kind == "f"
    axes, shape = _layout(where, array, spec, pixels)
    plan = Plan(name, ("batch", *shape[1:]), dtype, axes, pixels)
    if normalize is None:
        return plan
    if kind != "f" or len(shape) != 4:
        raise UsageError(f"`normalize` is for images; the samples of {where} have the shape {shape_text(shape[1:])}")
    count = len(normalize.mean)
    channel = 1 if shape[1] == count else 3
    if shape[channel] != count:
        raise UsageError(f"`normalize` has {count} channels, {where} has samples of shape {shape_text(shape[1:])}")
    return Plan(name, plan.shape, dtype, axes, pixels, normalize, channel)


def _natural_dtype(stored: np.dtype) -> str:
    if stored == np.uint8 or stored.kind == "f":
        return "float32"
    return "bool" if stored.kind == "b" else "int64"


def _layout(
    where: str, array: np.ndarray, spec: InputSpec | None, pixels: bool
) -> tuple[tuple[int, ...] | None, tuple[int, ...]]:
    """The order of axes and the shape that results; None for an inserted channel axis."""
    same = tuple(range(array.ndim))
    choices: list[tuple[int, ...] | None] = [same]
    if array.ndim == 3:
        choices = [None, same] if pixels else [same, None]
    elif array.ndim == 4:
        last = array.shape[3] in _CHANNELS and (pixels or array.shape[1] not in _CHANNELS)
        choices = [(0, 3, 1, 2), same] if last else [same, (0, 3, 1, 2)]
        choices.append((0, 2, 3, 1))
    shapes = [(len(array), 1, *array.shape[1:]) if a is None else tuple(array.shape[i] for i in a) for a in choices]
    if spec is None:
        return choices[0], shapes[0]
    for axes, shape in zip(choices, shapes, strict=True):
        if fits(shape, spec.shape):
            return axes, shape
    raise InputError(
        f"{where} has samples of shape {shape_text(array.shape[1:])}; "
        f"the model's input '{spec.name}' expects {shape_text(spec.shape[1:])}",
        "give data of the model's shape, or the model's real shape with `input_shape`",
    )


def check_values(where: str, block: np.ndarray, dtype: str, spec: InputSpec | None) -> None:
    """Refuse values that a model can't take.

    Raises:
        InputError: NaN or Inf (also after the change to ``dtype``), or an integer outside 0…``spec.high - 1``.
    """
    if block.dtype.kind == "f":
        with np.errstate(over="ignore"):
            finite = np.isfinite(block.astype(dtype, copy=False)).all()
        if not finite:
            raise InputError(f"{where} holds NaN or Inf (as {dtype})", "remove those samples")
    elif block.dtype.kind in "ui" and spec is not None and spec.high is not None and block.size:
        low, high = int(block.min()), int(block.max())
        if low < 0 or high >= spec.high:
            raise InputError(
                f"{where} holds {low if low < 0 else high}; the model's input '{spec.name}' takes 0 to {spec.high - 1}",
                "the data was made with another tokenizer than this model's",
            )


def by_sample(where: str, arrays: dict[str, np.ndarray], specs: tuple[InputSpec, ...]) -> dict[str, np.ndarray]:
    """Arrays stored as the model takes them, as rows of a sample each.

    Args:
        where: They are from, for messages.
        arrays: By name; those of inputs whose samples lie along another axis than the first are turned, those of inputs
            that all samples share are seen once a sample.
        specs: The model's inputs.

    Raises:
        InputError: Such an array has a shape that the model doesn't take.
    """
    other = {s.name: s for s in specs if s.batch_axis != 0 and s.name in arrays}
    for name, spec in other.items():
        found = arrays[name].shape
        sizes = zip(found, spec.shape, strict=False)
        same = [isinstance(own, str) or n == own or axis == spec.batch_axis for axis, (n, own) in enumerate(sizes)]
        if len(found) != len(spec.shape) or not all(same):
            raise InputError(
                f"{where}: array '{name}' is {shape_text(found)}, the model's input takes {shape_text(spec.shape)}",
                "store it as the model takes it; `batch_axis` names the batch axis",
            )
    counts = [len(array) for name, array in arrays.items() if name not in other and array.ndim]
    counts += [arrays[name].shape[spec.batch_axis] for name, spec in other.items() if spec.batch_axis is not None]
    count = counts[0] if counts else 1
    return {name: other[name].rows_of(array, count) if name in other else array for name, array in arrays.items()}


def taken(specs: tuple[InputSpec, ...]) -> Literal["texts", "images", "rows", "arrays"]:
    """What a user has for a model: texts for token ids, images, rows of numbers, or nothing but arrays."""
    own = primary(specs)
    if len(own) != 1:
        return "arrays"
    integers, axes = np.dtype(own[0].dtype).kind in "ui", len(own[0].shape)
    if integers and axes == 2:
        return "texts"
    return "arrays" if integers else {4: "images", 2: "rows"}.get(axes, "arrays")  # type: ignore[return-value]


def primary(specs: tuple[InputSpec, ...]) -> list[InputSpec]:
    """The inputs that must come from data."""
    return [s for s in specs if s.name not in HELPERS]


def complete(inputs: dict[str, np.ndarray], specs: tuple[InputSpec, ...]) -> dict[str, np.ndarray]:
    """Exactly the inputs that a model declares, in its dtypes; helper inputs are made where absent.

    A lone input goes to a lone input whatever their names. A helper has the shape of the token ids ``(n, L)``, and the
    values that :meth:`compresskit.model.InputSpec.implied` gives it.

    Raises:
        InputError: An input that isn't there and can't be made, or floats for an input of integers.
    """
    own, wanted = [n for n in inputs if n not in HELPERS], primary(specs)
    if len(own) == len(wanted) == 1 and own[0] != wanted[0].name:
        inputs = {wanted[0].name: inputs[own[0]], **{n: inputs[n] for n in inputs if n in HELPERS}}
    out: dict[str, np.ndarray] = {}
    for spec in specs:
        if spec.name in inputs:
            out[spec.name] = _cast(inputs[spec.name], spec)
            continue
        known = spec.name in HELPERS and wanted and wanted[0].name in inputs
        helper = spec.implied(inputs[wanted[0].name].shape[:2]) if known else None
        if helper is None:
            raise InputError(f"the model's input '{spec.name}' is not in the data, which has {listing(list(inputs))}")
        out[spec.name] = helper
    return out


def _cast(array: np.ndarray, spec: InputSpec) -> np.ndarray:
    if array.dtype.kind == "f" and np.dtype(spec.dtype).kind != "f":
        raise InputError(f"the model's input '{spec.name}' takes {spec.dtype}, found {array.dtype}")
    return array.astype(spec.dtype, copy=False)
