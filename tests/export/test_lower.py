"""Packed layers in the file: the same codes, stored once, in the operators that run them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from export_models import IMAGE, Cnn, ids, make, pack_all, packed
from torch import Tensor, nn

from compresskit.export.lower import block_of, lowered
from compresskit.export.onnx_export import export_onnx
from compresskit.export.parity import parity
from compresskit.model import InputSpec
from compresskit.ops.quantize.grid import Grid, Packed
from compresskit.ops.quantize.modules import PackedEmbedding, PackedLinear

SIZES = (64, 50)
GRIDS = [Grid(b, g, s) for b, s in ((4, False), (4, True), (8, False)) for g in (0, 32, 48, 24)]


class Many(nn.Module):
    """One layer for each width and grid, all fed from one input."""

    def __init__(self, kind: type[nn.Module], grids: list[Grid]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()
        for seed, (width, grid) in enumerate((w, g) for w in SIZES for g in grids):
            if kind is nn.Linear:
                layer: nn.Module = PackedLinear(nn.Linear(width, 7, bias=seed % 2 == 0), packed((7, width), grid, seed))
            else:
                layer = PackedEmbedding(nn.Embedding(9, width), packed((9, width), grid, seed))
            self.layers[f"{width}_{grid.bits}_{grid.group_size}_{grid.symmetric}"] = layer

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if x.is_floating_point():
            return {name: layer(x[..., : layer.in_features]) for name, layer in self.layers.items()}
        return {name: layer(x) for name, layer in self.layers.items()}


@pytest.mark.parametrize("kind", [nn.Linear, nn.Embedding])
def test_every_grid_and_width_is_exact(kind: type[nn.Module], tmp_path: Path) -> None:
    module = Many(kind, GRIDS)
    linear = kind is nn.Linear
    inputs = (InputSpec("x", "float32", ("batch", "sequence", 64)),) if linear else (ids("x", 9),)
    exported = export_onnx(module, inputs, tmp_path / "m.onnx")
    proof = parity(module, tmp_path / "m.onnx", inputs)
    assert proof.passed, proof
    assert proof.rel_l2 < 1e-6 if linear else proof.max_abs == 0
    operator = "MatMulNBits" if linear else "GatherBlockQuantized"
    count = Counter(node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node)
    fits = sum(block_of(g.group_size, w, g.bits) is not None for w in SIZES for g in GRIDS)
    assert count[operator] == fits == exported.operators["Linear" if linear else "Embedding"]
    assert count["DequantizeLinear"] == len(GRIDS) * len(SIZES) - fits > 0


STORED = {
    Grid(4, 0): onnx.TensorProto.UINT4,
    Grid(4, 0, True): onnx.TensorProto.INT4,
    Grid(4, 16): onnx.TensorProto.UINT4,
    Grid(4, 32, True): onnx.TensorProto.INT4,
    Grid(8, 0): onnx.TensorProto.UINT8,
    Grid(8, 16, True): onnx.TensorProto.INT8,
}


class Convs(nn.Module):
    """A net of two convolutions for each grid."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList(pack_all(Cnn(), Grid(grid.bits, 32), grid) for grid in STORED)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(net(x) for net in self.nets)


def test_conv_codes_are_exact_and_stored_in_their_own_width(tmp_path: Path) -> None:
    module = Convs()
    export_onnx(module, IMAGE, tmp_path / "m.onnx")
    assert parity(module, tmp_path / "m.onnx", IMAGE).passed
    model = onnx.load(tmp_path / "m.onnx")
    stored = {i.name: i for i in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert Counter(stored[n.input[0]].data_type for n in nodes) == Counter(2 * list(STORED.values()))
    signed = (onnx.TensorProto.INT4, onnx.TensorProto.INT8)
    assert all((len(n.input) == 2) == (stored[n.input[0]].data_type in signed) for n in nodes)
    code_bytes = sum(len(stored[n.input[0]].raw_data) for n in nodes)
    assert code_bytes == sum((3 * 9 * 8 + 4 * 9 * 12) * grid.bits // 8 for grid in STORED)


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


class Tied(nn.Module):
    def __init__(self, shared: Packed) -> None:
        super().__init__()
        self.embed = PackedEmbedding(nn.Embedding(500, 48), shared)
        self.head = PackedLinear(nn.Linear(48, 500, bias=False), shared)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids))


@pytest.mark.parametrize("grid", [Grid(4, 32), Grid(8, 0)])
def test_tied_codes_are_stored_once(grid: Grid, tmp_path: Path) -> None:
    shared = packed((500, 48), grid)
    module = Tied(shared)
    inputs = (ids("ids", 500),)
    export_onnx(module, inputs, tmp_path / "m.onnx")
    assert parity(module, tmp_path / "m.onnx", inputs).passed
    assert (tmp_path / "m.onnx").stat().st_size < 1.1 * shared.nbytes() + 2500


@pytest.mark.parametrize("kind", ["llama", pytest.param("bert", marks=pytest.mark.slow), "GRU"])
def test_packed_foreign_models(kind: str, tmp_path: Path) -> None:
    module, inputs = make(kind)
    pack_all(module, Grid(4, 16))
    exported = export_onnx(module, inputs, tmp_path / "m.onnx")
    assert parity(module, tmp_path / "m.onnx", inputs, limits=exported.limits).passed
    assert exported.operators["Linear"] and exported.operators["Embedding"]


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
