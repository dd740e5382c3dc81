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
    Field(
        description="Group size: columns that share a scale, 16 to 256; 0 uses one scale per row. (128 for 8 bit, "
        "else 32)"
    ),
    AfterValidator(known_group),
]
Symmetric = Annotated[
    bool, Field(description="Symmetric quantization without zero points: slightly smaller, slightly less accurate.")
]
Rotate = Annotated[
    bool,
    Field(
        description="First fold a random rotation into the weights, which spreads outliers over all columns. The float "
        "model computes the same. For Llama, Mistral, Qwen2 and Qwen3, with or without experts."
    ),
]
Include = Annotated[
    tuple[str, ...], Field(description="Quantize or prune only layers whose name matches this glob. Repeatable.")
]
Exclude = Annotated[tuple[str, ...], Field(description="Skip layers whose name matches this glob. Repeatable.")]
Samples = Annotated[int, Field(ge=1, description="Number of calibration samples.")]
Drift = Annotated[
    float,
    Field(ge=0, le=1, description="Fraction of the error of earlier layers that is compensated; 0 halves the time."),
]
Damping = Annotated[
    float | None,
    Field(
        gt=0,
        le=1,
        description="Damping: added to the diagonal of the Hessian, as a fraction of its mean. (smaller for more "
        "samples)",
    ),
]
Refit = Annotated[bool, Field(description="Refit the layers to the original's outputs by least squares. Needs `data`.")]
Budget = Annotated[
    float | None,
    Field(gt=0, lt=1, description="Target size: fraction of the model's multiply-accumulates (MACs) to keep."),
]
TargetLatency = Annotated[
    float | None,
    Field(
        gt=0, lt=1, description="Target latency as a fraction of the original's, measured with ONNX on this machine."
    ),
]
