"""Palettes: levels that fit a weight, stored beside its codes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from mixed_net import Mixed
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.exporter.onnx_export import export_onnx
from compresskit.exporter.parity import parity
from compresskit.facts import read_facts
from compresskit.facts.quantize import QuantizeFacts
from compresskit.model import InputSpec
from compresskit.ops.calibration.moments import Moments, output_error
from compresskit.ops.inspect import packed_zeros
from compresskit.ops.inspect_onnx import inspect_onnx
from compresskit.ops.packed.format import WIDTHS
from compresskit.ops.packed.grid import Grid, Packed, dequantize, pack, packed_bytes, unpack
from compresskit.ops.packed.layout import plane_bytes, planes, unpack_array
from compresskit.ops.packed.modules import PackedLayer
from compresskit.ops.packed.palette import PALETTES, Scope
from compresskit.ops.quantize.calibrated import Method, quantize_calibrated
from compresskit.ops.quantize.palette import cluster, quantize_palette
from compresskit.ops.quantize.palette_fit import calibrate_palette
from compresskit.ops.quantize.palette_report import PaletteReport, entropy_bits
from compresskit.ops.quantize.rtn import quantize_rtn
from compresskit.ops.quantize.select import Selection
from compresskit.ops.quantize.weights import quantize_module, replay

SCOPES: tuple[Scope, ...] = ("tensor", "row", "group")
SPEC = (InputSpec("ids", "int64", ("batch", 8), 50),)


def weight(rows: int = 24, columns: int = 96, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def moments(columns: int = 96) -> Moments:
    x = torch.randn(4 * columns, columns, generator=torch.Generator().manual_seed(1))
    x = x @ torch.randn(columns, columns, generator=torch.Generator().manual_seed(2)) / columns**0.5
    return Moments((x.mT @ x / len(x))[None], x.mean(0)[None], len(x))


def grid(scope: Scope, bits: int, group: int = 32) -> Grid:
    return Grid(bits, group, True, PALETTES[scope])


def quantized(scope: Scope, bits: int) -> tuple[nn.Module, dict[str, object]]:
    module = Mixed(96, 80)
    chosen = Selection(bits, 32, True, format=PALETTES[scope])
    facts, _ = quantize_module(module, chosen, quantize_palette, lambda *_: None)
    return module, facts


def layers(module: nn.Module) -> dict[str, PackedLayer]:
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, PackedLayer)}


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("count", [1, 9, 37, 64])
def test_unpack_undoes_pack_at_every_width(bits: int, count: int) -> None:
    codes = torch.randint(0, 1 << bits, (3, count), generator=torch.Generator().manual_seed(count)).to(torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (3, packed_bytes(count, bits))
    assert torch.equal(unpack(packed, bits, count), codes)
    assert np.array_equal(unpack_array(packed.numpy(), bits, count), codes.numpy())
    assert plane_bytes(packed.shape[1], bits) == tuple(packed_bytes(count, width) for width in planes(bits))


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("bits", [2, 4, 5])
def test_each_weight_takes_the_nearest_level_of_its_table(scope: Scope, bits: int) -> None:
    w = weight(columns=80)
    packed = quantize_palette(w, grid(scope, bits))
    assert packed.levels is not None
    tables = {"tensor": (1, 1), "row": (24, 1), "group": (24, 3)}[scope]
    assert packed.levels.shape == (*tables, 1 << bits) and packed.levels.dtype == torch.float16
    assert packed.nbytes() == packed.grid.nbytes((24, 80))
    wide = packed.levels.float().expand(24, 3, -1) * packed.scales.float().unsqueeze(-1)
    padded = nn.functional.pad(w, (0, 16)).reshape(24, 3, 32, 1)
    least = (padded - wide.unsqueeze(2)).abs().amin(-1).flatten(1)[:, :80]
    assert torch.allclose((dequantize(packed) - w).abs(), least, atol=1e-6)


@pytest.mark.parametrize("scope", SCOPES)
def test_dequantized_weights_are_coded_again_without_error(scope: Scope) -> None:
    once = dequantize(quantize_palette(weight(), grid(scope, 3)))
    again = dequantize(quantize_palette(once, grid(scope, 3)))
    error = (again - once).square().sum() / once.square().sum()
    assert error < 0.01  # at 3 bits it was .03 the first time


def test_k_means_finds_clusters_and_weighs_them() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([-1.0, -0.2, 0.3, 1.0])
    values = (centres.repeat(500) + 0.01 * torch.randn(2000, generator=generator))[None]
    found = cluster(values, torch.ones_like(values), 4)
    assert torch.allclose(found[0], centres, atol=2e-3)
    heavy = cluster(torch.tensor([[0.0, 1.0]]), torch.tensor([[3.0, 1.0]]), 1)
    assert heavy.tolist() == [[0.25]]


@pytest.mark.parametrize("bits", [3, 4])
def test_it_is_better_than_rtn_at_no_more_bytes(bits: int) -> None:
    w, seen = weight(96, 288), moments(288)
    rounded = quantize_rtn(w, Grid(bits, 32))
    plain, fitted = quantize_palette(w, grid("tensor", bits)), calibrate_palette(w, grid("tensor", bits), seen)
    assert plain.nbytes() == fitted.nbytes() <= rounded.nbytes()
    assert (dequantize(plain) - w).norm() < (dequantize(rounded) - w).norm()
    errors = [float(output_error(w, dequantize(found), seen).sum()) for found in (rounded, plain, fitted)]
    assert errors[2] < 0.6 * errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize("scope", SCOPES)
def test_refining_never_raises_the_error(scope: Scope) -> None:
    w, seen = weight(), moments()
    errors = [
        float(output_error(w, dequantize(calibrate_palette(w, grid(scope, 3), seen, rounds=n)), seen).sum())
        for n in (0, 1, 4)
    ]
    assert errors[2] <= errors[1] * 1.001 <= errors[0] * 1.002


def test_pruned_weights_stay_zero() -> None:
    w = weight() * (weight(seed=3).abs() > 0.7)
    for packed in (
        quantize_palette(w, grid("tensor", 4)),
        calibrate_palette(w, grid("tensor", 4), moments(), rounds=0),
    ):
        assert (packed.levels == 0).any()
    packed = quantize_palette(w, grid("tensor", 4))
    assert (dequantize(packed)[w == 0] == 0).all()
    assert packed_zeros(packed) == int((dequantize(packed) == 0).sum())


def test_scales_that_half_cannot_hold_are_single() -> None:
    for factor in (1e-7, 1e7):
        packed = quantize_palette(weight() * factor, grid("tensor", 6))
        assert packed.scales.dtype == torch.float32
        assert (dequantize(packed) / factor - weight()).norm() < 0.05 * weight().norm()


@pytest.mark.parametrize(
    ("scope", "bits"),
    [("tensor", 2), ("tensor", 3), ("tensor", 4), ("tensor", 7), ("tensor", 8), ("row", 4), ("group", 3)],
)
def test_the_onnx_file_and_a_rebuilt_module_compute_the_same(scope: Scope, bits: int, tmp_path: Path) -> None:
    module, facts = quantized(scope, bits)
    assert layers(module)
    fresh = Mixed(96, 80)
    assert not replay(fresh, read_facts(QuantizeFacts, facts))
    fresh.load_state_dict(module.state_dict())
    ids = torch.arange(16).reshape(2, 8)
    assert torch.equal(fresh(ids), module(ids))
    assert {n: layer.grid for n, layer in layers(fresh).items()} == {n: m.grid for n, m in layers(module).items()}
    export_onnx(module, SPEC, tmp_path / "m.onnx")
    proof = parity(module, tmp_path / "m.onnx", SPEC)
    assert proof.passed, proof
    model = onnx.load(tmp_path / "m.onnx")
    count = Counter(node.op_type for node in model.graph.node)
    assert count["Gather"] and bool(count["GatherElements"]) == (scope != "tensor")
    entries = {e["name"].removesuffix(".codes"): e for e in inspect_onnx(tmp_path / "m.onnx")["layers"]}
    for name, layer in layers(module).items():
        assert entries[name]["dtype"] == f"palette{bits}"
        bias = getattr(layer, "bias", None)
        assert entries[name]["bytes"] - layer.packed.nbytes() in (0, 0 if bias is None else 4 * bias.numel())


def test_a_weight_that_fails_is_left_as_it_was_and_named() -> None:
    module = Mixed(96, 80)
    with torch.no_grad():
        module.up.weight[3, 5] = torch.nan
    before = module.up.weight.clone()
    chosen = Selection(4, 32, True, format=PALETTES["tensor"])
    batches = [{"ids": torch.arange(16).reshape(2, 8)}]
    method = Method(calibrate_palette, quantize_palette, spares=True)
    facts, skipped = quantize_calibrated(module, chosen, method, batches, lambda m, b: m(b["ids"]), lambda *_: None)
    assert type(module.up) is nn.Linear
    assert torch.equal(module.up.weight.isnan(), before.isnan())
    assert torch.equal(module.up.weight.nan_to_num(), before.nan_to_num())
    assert skipped["up"] == "left as it was: the weight holds NaN or Inf"
    assert "words" in facts["layers"] and "up" not in facts["layers"]
    with pytest.raises(InputError, match="layer 'up'"):
        quantize_module(module, chosen, quantize_palette, lambda *_: None)


def test_what_is_told_counts_bytes_and_compares() -> None:
    report = PaletteReport()
    packed = report.watched(calibrate_palette)(weight(96, 288), grid("tensor", 4), moments(288))
    found = report.facts()
    assert found["stored_bytes"] == packed.nbytes()
    assert found["rtn_gain"] > 2
    assert "below that of rtn" in report.notes()[-1] and "smaller on disk only" in report.notes()[0]
    even = Packed(
        torch.full((4, 1, 8), 0x21, dtype=torch.uint8), packed.scales[:4, :1], None, (4, 16), Grid(4, 0, True)
    )
    assert entropy_bits(even) == pytest.approx(64)  # two codes, each in half of the places
    worse = PaletteReport()
    steps = torch.arange(4).repeat(16, 8) - torch.arange(16)[:, None] % 4  # rtn with zero points has no error
    worse.watched(quantize_palette)(steps.float(), grid("tensor", 2))
    assert "no better than rtn" in worse.notes()[-1]
    none = PaletteReport()
    none.watched(quantize_palette)(weight(), grid("tensor", 5))
    assert none.facts()["rtn_gain"] is None and len(none.notes()) == 2
