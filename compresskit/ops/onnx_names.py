"""The names that onnxruntime's quantizer, and export after it, give to what belongs to an 8-bit weight."""

from __future__ import annotations

CODES, SCALE, ZERO_POINT = "_quantized", "_scale", "_zero_point"
TRANSPOSED = "_Transposed"  # before ``CODES``: the weight of a Gemm, turned over


def coded(name: str) -> str | None:
    """The weight's own name, from that of its codes; None where it is no such name."""
    return name.removesuffix(CODES) if name.endswith(CODES) else None
