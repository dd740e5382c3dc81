"""Programs that are written without tracing them once more: the same files, and torch's way for all others."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from export_models import IMAGE, make
from torch import Tensor, nn

from compresskit.exporter import operators
from compresskit.exporter.onnx_export import export_onnx
from compresskit.exporter.parity import parity
from compresskit.model import InputSpec

pytestmark = pytest.mark.usefixtures("translated_anew")


@pytest.fixture
def decided(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each program, whether torch's own decomposition was spared."""
    found: list[bool] = []
    real = operators.decomposed

    def decomposed(*given: Any) -> bool:
        found.append(real(*given))
        return found[-1]

    monkeypatch.setattr(operators, "decomposed", decomposed)
    return found


@pytest.mark.parametrize(
    "kind", ["cnn", "bert", "GRU", *(pytest.param(k, marks=pytest.mark.slow) for k in ("llama", "vit", "LSTM"))]
)
def test_files_are_those_of_torchs_own(
    kind: str, tmp_path: Path, decided: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, inputs = make(kind)
    export_onnx(module, inputs, tmp_path / "quick.onnx")
    assert decided == [True]
    monkeypatch.setattr(operators, "decomposed", lambda *_: False)
    export_onnx(module, inputs, tmp_path / "torch.onnx")
    assert (tmp_path / "quick.onnx").read_bytes() == (tmp_path / "torch.onnx").read_bytes()


class Pooled(nn.Module):
    """What image classifiers end in."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm, self.pool = nn.BatchNorm2d(3, affine=False), nn.AdaptiveAvgPool2d(size)
        self.norm.running_mean = torch.tensor([0.1, 0.2, 0.3])

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.norm(x)).to(torch.float64).flatten(1)


class Writes(nn.Module):
    """Writes into a tensor that it made."""

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out[:, 0] += x[:, 1]
        return out


class Batch(nn.BatchNorm2d):
    """Normalizes by the statistics of the batch, in eval mode too."""

    def __init__(self) -> None:
        super().__init__(3, track_running_stats=False)


@pytest.mark.parametrize(
    ("module", "spared"),
    [(Pooled(1), True), (Pooled(2), False), (Writes(), False), (Batch(), False)],
    ids=lambda v: type(v).__name__,
)
def test_others_go_torchs_way(module: nn.Module, spared: bool, tmp_path: Path, decided: list[bool]) -> None:
    exported = export_onnx(module.eval(), IMAGE, tmp_path / "m.onnx")
    assert decided == [spared]
    assert parity(module, tmp_path / "m.onnx", IMAGE, limits=exported.limits).passed


class Guarded(nn.Module):
    """Casts to what a tensor is, and reshapes to the shape that it has: also as an output."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(x.float()).reshape(x.shape[0], 3, -1)
        return y.reshape(y.shape), (y.transpose(1, 2).reshape(x.shape[0], -1).to(torch.float32) > 0.5) & (
            x[:, :1, 0, 0] > 0
        )


def test_what_changes_nothing_is_not_written(tmp_path: Path, decided: list[bool]) -> None:
    inputs = (InputSpec("x", "float32", ("batch", 3, 4, 4)),)
    exported = export_onnx(Guarded().eval(), inputs, tmp_path / "m.onnx")
    assert decided == [True]
    assert parity(Guarded().eval(), tmp_path / "m.onnx", inputs, limits=exported.limits).passed
    found = Counter(node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node)
    assert found["Cast"] == 0 and found["Reshape"] == 2
