"""No right file is refused: nets and inputs that float32 is bad at, and modules that float64 can't simply copy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sr_nets import NETS, trained
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.exporter.checked import export_checked
from compresskit.exporter.judge import Judge
from compresskit.exporter.parity import ParityCheck, parity
from compresskit.model import InputSpec

ROW = (InputSpec("x", "float32", ("batch", 16)),)


def picture(size: int) -> tuple[InputSpec, ...]:
    return (InputSpec("x", "float32", ("batch", 3, size, size)),)


def style() -> nn.Module:
    """A style-transfer generator in small: instance norm after each convolution."""
    torch.manual_seed(0)
    sizes = ((3, 32), (32, 32), (32, 32))
    layers = [
        part for i, o in sizes for part in (nn.Conv2d(i, o, 3, padding=1), nn.InstanceNorm2d(o, affine=True), nn.ReLU())
    ]
    return nn.Sequential(*layers, nn.Conv2d(32, 3, 3, padding=1)).eval()


def no_statistics() -> nn.Module:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(32, track_running_stats=False)
    ends = (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4))
    return nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), norm, *ends).eval()


@pytest.mark.parametrize(("net", "size"), [(style, 16), (style, 64), (no_statistics, 16), (no_statistics, 224)])
def test_norms_of_constant_inputs(net: object, size: int, tmp_path: Path) -> None:
    found = export_checked(net(), picture(size), tmp_path / "m.onnx").parity  # type: ignore[operator]
    assert found.passed
    assert any("zeros" in note for note in found.notes) == (net is style or size > 64)


@pytest.mark.parametrize("name", ["srresnet", "restormer", "weight_normed"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_super_resolution(name: str, tmp_path: Path) -> None:
    assert export_checked(trained(name), picture(16), tmp_path / "m.onnx").parity.passed


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", NETS)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_all_super_resolution(name: str, seed: int, tmp_path: Path) -> None:
    assert export_checked(trained(name, seed), picture(40), tmp_path / "m.onnx").parity.passed


class Stubborn(nn.Module):
    """Names float32 wherever code can, and amplifies its rounding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.utils.weight_norm(nn.Linear(16, 16))
        self.scale = torch.rand(16) + 0.5
        self.more = {"shift": torch.rand(16)}

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(torch.float32).float() - torch.tensor([0.5], dtype=torch.float32)
        x = self.layer(x) * self.scale + self.more["shift"] + torch.zeros(16, dtype=torch.float32)
        x = x.type(torch.float32).softmax(-1, dtype=torch.float32) @ torch.eye(16)
        return torch.where(x > 0, x, torch.full((1,), 1e-3))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_float64_judges_code_that_names_float32() -> None:
    module = Stubborn()
    x = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
    with torch.no_grad():
        ours = module(torch.tensor(x)).numpy()
    judge = Judge(module, ROW)
    for own in judge.own({"x": x}, (ours,)):
        assert own.exact[0].dtype == np.float64 and own.errors[0][1] < 1e-5
    assert judge.excuse == "" and torch.get_default_dtype() == torch.float32
    with torch.no_grad():
        assert np.array_equal(module(torch.tensor(x)).numpy(), ours)


class Float32Only(nn.Module):
    """What float64 can't run: code that looks at the dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.net = style()

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise TypeError("float32 is expected")
        return self.net(x)


def test_without_float64_the_spread_of_kernels_judges(tmp_path: Path) -> None:
    found = export_checked(Float32Only(), picture(16), tmp_path / "m.onnx").parity
    assert found.passed
    assert any("float64 is not available" in note and "float32 is expected" in note for note in found.notes)
    damaged = Float32Only()
    with torch.no_grad():
        damaged.net[-1].weight *= 1.001
    assert parity(damaged, tmp_path / "m.onnx", picture(16)).passed is False


class InPlace(nn.Module):
    """Normalizes the caller's tensor, as many preprocess functions do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.5).div_(0.25)
        return self.layer(x)


def test_a_module_that_writes_into_its_input(tmp_path: Path) -> None:
    data = Samples(np.ones((4, 16), np.float32))
    assert export_checked(InPlace(), ROW, tmp_path / "m.onnx", ParityCheck(data=data)).parity.passed
    assert data.array.min() == 1


class Samples:
    """Data in memory."""

    name, kind, labelled = "samples", "arrays", False

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def batches(self, size: int, limit: int | None = None):  # type: ignore[no-untyped-def]
        from compresskit.data.source import Batch

        if not self.array.size:
            raise InputError("they are gone")
        for start in range(0, min(limit or len(self), len(self)), size):
            yield Batch({"x": self.array[start : start + size]})

    def fingerprint(self) -> str:
        return ""


class Chaos(nn.Module):
    """Loses all digits on inputs with a value above 0.9, and none on others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for _ in range(12):
            y = torch.sin(6 * self.layer(y))
        return torch.where(x.abs().amax(-1, keepdim=True) > 0.9, y, self.layer(x))


def test_inputs_that_prove_nothing_are_no_pass(tmp_path: Path) -> None:
    module, path = Chaos(), tmp_path / "m.onnx"
    found = export_checked(module, ROW, path).parity
    assert found.passed is None
    assert found.notes[0].startswith("NOT VERIFIED") and "random" in found.notes[1]
    given = Samples(np.random.default_rng(0).uniform(-0.5, 0.5, (20, 16)).astype(np.float32))
    found = parity(module, path, ROW, ParityCheck(data=given))
    assert found.passed and (found.n, found.given) == (32 + 8, 8)
    with torch.no_grad():
        module.layer.bias += 1e-4
    found = parity(module, path, ROW, ParityCheck(data=given))
    assert found.passed is False and "given" in found.worst
    assert parity(module, path, ROW).passed is False, "the edges tell too"


def test_data_that_the_model_does_not_take_are_left_out(tmp_path: Path) -> None:
    layer, path = nn.Linear(16, 4), tmp_path / "m.onnx"
    found = export_checked(layer, ROW, path, ParityCheck(data=Samples(np.ones((4, 9), np.float32)))).parity
    assert found.passed and "(4, 9)" in found.notes[0] and "not verified on `data`" in found.notes[0]
    fixed = (InputSpec("x", "float32", (2, 16)),)
    found = export_checked(layer, fixed, path, ParityCheck(data=Samples(np.ones((5, 16), np.float32)))).parity
    assert found.passed and found.n == 32 + 4
