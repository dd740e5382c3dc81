"""What was done to a model beyond what was done to another, and whether that promises a smaller or faster one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest

from pydantic import ValidationError

from compresskit import registry
from compresskit.errors import CompressKitError
from compresskit.model import Applied
from compresskit.stage import Stage


def since(history: Sequence[Applied], before: Sequence[Applied]) -> list[Applied]:
    """What was done to a model but not, in the same order, to another.

    Args:
        history: Of the model.
        before: Of the other.
    """
    pairs = zip_longest(history, before[: len(history)])
    return [applied for applied, same in pairs if applied != same]


def promises_speed(history: Sequence[Applied], before: Sequence[Applied] = ()) -> bool:
    """Whether a model should be faster than another.

    Args:
        history: What was done to it.
        before: What was done to the other; what both have in common promises nothing.

    Returns:
        True also where nothing is known of what was done: then it has to prove itself.
    """
    return _promised(history, before, lambda stage: stage.promises_speed)


def promises_size(history: Sequence[Applied], before: Sequence[Applied] = ()) -> bool:
    """Whether a model should be no larger than another; see :func:`promises_speed`."""
    return _promised(history, before, lambda stage: stage.promises_size)


def _promised(history: Sequence[Applied], before: Sequence[Applied], promise: Callable[[Stage], bool]) -> bool:
    done = since(history, before)
    return not done or any(_promises(applied, promise) for applied in done)


def may_slow(history: Sequence[Applied], before: Sequence[Applied] = ()) -> bool:
    """Whether a model takes more time than another for what it gains; see :func:`promises_speed`."""
    return any(_promises(applied, lambda stage: stage.may_slow, unknown=False) for applied in since(history, before))


def varies(history: Sequence[Applied]) -> bool:
    """Whether a model takes more or less time from input to input."""
    return any(_varies(applied.name) for applied in history)


def _varies(name: str) -> bool:
    try:
        return registry.get(name).varies
    except CompressKitError:  # an absent plugin's
        return False


def _promises(applied: Applied, promise: Callable[[Stage], bool], *, unknown: bool = True) -> bool:
    try:
        return promise(registry.get(applied.name)(**applied.options))
    except (CompressKitError, ValidationError):  # an absent plugin's, or of an earlier version
        return unknown
