"""Options that several methods have, each declared once."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

GROUPS = (0, 16, 32, 64, 128, 256)


def known_group(value: int | None) -> int | None:
    """A group size that weights can have, as it is.

    Raises:
        ValueError: It is another.
    """
    if value is not None and value not in GROUPS:
        raise ValueError(f"must be one of {', '.join(map(str, GROUPS))}")
    return value


def with_bits(method: str, bits: int | None) -> str:
    """The label of a method that has an option for bits: ``gptq4``, and ``int8-static``, which says them already."""
    return method if bits is None or str(bits) in method else f"{method}{bits}"


GroupSize = Annotated[
    int | None,
    Field(description="Most columns that share a scale: 16 to 256; 0 is a whole row. (8 bit: 128, else 32)"),
    AfterValidator(known_group),
]
Symmetric = Annotated[bool, Field(description="Store no zero points: a little smaller, a little less exact.")]
Include = Annotated[tuple[str, ...], Field(description="Only layers whose name matches this glob; repeatable.")]
Exclude = Annotated[tuple[str, ...], Field(description="No layer whose name matches this glob; repeatable.")]
Samples = Annotated[int, Field(ge=1, description="Calibration samples taken from `data`.")]
Drift = Annotated[
    float,
    Field(ge=0, le=1, description="Share of what earlier layers lost that is made up for; 0 takes half the time."),
]
Damping = Annotated[
    float | None,
    Field(
        gt=0,
        le=1,
        description="Added to the diagonal of the moments, as a fraction of its mean. (less, the more samples)",
    ),
]
Refit = Annotated[bool, Field(description="With `data`: fit the layers of the result to what the original gave.")]
TargetLatency = Annotated[
    float | None,
    Field(gt=0, lt=1, description="Share of the latency that may stay, measured through ONNX on this machine."),
]
