"""Ten ways in which an export goes wrong: the gate finds each, in nets that float32 is good and bad at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresskit.exporter.onnx_export import export_onnx
from compresskit.exporter.parity import parity
from compresskit.model import InputSpec

SIZE = 16
INPUTS = tuple(InputSpec(name, "float32", ("batch", SIZE, SIZE, SIZE)) for name in "ab")
FAULTS = (
    "swapped inputs", "dropped bias", "wrong axis", "training-mode norm", "wrong scale", "baked batch",
    "transposed weight", "missing activation", "stale weight", "wrong epsilon",
)  # fmt: skip


class Net(nn.Module):
    """Has a place for each fault. Instance norm makes noise of constant inputs, and much of small ones."""

    def __init__(self, kind: str, fault: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.fault = kind, fault
        self.first, self.second = (nn.Conv2d(SIZE, SIZE, 3, padding=1) for _ in range(2))
        self.head = nn.Linear(SIZE, SIZE)
        self.register_buffer("mean", 0.3 * torch.randn(SIZE))
        self.register_buffer("var", 0.2 + torch.rand(SIZE))
        with torch.no_grad():
            if fault == "dropped bias":
                self.second.bias.zero_() if kind == "batch" else self.head.bias.zero_()
            if fault == "transposed weight":
                self.head.weight.copy_(self.head.weight.T.clone())
            if fault == "stale weight":
                self.second.weight.mul_(1 + 1e-3 * torch.randn(self.second.weight.shape))

    def norm(self, x: Tensor) -> Tensor:
        eps = 1e-4 if self.fault == "wrong epsilon" else 1e-5
        if self.kind == "instance":
            if self.fault == "training-mode norm":
                return F.batch_norm(x, None, None, training=True, eps=eps)
            return F.instance_norm(x, eps=eps)
        mean, var = self.mean.clone(), self.var.clone()
        return F.batch_norm(x, mean, var, training=self.fault == "training-mode norm", eps=eps)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        if self.fault == "swapped inputs":
            a, b = b, a
        x = self.norm(self.first(a - 0.5 * b))
        x = torch.relu(x) if self.fault != "missing activation" else x
        for _ in range(2):
            x = self.norm(self.second(x))
        x = x * (0.5 if self.fault != "wrong scale" else 0.505)
        x = self.head(x).softmax(-1 if self.fault != "wrong axis" else -2)
        return x * (x.shape[0] if self.fault != "baked batch" else 2)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The right file of a kind of net."""
    made: dict[str, Path] = {}

    def file(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind) / "m.onnx"
            export_onnx(Net(kind), INPUTS, made[kind])
        return made[kind]

    return file


@pytest.mark.parametrize("kind", ["batch", "instance"])
def test_the_right_file_passes(kind: str, exported: Callable[[str], Path]) -> None:
    found = parity(Net(kind), exported(kind), INPUTS)
    assert found.passed
    assert any("zeros" in note for note in found.notes) == (kind == "instance")


@pytest.mark.parametrize("kind", ["batch", "instance"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(kind: str, fault: str, exported: Callable[[str], Path]) -> None:
    found = parity(Net(kind, fault), exported(kind), INPUTS)
    assert found.passed is False
    assert found.rel_l2 > 1e-5
