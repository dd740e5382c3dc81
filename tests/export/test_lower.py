"""Packed layers in the file: the same codes, stored once, in the operators that run them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_models import (
    CONV_GRIDS,
    GRIDS,
    IMAGE,
    SIZES,
    Cnn,
    Convs,
    Many,
    Tied,
    corrected,
    ids,
    make,
    pack_all,
    packed,
)
from torch import Tensor, nn

from compresskit.exporter.lower import block_of, lowered
from compresskit.exporter.onnx_export import export_onnx
from compresskit.exporter.parity import parity
from compresskit.model import InputSpec
from compresskit.ops.packed.grid import Grid
from compresskit.ops.packed.modules import PackedConv, PackedEmbedding, PackedLinear
from compresskit.ops.packed.nf4 import NF4, nf4_grid


@pytest.mark.parametrize("kind", [nn.Linear, nn.Embedding])
def test_every_grid_and_width_is_exact(kind: type[nn.Module], tmp_path: Path) -> None:
    module = Many(kind, GRIDS)
    linear = kind is nn.Linear
    inputs = (InputSpec("x", "float32", ("batch", "sequence", 64)),) if linear else (ids("x", 9),)
    exported = export_onnx(module, inputs, tmp_path / "m.onnx")
    proof = parity(module, tmp_path / "m.onnx", inputs)
    assert proof.passed, proof
    assert proof.rel_l2 < 1e-6 if linear else proof.max_abs == 0
    count = Counter(node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node)
    if linear:
        fits = Counter(g.bits in (4, 8) for w in SIZES for g in GRIDS if block_of(g, w))
        assert fits[True] == count["MatMulNBits"] > 0
        assert fits[False] == count["DequantizeLinear"] > 0
        assert fits.total() == exported.operators["Linear"] < len(GRIDS) * len(SIZES)
    else:
        assert exported.operators == {"Embedding": len(GRIDS) * len(SIZES)}


def test_conv_codes_are_exact_and_stored_as_they_are(tmp_path: Path) -> None:
    module = Convs()
    export_onnx(module, IMAGE, tmp_path / "m.onnx")
    assert parity(module, tmp_path / "m.onnx", IMAGE).passed
    stored = {i.raw_data for i in onnx.load(tmp_path / "m.onnx").graph.initializer}
    convs = [layer for layer in module.modules() if isinstance(layer, PackedConv)]
    assert len(convs) == 2 * len(CONV_GRIDS)
    assert all(layer.codes.numpy().tobytes() in stored for layer in convs)


def test_the_codes_of_a_product_are_the_layers_own_bytes(tmp_path: Path) -> None:
    layer = PackedLinear(nn.Linear(64, 7), packed((7, 64), Grid(4, 32)))
    export_onnx(layer, (InputSpec("x", "float32", ("batch", 64)),), tmp_path / "m.onnx", accuracy_level=4)
    model = onnx.load(tmp_path / "m.onnx")
    node = next(n for n in model.graph.node if n.op_type == "MatMulNBits")
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    assert np.array_equal(stored[node.input[1]], layer.codes.numpy())
    assert np.array_equal(stored[node.input[3]], layer.zeros.numpy())
    assert any(np.array_equal(a, layer.scales.numpy()) and a.dtype == np.float16 for a in stored.values())
    assert {a.name: a.i for a in node.attribute}["accuracy_level"] == 4


@pytest.mark.parametrize("grid", [Grid(3, 16), Grid(4, 32), Grid(8, 0), nf4_grid(16)], ids=str)
def test_tied_codes_are_stored_once(grid: Grid, tmp_path: Path) -> None:
    shared = packed((500, 48), grid)
    module = Tied(shared)
    inputs = (ids("ids", 500),)
    export_onnx(module, inputs, tmp_path / "m.onnx")
    assert parity(module, tmp_path / "m.onnx", inputs).passed
    assert (tmp_path / "m.onnx").stat().st_size < 1.1 * shared.nbytes() + 3500


@pytest.mark.parametrize("kind", ["llama", pytest.param("bert", marks=pytest.mark.slow), "GRU"])
def test_packed_foreign_models(kind: str, tmp_path: Path) -> None:
    module, inputs = make(kind)
    pack_all(module, Grid(4, 16))
    exported = export_onnx(module, inputs, tmp_path / "m.onnx")
    assert parity(module, tmp_path / "m.onnx", inputs, limits=exported.limits).passed
    assert exported.operators["Linear"] and exported.operators["Embedding"]


@pytest.mark.parametrize("grid", [Grid(3, 32), Grid(4, 32), nf4_grid()], ids=str)
def test_corrections_are_stored_as_they_are(grid: Grid, tmp_path: Path) -> None:
    layer = corrected(grid)
    inputs = (InputSpec("x", "float32", ("batch", 512)),)
    export_onnx(layer, inputs, tmp_path / "m.onnx")
    proof = parity(layer, tmp_path / "m.onnx", inputs)
    assert proof.passed, proof
    stored = sum(t.numel() * t.element_size() for t in (*layer.buffers(), *layer.parameters()))
    assert (tmp_path / "m.onnx").stat().st_size < stored + 3500
    model = onnx.load(tmp_path / "m.onnx")
    assert {node.op_type for node in model.graph.node} >= {"Cast", "Mul", "Add"}
    plain = PackedLinear(nn.Linear(512, 384), layer.packed)
    assert not np.allclose(plain(torch.ones(1, 512)).detach(), layer(torch.ones(1, 512)).detach(), atol=0.1)


class Deep(nn.Module):
    """An embedding, some blocks and a head: 0.9 million weights."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.embed = PackedEmbedding(nn.Embedding(1000, 256), packed((1000, 256), grid))
        shapes = [(512, 256), (256, 512)] * 4
        layers = [PackedLinear(nn.Linear(s[1], s[0]), packed(s, grid, i)) for i, s in enumerate(shapes)]
        self.blocks = nn.ModuleList(layers)
        self.head = PackedLinear(nn.Linear(256, 1000), packed((1000, 256), grid, 9))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for up, down in zip(self.blocks[::2], self.blocks[1::2], strict=True):
            x = x + down(torch.relu(up(x)))
        return self.head(x)


@pytest.mark.parametrize("grid", [Grid(2, 32), Grid(3, 32), Grid(4, 32), Grid(8, 128, True), nf4_grid()], ids=str)
def test_the_file_is_hardly_more_than_its_tensors(grid: Grid, tmp_path: Path) -> None:
    module = Deep(grid)
    export_onnx(module, (ids("ids", 1000),), tmp_path / "m.onnx", accuracy_level=4)
    tensors = sum(t.numel() * t.element_size() for t in (*module.buffers(), *module.parameters()))
    count = 1000 * 256 * 2 + 512 * 256 * 8
    groups = count // grid.group_size
    wanted = count * grid.bits / 8 + groups * (4 if grid.format is NF4 else 2)
    wanted += 0 if grid.symmetric else groups * grid.bits / 8
    wanted += 4 * sum(p.numel() for p in module.parameters())
    assert (tmp_path / "m.onnx").stat().st_size < 1.02 * tensors
    assert (tmp_path / "m.onnx").stat().st_size < 1.02 * wanted


def test_code_that_reads_a_packed_weight_still_works(tmp_path: Path) -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = PackedEmbedding(nn.Embedding(20, 32), packed((20, 32), Grid(4, 16)))

        def forward(self, ids: Tensor) -> Tensor:
            return self.embed(ids) @ self.embed.weight.t()

    inputs = (ids("ids", 20),)
    export_onnx(Reads(), inputs, tmp_path / "m.onnx")
    assert parity(Reads(), tmp_path / "m.onnx", inputs).passed


def test_the_copy_shares_tensors_and_leaves_the_original_alone() -> None:
    module = pack_all(Cnn(), Grid(4, 32)).train()
    module.alias = module.head  # a second name, and a plain list that holds a layer
    module.plain = [module.first]
    kinds = [type(layer) for layer in module.modules()]
    twin = lowered(module)
    assert [type(layer) for layer in module.modules()] == kinds and module.training and not twin.training
    assert twin.alias is twin.head and twin.plain[0] is twin.first and twin.head is not module.head
    ours = {t.data_ptr() for t in (*module.parameters(), *module.buffers()) if t.numel()}
    assert {t.data_ptr() for t in (*twin.parameters(), *twin.buffers()) if t.numel()} == ours
