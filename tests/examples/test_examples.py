from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
DEVIATION = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def load(root: Path, name: str) -> ModuleType:
    """An example as ``--arch FILE.py:NAME`` loads it: by path."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", root / "examples" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("file", "factory", "options", "given", "shape", "parameters"),
    [
        ("cifar_resnet", "resnet20", {}, torch.zeros(2, 3, 32, 32), (2, 10), 269_722),
        ("cifar_resnet", "resnet56", {"classes": 100}, torch.zeros(1, 3, 32, 32), (1, 100), 858_868),
        ("mlp", "mlp", {"depth": 2, "width": 8, "hidden": 24}, torch.zeros(3, 8), (3, 8), 832),
        ("gru_classifier", "gru_classifier", {}, torch.zeros(2, 7, dtype=torch.int64), (2, 4), 139_012),
    ],
)
def test_factories(
    root: Path,
    file: str,
    factory: str,
    options: dict[str, int],
    given: torch.Tensor,
    shape: tuple[int, ...],
    parameters: int,
) -> None:
    model: nn.Module = getattr(load(root, file), factory)(**options).eval()
    assert tuple(model(given).shape) == shape
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.slow
@pytest.mark.parametrize(("name", "accuracy"), [("resnet20", 91.695), ("resnet56", 93.344)])
def test_published_weights_reach_their_accuracy(root: Path, shared: Path, name: str, accuracy: float) -> None:
    model: nn.Module = getattr(load(root, "cifar_resnet"), name)().eval()
    saved = torch.load(shared / "models" / f"{name}.th", map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict({key.removeprefix("module."): value for key, value in saved.items()})
    data = np.load(shared / "cifar10" / "test.npz")
    images, labels = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    right = 0
    with torch.no_grad():
        for x, y in zip(images.split(500), labels.split(500), strict=True):
            right += int((model((x.permute(0, 3, 1, 2) / 255 - MEAN) / DEVIATION).argmax(1) == y).sum())
    assert 100 * right / len(labels) == pytest.approx(accuracy, abs=0.011)
