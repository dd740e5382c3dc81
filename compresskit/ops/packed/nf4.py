"""The format NF4: 4-bit NormalFloat, 16 levels at the quantiles of a normal distribution.

Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs" (2023), arXiv:2305.14314. Levels are those of
bitsandbytes. Left out: the second quantization of the scales.
"""

from __future__ import annotations

from compresskit.ops.packed.format import Format
from compresskit.ops.packed.layout import Grid

# float32 scales: float16 ones would save a quarter of a bit, and give other values than bitsandbytes.
NF4 = Format(
    "nf4",
    (4,),
    (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ),
    scales="float32",
)  # fmt: skip


def nf4_grid(group_size: int = 64) -> Grid:
    """NF4 in groups of columns."""
    return Grid(4, group_size, symmetric=True, format=NF4)
