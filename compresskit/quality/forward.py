"""Running a session over batches: its own input names, bounded memory, and no broken output unseen."""

from __future__ import annotations

import numpy as np

from compresskit.data.prepare import complete, shape_text
from compresskit.errors import InputError, printable
from compresskit.runtimes.base import Session


class NonFiniteOutput(InputError):
    """The model gives NaN or Inf on finite inputs: it is broken, and no figure of it means anything."""


def forward(session: Session, inputs: dict[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
    """Outputs by name for inputs of any number of samples, at most ``rows`` in one pass.

    A model that is built for one batch size gets exactly that many: the last pass is filled up with its own last
    sample, and the surplus is cut away. Outputs without a batch axis are left out.

    Raises:
        InputError: The data lacks an input of the model.
    """
    feeds = complete(inputs, session.inputs) if session.inputs else inputs
    total = len(next(iter(feeds.values())))
    fixed = _fixed_batch(session)
    step = fixed or max(1, rows)
    if total == step or (fixed is None and total < step):
        return _batched(session.run(feeds), total, total)
    parts = [
        _pass({name: value[start : start + step] for name, value in feeds.items()}, session, fixed)
        for start in range(0, total, step)
    ]
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0] if all(name in p for p in parts)}


def _pass(feeds: dict[str, np.ndarray], session: Session, fixed: int | None) -> dict[str, np.ndarray]:
    """One pass, filled up to a fixed batch size with its last sample; only the samples that were given come out."""
    have = len(next(iter(feeds.values())))
    given = fixed or have
    if have < given:
        feeds = {name: np.concatenate([v, np.repeat(v[-1:], given - have, axis=0)]) for name, v in feeds.items()}
    return _batched(session.run(feeds), given, have)


def _fixed_batch(session: Session) -> int | None:
    shape = session.inputs[0].shape if session.inputs else ()
    return shape[0] if shape and isinstance(shape[0], int) and shape[0] > 0 else None


def _batched(outputs: dict[str, np.ndarray], given: int, keep: int) -> dict[str, np.ndarray]:
    return {name: value[:keep] for name, value in outputs.items() if value.ndim > 0 and len(value) == given}


def output(outputs: dict[str, np.ndarray], wanted: tuple[str, ...], ndims: tuple[int, ...], what: str) -> np.ndarray:
    """The output that a metric looks at: the first of ``wanted`` that is there, else the first of a fitting rank.

    Args:
        outputs: Arrays by name, in the model's order.
        wanted: Names to prefer.
        ndims: Ranks that fit, batch axis counted.
        what: What is looked for, for the message: ``logits (n, classes)``.

    Raises:
        NonFiniteOutput: NaN or Inf in it.
        InputError: No output fits.
    """
    for name in (*(w for w in wanted if w in outputs), *outputs):
        array = outputs[name]
        if array.ndim in ndims and array.dtype.kind == "f":
            check_finite(name, array)
            return array
    found = (
        ", ".join(f"{printable(n, 40)} {shape_text(a.shape)}" for n, a in outputs.items()) or "none with a batch axis"
    )
    raise InputError(f"the model should give {what}; its outputs are {found}")


def check_finite(name: str, array: np.ndarray) -> None:
    """Refuse NaN and Inf.

    Raises:
        NonFiniteOutput: Names the output and how many of its values.
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int(array.size - np.isfinite(array).sum())
        raise NonFiniteOutput(
            f"the model's output '{printable(name, 40)}' holds {bad} NaN or Inf of {array.size} values",
            "the model is broken: look for the layer with `compresskit inspect`, or compress less",
        )
