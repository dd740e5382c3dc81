"""A folder with a net of random weights, and labelled pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from compresskit.data.opening import open_source
from compresskit.runner.api import run
from compresskit.runner.loading import load


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


def run_net(
    made: Path,
    out: Path,
    *stages: Any,
    source: str = "net.pt",
    pixels: int = 12,
    data: bool = True,
    export: bool = False,
) -> Any:
    """The report of stages on the net of a folder that :func:`write_net` wrote.

    Args:
        made: The folder.
        out: Where the bundle goes.
        stages: What is done.
        source: Weights, or a bundle.
        pixels: Height and width of a picture.
        data: Whether the stages get its pictures.
        export: Whether the bundle gets an ONNX file.
    """
    model = load(made / source, arch=f"{made / 'net.py'}:net", input_shape=(1, 3, pixels, pixels))
    known = open_source(str(made / "data.npz")) if data else None
    return run(model, list(stages), out, data=known, export=export, bench=False, force=True)


def write_encoder(folder: Path, layers: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Write ``in``, the folder of a text classifier with random weights, and data.npz, texts of 4 to 12 tokens.

    Args:
        folder: Where they go.
        layers: Of the encoder.
        count: Texts.

    Returns:
        The ids, 0 where there is padding, and the attention mask.
    """
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers, "num_attention_heads": 4}
    config = transformers.BertConfig(vocab_size=40, max_position_embeddings=24, num_labels=2, **sizes)
    transformers.BertForSequenceClassification(config).save_pretrained(folder / "in")
    rng = np.random.default_rng(0)
    ids, lengths = rng.integers(0, 40, (count, 12)), rng.integers(4, 13, count)
    mask = (np.arange(12) < lengths[:, None]).astype("int64")
    np.savez(folder / "data.npz", input_ids=ids * mask, attention_mask=mask)
    return ids * mask, mask
