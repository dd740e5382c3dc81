"""Results from the original's graph: what a trace of them gives, or a trace."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest
from export_models import Cnn, corrected, make, pack_all
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.exporter.checked import export_checked, export_kept_checked
from compresskit.exporter.kept import KeptGraph
from compresskit.exporter.onnx_export import export_kept, export_onnx
from compresskit.exporter.parity import parity
from compresskit.model import Arch, Card, InputSpec, Model
from compresskit.ops.packed.grid import Grid
from compresskit.runner.prepare import to_onnx

ROW = (InputSpec("x", "float32", ("batch", 512)),)


def kept(module: nn.Module, inputs: tuple[InputSpec, ...], folder: Path) -> KeptGraph:
    """The graph of a module, as it is read back from a file."""
    graph = export_onnx(module, inputs, folder / "original.onnx").graph
    assert graph is not None
    assert KeptGraph.from_bytes(graph.to_bytes()) == graph
    return graph


def content(path: Path) -> tuple[Counter[object], Counter[object], list[str]]:
    """Operators with their attributes, and stored values, whatever their order and names."""
    graph = onnx.load(path).graph
    nodes = Counter((n.op_type, *sorted(a.SerializeToString() for a in n.attribute)) for n in graph.node)
    stored = Counter((i.data_type, tuple(i.dims), onnx.numpy_helper.to_array(i).tobytes()) for i in graph.initializer)
    return nodes, stored, [o.name for o in graph.output]


@pytest.mark.parametrize(
    ("kind", "grid"),
    [
        ("bert", Grid(4, 16)),
        pytest.param("bert", Grid(3, 16), marks=pytest.mark.slow),
        ("cnn", Grid(4, 4)),
        ("GRU", Grid(8, 0, symmetric=True)),
        pytest.param("llama", Grid(4, 16), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_packed_module_needs_no_trace(kind: str, grid: Grid, tmp_path: Path) -> None:
    module, inputs = make(kind)
    graph = kept(module, inputs, tmp_path)
    pack_all(module, grid)
    exported = export_kept(graph, module, tmp_path / "kept.onnx")
    assert exported is not None
    traced = export_onnx(module, inputs, tmp_path / "traced.onnx")
    assert exported.operators == traced.operators and exported.notes == traced.notes
    assert content(tmp_path / "kept.onnx") == content(tmp_path / "traced.onnx")
    if kind == "bert":
        assert (tmp_path / "kept.onnx").read_bytes() == (tmp_path / "traced.onnx").read_bytes()


class One(nn.Module):
    """A layer whose output is scaled by a number that is no tensor."""

    def __init__(self, layer: nn.Module, scale: float = 2.0) -> None:
        super().__init__()
        self.layer, self.scale = layer, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.scale


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("axes", [("batch", 512), ("batch", 3, 512)], ids=len)
def test_scaled_inputs_and_low_rank_terms_go_along(
    bits: int, axes: tuple[str | int, ...], tmp_path: Path
) -> None:  # fmt: skip
    module, inputs = One(nn.Linear(512, 384)).eval(), (InputSpec("x", "float32", axes),)
    graph = kept(module, inputs, tmp_path)
    module.layer = corrected(Grid(bits, 32))
    assert export_kept(graph, module, tmp_path / "kept.onnx")
    export_onnx(module, inputs, tmp_path / "traced.onnx")
    assert parity(module, tmp_path / "kept.onnx", inputs).passed
    assert content(tmp_path / "kept.onnx") == content(tmp_path / "traced.onnx")


def test_what_a_graph_does_not_tell_is_traced(tmp_path: Path) -> None:
    graph = kept(One(nn.Linear(512, 384)).eval(), ROW, tmp_path)

    def fits(module: nn.Module) -> bool:
        return export_kept(graph, module.eval(), tmp_path / "kept.onnx") is not None

    assert fits(One(nn.Linear(512, 384)))
    assert not fits(One(nn.Linear(512, 100)))
    assert not fits(One(nn.Linear(512, 384, bias=False)))
    assert not fits(One(nn.Sequential(nn.Linear(512, 384))))
    assert not fits(One(nn.Linear(512, 384).double()))
    packed = pack_all(One(nn.Linear(512, 384)), Grid(4, 32))
    assert fits(packed)
    assert export_onnx(packed, ROW, tmp_path / "m.onnx").graph is None, "what is packed already has no graph to keep"


def test_transposed_layers_and_half_a_tie_are_traced(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(40, 32), nn.Linear(32, 40, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.embed(ids))

    module, inputs = Tied().eval(), (InputSpec("ids", "int64", ("batch", "sequence"), 40),)
    graph = kept(module, inputs, tmp_path)
    whole, half = pack_all(Tied(), Grid(4, 32)).eval(), Tied().eval()
    half.head = whole.head
    assert export_kept(graph, whole, tmp_path / "kept.onnx")
    export_onnx(whole, inputs, tmp_path / "traced.onnx")
    assert content(tmp_path / "kept.onnx") == content(tmp_path / "traced.onnx")
    assert export_kept(graph, half, tmp_path / "kept.onnx") is None
    for untied in (Tied(), pack_all(Tied(), Grid(4, 32))):
        other = Tied() if isinstance(untied.head, nn.Linear) else pack_all(Tied(), Grid(4, 32))
        untied.head = other.head
        assert export_kept(graph, untied.eval(), tmp_path / "kept.onnx") is None, "each has values of its own"


def test_a_graph_that_is_wrong_leaves_no_file_and_costs_a_trace(tmp_path: Path) -> None:
    module = One(nn.Linear(512, 384)).eval()
    graph = export_checked(module, ROW, tmp_path / "original.onnx").graph
    assert graph is not None
    module.scale = 3.0
    assert export_kept_checked(graph, module, tmp_path / "m.onnx") is None
    assert [path.name for path in tmp_path.iterdir()] == ["original.onnx"]
    card = Card("torch", Arch("python"), ROW)
    made = to_onnx(Model(module, card, tmp_path / "x.pt"), tmp_path / "m.onnx", graph=graph)
    assert made.proof is not None and made.proof.passed
    assert made.graph is not None and made.graph != graph


def test_damage_is_told(tmp_path: Path) -> None:
    data = kept(Cnn().eval(), make("cnn")[1], tmp_path).to_bytes()
    for wrong in (b"", data[:100], b"x" * 50, (tmp_path / "original.onnx").read_bytes()):
        with pytest.raises(InputError, match="kept graph"):
            KeptGraph.from_bytes(wrong)
