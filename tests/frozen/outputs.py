"""What the frozen bundles answer, by their module and by their ONNX file: ``outputs.npz``, with the inputs."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

import compresskit

MODULES = {
    "gptq": "nets.py:Words", "awq": "nets.py:Words", "recipe": "nets.py:Pictures", "lora": "nets.py:Words", "hf": None,
}  # fmt: skip


def answers(folder: Path, arch: str | None, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """The module's first output."""
    torch.set_num_threads(1)
    module = compresskit.load(folder, arch=arch).module.eval()
    with torch.no_grad():
        found = module(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    return (found if isinstance(found, torch.Tensor) else found[0]).numpy()


def onnx_answers(path: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """The ONNX file's first output."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, inputs)[0])


if __name__ == "__main__":
    where = Path(sys.argv[1])
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 24, (8, 6))
    inputs = {
        "Words": {"x": ids},
        "Pictures": {"x": rng.normal(size=(8, 1, 8, 8)).astype("float32")},
        "hf": {"input_ids": ids, "attention_mask": np.ones_like(ids)},
    }
    kept = {}
    for name, arch in MODULES.items():
        given = inputs["hf" if arch is None else arch.partition(":")[2]]
        kept |= {f"{name}/inputs/{key}": array for key, array in given.items()}
        kept[f"{name}/module"] = answers(where / name, arch, given)
        if arch:
            kept[f"{name}/onnx"] = onnx_answers(where / name / "model.onnx", given)
    kept["lora/merged"] = answers(where / "cards" / "merge", "nets.py:Words", inputs["Words"])
    kept["recipe/merged"] = answers(where / "cards" / "dense", "nets.py:Pictures", inputs["Pictures"])
    np.savez(where / "outputs.npz", **kept)
