"""Weights that operators unpack are one weight each in what ``inspect`` says of a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compresskit.exporter.onnx_export import export_onnx
from compresskit.model import InputSpec
from compresskit.ops.inspect_onnx import inspect_onnx
from compresskit.ops.packed.grid import Grid, dequantize
from compresskit.ops.packed.modules import PackedLayer
from compresskit.ops.packed.nf4 import NF4, nf4_grid
from compresskit.ops.quantize.rtn import quantize_rtn
from compresskit.ops.quantize.select import Selection
from compresskit.ops.quantize.table import quantize_table
from compresskit.ops.quantize.weights import quantize_module


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 64)
        self.places = nn.Embedding(9, 64)
        self.conv = nn.Conv1d(64, 48, 3, padding=1)
        self.head = nn.Linear(48, 32)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1])
        x = self.words(ids) + self.places(places)
        return self.head(self.conv(x.transpose(1, 2)).transpose(1, 2))


@pytest.mark.parametrize(
    "grid", [Grid(2, 32), Grid(3, 32), Grid(3, 32, True), Grid(4, 32), Grid(8, 32, True), nf4_grid(32)], ids=str
)
def test_each_packed_layer_is_one_entry(grid: Grid, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Mixed()
    algorithm = quantize_table if grid.format is NF4 else quantize_rtn
    chosen = Selection(grid.bits, grid.group_size, grid.symmetric, format=grid.format)
    quantize_module(module, chosen, algorithm, lambda *_: None)
    export_onnx(module, (InputSpec("ids", "int64", ("batch", 8), 50),), tmp_path / "m.onnx")
    found = inspect_onnx(tmp_path / "m.onnx")
    packed = {name: layer for name, layer in module.named_modules() if isinstance(layer, PackedLayer)}
    entries = {entry["name"].removesuffix(".codes"): entry for entry in found["layers"] if "codes" in entry["name"]}
    assert entries.keys() == packed.keys() == {"words", "places", "conv", "head"}
    for name, layer in packed.items():
        entry = entries[name]
        assert sorted(entry["shape"]) == sorted(layer.shape)
        assert entry["dtype"] == ("nf4" if grid.format is NF4 else f"int{grid.bits}")
        assert entry["bytes"] - layer.packed.nbytes() in (0, 4 * 32, 4 * 48, 8 * 8)  # a bias, or the ids 0 to 7
        zeros = int((dequantize(layer.packed) == 0).sum())
        assert entry["sparsity"] * entry["parameters"] == pytest.approx(zeros)
    assert {entry["type"] for entry in found["layers"]} <= {"Gather", "Conv", "MatMul", "MatMulNBits", "Gemm", "Add"}
