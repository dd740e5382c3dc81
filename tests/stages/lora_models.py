"""Small nets, their data, and a way to train adapters for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compresskit import registry
from compresskit.data.opening import open_source
from compresskit.data.source import Source
from compresskit.model import Arch, Card, InputSpec, Model
from compresskit.stage import SIDECAR, Context

IMAGES = (InputSpec("x", "float32", ("batch", 3, 8, 8)),)
ROWS = (InputSpec("x", "float32", ("batch", 24)),)
LOW_RANK = ("lora", "rslora", "dora", "pissa", "vera", "ia3")
SMALL: dict[str, dict[str, Any]] = {
    "lora": {"rank": 3}, "rslora": {"rank": 3}, "dora": {"rank": 3}, "pissa": {"rank": 3}, "vera": {"rank": 6},
    "ia3": {}, "bottleneck": {"rank": 4}, "loftq": {"rank": 3, "group_size": 32},
}  # fmt: skip


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 8, bias=False), nn.ReLU(), nn.Linear(8, 4)).eval()


def convnet() -> nn.Module:
    torch.manual_seed(0)
    body = (nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8))
    return nn.Sequential(
        *body, nn.Conv2d(8, 12, 1), nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 4)
    ).eval()


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[InputSpec, ...]]] = {
    "mlp": (mlp, ROWS),
    "convnet": (convnet, IMAGES),
}


def source(folder: Path, inputs: tuple[InputSpec, ...], count: int = 64) -> Source:
    """Samples whose class is the largest of their first numbers."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, *inputs[0].shape[1:])).astype(np.float32)
    path = Path(mkdtemp(dir=folder)) / "data.npz"
    np.savez(path, x=x, y=x.reshape(count, -1)[:, :4].argmax(1))
    return open_source(str(path), inputs=inputs)


def train(name: str, net: str, folder: Path, module: nn.Module | None = None, **options: Any) -> tuple[Model, Path]:
    """A net with trained adapters, and the folder of the adapter that ships."""
    make, inputs = NETS[net]
    model = Model(
        make() if module is None else module, Card("torch", Arch("python"), inputs, "classification"), Path("net.pt")
    )
    options = {"epochs": 2, **SMALL.get(name, {}), **options}
    if options["epochs"]:
        options = {"lr": 0.02, "batch_size": 16, **options}
    work = Path(mkdtemp(dir=folder))
    stage = registry.get(f"lora.{name}")(**options)
    done = stage.run(model, Context(work, source(folder, inputs) if options["epochs"] else None))
    return done, work / SIDECAR / "adapter"


def inputs_for(net: str, count: int = 8) -> Tensor:
    return torch.randn(count, *NETS[net][1][0].shape[1:], generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def said(module: object, x: Tensor) -> Tensor:
    assert callable(module)
    found: Tensor = module(x)
    return found


def state(module: object) -> dict[str, bytes]:
    assert isinstance(module, nn.Module)
    return {name: tensor.detach().numpy().tobytes() for name, tensor in module.state_dict().items()}
