"""A folder with a net of random weights, and labelled pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch


def write_net(folder: Path, code: str, pixels: int, count: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Write net.py, data.npz, and the weights of ``net()`` and its kin, where the code has them.

    Args:
        folder: Where they go.
        code: Of net.py.
        pixels: Height and width of a picture.
        count: Pictures.

    Returns:
        The pictures, and their labels.
    """
    (folder / "net.py").write_text(code)
    scope: dict[str, Any] = {}
    exec(code, scope)
    torch.manual_seed(0)
    for name in ("net", "bare", "units", "wide"):
        if name in scope:
            torch.save(scope[name]().state_dict(), folder / f"{name}.pt")
    generator = np.random.default_rng(0)
    x = generator.normal(size=(count, 3, pixels, pixels)).astype("float32")
    y = generator.integers(0, 4, count)
    np.savez(folder / "data.npz", x=x, y=y)
    return x, y
