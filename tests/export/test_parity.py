"""The gate: it finds what is wrong, and lets nothing wrong stand under the final name."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_models import ids, packed
from torch import Tensor, nn

from compresskit.errors import GateError
from compresskit.exporter.accuracy import set_accuracy_level
from compresskit.exporter.checked import export_checked
from compresskit.exporter.judge import difference
from compresskit.exporter.parity import parity
from compresskit.exporter.precision import OtherKernels
from compresskit.exporter.samples import samples
from compresskit.model import InputSpec
from compresskit.ops.packed.grid import Grid
from compresskit.ops.packed.modules import PackedLinear

ROW = (InputSpec("x", "float32", ("batch", 64)),)


class ScatterMean(nn.Module):
    """Exports without a word and computes something else (FACTS: error 2.06)."""

    def forward(self, x: Tensor) -> Tensor:
        index = torch.zeros_like(x, dtype=torch.int64)
        return torch.zeros_like(x).scatter_reduce(1, index, x, reduce="mean", include_self=False)


def test_a_silently_wrong_export_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    old = tmp_path / "m.onnx"
    old.write_bytes(b"the old file")
    with pytest.raises(GateError, match="differs from the model") as refused:
        export_checked(ScatterMean(), ROW, old)
    assert "scatter_reduce with mean" in refused.value.hint
    assert old.read_bytes() == b"the old file"
    assert list(tmp_path.iterdir()) == [old]


@pytest.mark.parametrize("change", ["one nibble", "one scale"])
def test_the_smallest_damage_to_a_packed_weight_is_found(change: str, tmp_path: Path) -> None:
    layer = PackedLinear(nn.Linear(64, 32), packed((32, 64), Grid(4, 32)))
    result = export_checked(layer, ROW, tmp_path / "m.onnx", accuracy_level=0)
    assert result.parity.passed and result.distance_level4 is None
    with torch.no_grad():
        if change == "one nibble":
            layer.codes[3, 1, 5] ^= 1
        else:
            layer.scales[3, 1] *= 1.01
    assert not parity(layer, tmp_path / "m.onnx", ROW).passed


def test_level_4_ships_with_its_own_distance(tmp_path: Path) -> None:
    layer = PackedLinear(nn.Linear(64, 32), packed((32, 64), Grid(4, 32)))
    result = export_checked(layer, ROW, tmp_path / "m.onnx")
    assert result.parity.passed and result.parity.rel_l2 < 1e-6
    assert result.distance_level4 is not None and 1e-4 < result.distance_level4.rel_l2 < 0.05
    nodes = [n for n in onnx.load(tmp_path / "m.onnx").graph.node if n.op_type == "MatMulNBits"]
    assert [a.i for n in nodes for a in n.attribute if a.name == "accuracy_level"] == [4]
    assert set_accuracy_level(tmp_path / "m.onnx", 0) == 1
    assert parity(layer, tmp_path / "m.onnx", ROW).passed


def test_checked_export_keeps_external_data_beside_the_model(tmp_path: Path) -> None:
    layer = PackedLinear(nn.Linear(64, 64), packed((64, 64), Grid(4, 32)))
    result = export_checked(layer, ROW, tmp_path / "m.onnx", data_above=1000)
    assert {p.name for p in tmp_path.iterdir()} == {"m.onnx", "m.onnx.data"}
    assert result.distance_level4 is not None
    set_accuracy_level(result.path, 0)
    assert parity(layer, result.path, ROW).passed


@pytest.mark.parametrize("both", [True, False])
def test_nonfinite_outputs_must_agree(both: bool, tmp_path: Path) -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            root = torch.sqrt(x)
            return root if torch.compiler.is_exporting() or both else root.nan_to_num(0.0)

    export = export_checked if both else None
    if export:
        assert export(Root(), ROW, tmp_path / "m.onnx").parity.passed
    else:
        with pytest.raises(GateError, match=r"as far from float64 .*\(limit 10\)") as refused:
            export_checked(Root(), ROW, tmp_path / "m.onnx")
        assert "the cause was not found" in refused.value.hint, "no operator is blamed that wasn't found"


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], (0.0, 0.0)),
        ([math.nan, math.inf, 1.0], [math.nan, math.inf, 1.0], (0.0, 0.0)),
        ([math.inf], [-math.inf], (math.inf, math.inf)),
        ([math.nan], [0.0], (math.inf, math.inf)),
        ([0.0, 100.0], [1.0, 100.0], (0.01, 0.01)),
        ([0.0], [0.5], (0.5, math.inf)),
    ],
)
def test_difference(a: list[float], b: list[float], expected: tuple[float, float]) -> None:
    assert difference(np.array(a), np.array(b)) == pytest.approx(expected)


def test_difference_of_shapes_and_missing_outputs() -> None:
    assert difference(np.zeros(3), np.zeros((3, 1))) == (math.inf, math.inf)
    assert difference(np.zeros(3), None) == (math.inf, math.inf)


def test_samples_try_the_edges_within_bounds() -> None:
    inputs = (ids("input_ids", 30), ids("attention_mask", 2), InputSpec("x", "float32", ("batch", 4)))
    feeds = list(samples(inputs, limits={"sequence": (0, 9)}))
    assert sum(f["x"].shape[0] for _, f in feeds) >= 32
    assert {f["x"].shape[0] for _, f in feeds} >= {1, 3, 8}
    assert {f["input_ids"].shape[1] for _, f in feeds} == {9, 5}
    assert {"zeros", "high", "large", "tiny", "random"} == {kind for kind, _ in feeds}
    tokens = np.concatenate([f["input_ids"].ravel() for _, f in feeds])
    assert tokens.min() == 0 and tokens.max() == 29
    masks = [f["attention_mask"] for _, f in feeds]
    assert all((m[:, 0] == 1).all() and set(np.unique(m)) <= {0, 1} for m in masks)
    assert any((m == 0).any() for m in masks)
    assert max(np.abs(f["x"]).max() for _, f in feeds) > 50


def test_samples_of_a_fixed_batch_and_their_seed() -> None:
    inputs = (InputSpec("x", "float32", (1, 4)),)
    one, two, other = (list(samples(inputs, seed=s)) for s in (3, 3, 4))
    assert sum(f["x"].shape[0] for _, f in one) >= 32
    assert all(np.array_equal(a["x"], b["x"]) for (_, a), (_, b) in zip(one, two, strict=True))
    assert not np.array_equal(one[-1][1]["x"], other[-1][1]["x"])


class Cancelling(nn.Module):
    """Large terms that cancel: float32 leaves few digits of the sum, and other orders of adding leave other ones."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        half = 0.3 * torch.randn(16, 64, generator=generator)
        self.inner = nn.Linear(128, 16)
        with torch.no_grad():
            self.inner.weight.copy_(torch.cat([half, 1e-3 * torch.randn(16, 64, generator=generator) - half], 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.normalize(self.inner(torch.cat([x, x], -1)), dim=-1)


class Undecided(nn.Module):
    """Pairs of keys that are nearly the same: the softmax of large scores keeps what float32 rounds off."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.inner = nn.Linear(64, 512)
        with torch.no_grad():
            one = 3 * torch.randn(256, 64, generator=generator)
            self.inner.weight.copy_(torch.cat([one, one + 1e-3 * torch.randn(256, 64, generator=generator)]))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).unflatten(-1, (2, 256)).softmax(-2)


@pytest.mark.parametrize("kind", [Cancelling, Undecided])
def test_where_float32_itself_is_off_float64_judges(tmp_path: Path, kind: type[Cancelling | Undecided]) -> None:
    result = export_checked(kind(), ROW, tmp_path / "m.onnx")
    assert result.parity.passed and result.parity.rel_l2 > 1e-5
    damaged = kind()
    with torch.no_grad():
        damaged.inner.weight[3, 5] *= 1 + 1e-4
    assert not parity(damaged, tmp_path / "m.onnx", ROW).passed


def test_half_precision_is_judged_by_its_own_error(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).half().eval()
    inputs = (InputSpec("x", "float16", ("batch", 3, 16, 16)),)
    result = export_checked(net, inputs, tmp_path / "m.onnx")
    assert result.parity.passed and result.parity.rel_l2 > 1e-5, "half precision is farther off than the plain limit"
    with torch.no_grad():
        net[3].weight[2] *= 1.1
    assert not parity(net, tmp_path / "m.onnx", inputs).passed


def test_other_kernels_decide_near_ties_otherwise_and_nothing_else() -> None:
    scores = torch.tensor([[3.0, 1.0, 1.0 + 1e-6, -2.0], [3.0, 1.5, 1.0, -2.0]], dtype=torch.float64)
    seen = []
    for seed in range(8):
        with OtherKernels(seed):
            found = scores.topk(2, dim=-1)
        assert torch.equal(found.values, scores.gather(1, found.indices))
        assert found.indices[1].tolist() == [0, 1]
        seen.append(int(found.indices[0, 1]))
    assert set(seen) == {1, 2}
