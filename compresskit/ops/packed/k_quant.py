"""The K-quants of llama.cpp: equal steps whose scales are stored in two levels.

Q2_K, Q3_K, Q4_K, Q5_K and Q6_K, by the bits of a code. A super-block of 256 columns takes as many bytes here as in a
GGUF file, and its codes stand for the same numbers to the last bit: float32 holds each product of a float16 scale, a
whole number and a code exactly, so only the difference with a minimum is rounded, once.
"""

from __future__ import annotations

from compresskit.ops.packed.format import Format, TwoLevel

K_QUANT = Format(
    "k-quant",
    (2, 3, 4, 5, 6),
    groups_convolutions=False,
    two_level=(
        TwoLevel(16, 4, minima=True),
        TwoLevel(16, 6, minima=False),
        TwoLevel(8, 6, minima=True),
        TwoLevel(8, 6, minima=True),
        TwoLevel(16, 8, minima=False),
    ),
)
