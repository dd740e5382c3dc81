"""The keys of a recipe file besides its steps, each declared once: they are checked and documented from here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from compresskit.data.prepare import parse_normalize
from compresskit.errors import UsageError
from compresskit.quality.drop import parse_drop
from compresskit.recipe.limits import parse_size

PATH, CODE, OUTPUT = "path", "code", "output-path"
"""Formats of values that name something: a file or FILE.py:NAME, code, and what is written."""


def _text(value: Any) -> Any:
    """A number as it would be typed: ``max-size: 20000`` is bytes."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _hyphened(name: str) -> str:
    return name.replace("_", "-")


def known_drop(value: str | None) -> str | None:
    """A limit of the drop, as it is.

    Raises:
        ValueError: It can't be read.
    """
    try:
        parse_drop(value or "0pt")
    except UsageError as error:
        raise ValueError(error.hint) from error
    return value


class Keys(BaseModel):
    """Keys with hyphens."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=_hyphened, populate_by_name=True, protected_namespaces=()
    )


class Checks(Keys):
    """What the result must keep; every limit that isn't given has its default."""

    max_drop: Annotated[
        str | None,
        BeforeValidator(_text),
        Field(description="Maximum loss of quality against the original, as 0.5pt (points) or 1% (relative)."),
    ] = None
    max_size: Annotated[
        str | None, BeforeValidator(_text), Field(description="Maximum file size, as 20MB or 900KiB.")
    ] = None
    min_speedup: Annotated[
        float | None, Field(gt=0, allow_inf_nan=False, description="Minimum speed-up: 1.2 is 20 % faster.")
    ] = None

    _known_drop = field_validator("max_drop")(known_drop)

    @field_validator("max_size")
    @classmethod
    def _known_size(cls, value: str | None) -> str | None:
        try:
            parse_size(value or "1MB")
        except UsageError:
            raise ValueError("expected a number above 0 and a unit, as 20MB or 900KiB") from None
        return value


def _shape(value: Any) -> Any:
    """``1,3,32,32`` or ``1x3x32x32`` as a list."""
    if not isinstance(value, str):
        return value
    parts = value.replace("x", ",").split(",")
    if not all(part.strip().isascii() and part.strip().isdigit() and len(part) < 12 for part in parts):
        raise ValueError("expected numbers, batch first, as [1, 3, 32, 32]")
    return [int(part) for part in parts]


class Head(Keys):
    """A recipe without ``include``, ``steps`` and ``matrix``."""

    description: Annotated[str, Field(description="One line, shown by `recipe ls`.")] = ""
    model: Annotated[
        str | None,
        Field(
            description="State dict, Hugging Face folder, bundle or .onnx file, relative to this file.",
            json_schema_extra={"format": PATH},
        ),
    ] = None
    arch: Annotated[
        str | None,
        Field(
            description="FILE.py:NAME or package.module:NAME of the class or function that builds the module. Its "
            "code is executed.",
            json_schema_extra={"format": CODE},
        ),
    ] = None
    arch_args: Annotated[dict[str, Any] | None, Field(description="Keyword arguments of arch.")] = None
    input_shape: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...] | None,
        BeforeValidator(_shape),
        Field(description="Input shape, batch axis first: [1, 3, 32, 32]."),
    ] = None
    batch_axis: Annotated[
        dict[str, Annotated[int, Field(ge=0)] | Literal["none"]] | None,
        Field(description="Batch axis of each input of an ONNX file: {state: 1, rate: none}."),
    ] = None
    key: Annotated[str | None, Field(description="Which state dict of the file to read, for example params_ema.")] = (
        None
    )
    allow_nonfinite: Annotated[bool, Field(description="Accept NaN and Inf in the weights.")] = False
    data: Annotated[
        str | None,
        Field(
            description="Calibration and training data: .npz, folder of class folders, .txt/.csv/.jsonl, FILE.py:NAME.",
            json_schema_extra={"format": PATH},
        ),
    ] = None
    hold_out: Annotated[
        float | None,
        Field(
            gt=0, le=0.5, description="Fraction of data that is held out of all steps; compress used it for selection."
        ),
    ] = None
    eval_data: Annotated[
        str | None,
        Field(
            description="Evaluation data for the verdict, in the same formats as data.",
            json_schema_extra={"format": PATH},
        ),
    ] = None
    normalize: Annotated[
        str | None, Field(description="Mean and standard deviation per channel for images, as MEAN/STD, or imagenet.")
    ] = None
    sequence: Annotated[
        int, Field(ge=1, description="Maximum tokens of a text sample, and tokens of a timed sample.")
    ] = 128
    metric: Annotated[
        str | None,
        Field(
            description="Quality metric: accuracy, top5, perplexity, spearman or FILE.py:NAME. "
            "Chosen by the data if not given."
        ),
    ] = None
    checks: Annotated[Checks, Field(description="Limits that the result must meet.")] = Checks()
    device: Annotated[str, Field(min_length=1, description="Device for measurements.")] = "cpu"
    threads: Annotated[int, Field(ge=0, description="Threads per operator; 0 uses all cores.")] = 0
    seed: Annotated[int, Field(ge=0, lt=2**63, description="Random seed.")] = 0

    @field_validator("description")
    @classmethod
    def _one_line(cls, value: str) -> str:
        return " ".join(value.split())

    @field_validator("normalize")
    @classmethod
    def _known_normalize(cls, value: str | None) -> str | None:
        try:
            parse_normalize(value)
        except UsageError as error:
            raise ValueError(error.hint) from error
        return value
