"""What a stage records of its work, as types, and how it is read back from a card that anyone may have changed.

A record of its own is a frozen dataclass that inherits :class:`Facts`; a stage names it as its ``facts``. What is made
of it is sized by its numbers, so each has bounds here, and everything is checked before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import Field, InstanceOf, TypeAdapter, ValidationError

from compresskit.errors import InputError

T = TypeVar("T")
_HINT = "it is damaged, or was changed: make it again"

Text = InstanceOf[str]
"""Any text, also what no UTF-8 can hold: a byte of a file name."""
Name = InstanceOf[str]
"""The dotted name of a layer; whether there is one shows when the facts meet an architecture."""
Flag = Annotated[bool, Field(strict=True)]
Whole = Annotated[int, Field(strict=True)]
Count = Annotated[int, Field(strict=True, ge=0, le=1 << 62)]
Index = Annotated[int, Field(strict=True, ge=0, le=1 << 31)]
Size = Annotated[int, Field(strict=True, ge=1, le=1 << 31)]
"""Of one axis."""
Rank = Annotated[int, Field(strict=True, ge=1, le=1 << 20)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Shape = Annotated[list[Size], Field(min_length=1, max_length=8)]
Ranks = Annotated[list[Rank], Field(min_length=1, max_length=2)]
Pair = Annotated[list[Size], Field(min_length=2, max_length=2)]
Into = Annotated[T, Field(alias="in")]
"""A field whose key is ``in``, which Python keeps for itself."""
Bits = Annotated[int, Field(strict=True, ge=2, le=8)]
"""Of a code."""
Group = Annotated[int, Field(strict=True, ge=0, le=256)]
"""Columns that share a scale; 0 is a whole row."""
Layers = Annotated[Mapping[Name, T], Field(max_length=1 << 20)]
"""What is recorded of each layer, by its name."""


@dataclass(frozen=True, kw_only=True)
class LayerFacts:
    """What a stage did to one layer.

    Attributes:
        about: In words.
    """

    about: Text | None = None


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The data that a stage looked at.

    Attributes:
        data: Its name.
        samples: How many of it.
        sha256: Its fingerprint.
    """

    data: Text
    samples: Count
    sha256: Text


@dataclass(frozen=True, kw_only=True)
class TrainingFacts:
    """How a stage trained.

    Attributes:
        data: The name of what it trained on.
        sha256: Its fingerprint.
        samples: How many of it.
        batch_size: Samples of a step.
        optimizer: Its name.
        lr: The largest learning rate.
        epochs: How many ran.
        kept_epoch: The one whose weights remain.
        curve: What was measured in each, by name.
        held_out: Samples that were measured after each epoch.
    """

    data: Text
    sha256: Text
    samples: Count
    batch_size: Count
    optimizer: Text
    lr: Number
    epochs: Count
    kept_epoch: Count
    curve: list[dict[Text, Number | None]]
    held_out: Count = 0


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What any stage may record; with the tensors a stage's facts are enough to rebuild the module.

    Attributes:
        layers: The layers that it changed.
        notes: What is to be said to people.
        calibration: The data that it looked at.
        training: How it trained.
    """

    layers: Layers[LayerFacts] = field(default_factory=dict)
    notes: list[Text] = field(default_factory=list)
    calibration: Calibration | None = None
    training: TrainingFacts | None = None


def read_facts(kind: type[T], data: object, what: str = "the card", *, strict: bool = True) -> T:
    """Facts from JSON.

    Args:
        kind: A dataclass of facts.
        data: What the JSON holds.
        what: Where it is from, for the error.
        strict: Refuse keys that the dataclass has no field for; else they are left out.

    Raises:
        InputError: A field is missing, unknown, of another type or out of bounds; the error names it.
    """
    try:
        read: T = _adapter(kind).validate_python(data, extra="forbid" if strict else "ignore")
        return read
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"])) or "it"
        unknown = first["type"] == "unexpected_keyword_argument"
        found = "an unknown key" if unknown else f"{first['msg']}, found {_short(first['input'])}"
        raise InputError(f"{what}: {place}: {found}", _HINT) from error
    except UnicodeEncodeError as error:  # pydantic can't quote such text
        raise InputError(f"{what}: {_short(error.object)} is no text", _HINT) from error


def to_json(facts: Any) -> dict[str, Any]:
    """The JSON of a dataclass of facts: the inverse of :func:`read_facts`. What has its default value is left out."""
    data: dict[str, Any] = _adapter(type(facts)).dump_python(facts, by_alias=True, exclude_defaults=True)
    return data


_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def _short(value: object) -> str:
    if isinstance(value, (dict, list, tuple)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return "a huge number"
    return text if len(text) <= 60 else f"{text[:60]}…"
