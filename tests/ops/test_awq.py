"""AWQ: scaling changes nothing before the rounding, and rounding loses less after it."""

from __future__ import annotations

import copy

import pytest
import torch
from calibration_models import Blocks, batches, forward
from torch import nn

from compresskit.ops.calibration.moments import Moments, output_error
from compresskit.ops.calibration.sequential import Segment, run_sequentially
from compresskit.ops.calibration.trace import trace
from compresskit.ops.packed.grid import Grid, dequantize
from compresskit.ops.quantize.awq import _fold, quantize_weighted, scale_group
from compresskit.ops.quantize.rtn import quantize_rtn

GRID = Grid(3, 32)


def test_scales_fold_into_the_norm_only_where_nothing_else_reads_it() -> None:
    module = Blocks()
    before = forward(copy.deepcopy(module), batches()[0])
    found = trace(module, lambda: forward(module, batches()[0]))
    folded: dict[str, bool] = {}

    def step(segment: Segment) -> None:
        for group in segment.groups:
            moments = segment.moments(group)
            weights = {n: segment.layer(n).get_parameter("weight").clone() for n in group}
            scaled = scale_group(segment, group, moments, dict.fromkeys(group, GRID), found)
            changed = not torch.equal(weights[group[0]], segment.layer(group[0]).get_parameter("weight"))
            folded[group[0]] = changed and scaled.input_scale is None
            if scaled.input_scale is not None:
                weight = segment.layer(group[0]).get_parameter("weight")
                assert torch.allclose(weight * scaled.input_scale, weights[group[0]], atol=1e-5)
                for name in group:  # put back: a plain layer has no place for it
                    segment.layer(name).get_parameter("weight").data.copy_(weights[name])
            elif changed:
                again = segment.moments(group)[group[0]].gram
                assert torch.allclose(scaled.moments[group[0]].gram, again, rtol=1e-2, atol=1e-3)

    names = [n for n, m in module.named_modules() if isinstance(m, nn.Linear) and n not in ("unused", "head")]
    run_sequentially(module, batches(), forward, names, step, found=found)
    assert folded["layers.0.q"] and not folded["layers.0.out"] and not folded["layers.0.down"]
    assert torch.allclose(forward(module, batches()[0]), before, atol=1e-4)


def test_the_weighted_range_search_lowers_the_weighted_error() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 64, generator=generator)
    gram = torch.diag(torch.logspace(-2, 2, 64)[torch.randperm(64, generator=generator)])[None]
    moments = Moments(gram, torch.zeros(1, 64), 100)
    ours, plain = (
        float(output_error(weight, dequantize(p), moments).sum())
        for p in (quantize_weighted(weight, GRID, moments), quantize_rtn(weight, GRID))
    )
    assert ours < 0.9 * plain
    even = Moments(torch.eye(64)[None], torch.zeros(1, 64), 100)
    assert torch.equal(quantize_weighted(weight, GRID, even).codes, quantize_rtn(weight, GRID).codes)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_norm_of_any_precision_takes_a_scale(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm, x, scale = nn.LayerNorm(32).to(dtype), torch.randn(4, 32).to(dtype), torch.logspace(-1, 1, 32)
    before = norm(x).float()
    assert _fold(norm, scale)
    assert float((norm(x).float() * scale - before).norm() / before.norm()) < 1e-2
