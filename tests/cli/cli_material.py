"""What the tests of the command line share: models, hostile files, and what a run came to."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

NET = """\
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width: int = 32):
        super().__init__()
        self.first = nn.Linear(32, width)
        self.act = nn.ReLU()
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        return self.head(self.act(self.first(x)))


class Other(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(32, 4)

    def forward(self, x):
        return self.body(x)


def broken():
    raise RuntimeError("my own mistake")


def number():
    return 7
"""

ARCH = ("--arch", "net.py:Net")
SHAPE = ("--input-shape", "1,32")
RECIPE = """\
model: m.pt
input-shape: [1, 32]
data: d.npz
eval-data: d.npz
steps:
  - prune.magnitude: {sparsity: 0.1}
  - factorize.svd: {rank: 8, include: [first]}
  - quantize.rtn: {bits: 8}
checks: {max-drop: 20pt}
"""
RUN_RECIPE = ("run", "r.yaml", *ARCH, "--no-bench", "--cache", "steps", "-o", "out")


@dataclass(frozen=True)
class Outcome:
    """Exit code and output of one command."""

    code: int
    out: str
    err: str

    def refused(self, code: int, *words: str) -> None:
        """Holds that the command ended in one or two clear lines, and nothing on stdout."""
        assert self.code == code, self
        assert self.out == "", self
        lines = self.err.splitlines()
        assert 1 <= len(lines) <= 2, self.err
        assert lines[0].startswith("error: ") and len(lines[0]) > 16, self.err
        assert "Traceback" not in self.err and "a bug in" not in self.err, self.err
        assert all(c.isprintable() for line in lines for c in line), repr(self.err)
        for word in words:
            assert word in self.err, self.err


Cli = Callable[..., Outcome]
Job = Callable[..., dict[str, int]]
"""Runs a command in a folder, killed at the n-th thing it does to a file of its output."""


MEASURED = ("report.json", "report.html", "provenance.json", "README.md")
"""What differs in a bundle from run to run: what was measured, and where."""


def picture(folder: Path) -> dict[str, str]:
    """Every path below a folder, hidden ones too, with a hash of what it holds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found


def material_files(folder: Path) -> None:
    """A two-layer perceptron in each form, and data that it gets right."""
    import numpy as np
    import torch
    from safetensors.torch import save_file

    from compresskit import load, method, run
    from compresskit.exporter.checked import export_checked
    from compresskit.model import InputSpec

    (folder / "net.py").write_text(NET, encoding="utf-8")
    torch.manual_seed(0)
    # Spread-out logits: rounding to 4 bit changes no answer.
    module = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    state = {f"{('first', '', 'head')[int(k[0])]}{k[1:]}": v for k, v in module.state_dict().items()}
    torch.save(state, folder / "m.pt")
    save_file(state, folder / "m.safetensors")
    export_checked(module, (InputSpec("x", "float32", ("batch", 32)),), folder / "m.onnx")
    x = np.random.default_rng(0).normal(size=(256, 32)).astype(np.float32)
    logits = module(torch.from_numpy(x)).detach()
    top = logits.topk(2).values
    clear = (top[:, 0] - top[:, 1]).argsort(descending=True)[:64].numpy()
    np.savez(folder / "d.npz", x=x[clear], y=logits.argmax(1).numpy()[clear])
    model = load(folder / "m.pt", arch=f"{folder / 'net.py'}:Net", input_shape=(1, 32))
    run(model, [method("quantize.rtn", bits=4)], folder / "bundle", bench=False)
    run(load(folder / "m.pt"), [method("quantize.rtn", bits=4)], folder / "bare")


class Evil:
    """Unpickling it makes a file called ``owned`` in the current folder."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return open, ("owned", "w")


def hostile_files(folder: Path, good: Path) -> None:
    """One file or folder for each way in which a model can be bad; the names are those in ``HOSTILE``."""
    import torch

    pt, tensors, onnx = (good / f"m.{s}" for s in ("pt", "safetensors", "onnx"))
    for source in (pt, tensors, onnx):
        whole = source.read_bytes()
        (folder / f"truncated{source.suffix}").write_bytes(whole[: len(whole) // 2])
        (folder / f"empty{source.suffix}").write_bytes(b"")
        (folder / f"text{source.suffix}").write_text("Dear reader,\nthis is a letter.\n" * 40, encoding="utf-8")
        (folder / f"folder{source.suffix}").mkdir()
        (folder / f"zeros{source.suffix}").write_bytes(bytes(4096))
    (folder / "pickle.pt").write_bytes(pickle.dumps({"w": Evil()}))
    torch.save({"w": Evil()}, folder / "zipped.pt")
    torch.save(torch.nn.Linear(32, 4), folder / "module.pt")
    flipped = bytearray(pt.read_bytes())
    with zipfile.ZipFile(pt) as archive:
        at = max(archive.infolist(), key=lambda m: m.file_size).header_offset
    flipped[at + 500] ^= 1
    (folder / "flipped.pt").write_bytes(flipped)
    nan = {k: v.clone() for k, v in torch.load(pt, weights_only=True).items()}
    nan["first.weight"][3, 3] = float("nan")
    torch.save(nan, folder / "nan.pt")
    for name in ("tampered", "nocard", "strangecard"):
        shutil.copytree(good / "bundle", folder / name)
    with (folder / "tampered" / "model.onnx").open("r+b") as file:
        file.seek(200)
        file.write(b"\x00\x01\x02\x03")
    (folder / "nocard" / "compresskit.json").write_text("{", encoding="utf-8")
    (folder / "strangecard" / "compresskit.json").write_text('{"version": 99}', encoding="utf-8")
    (folder / "hf").mkdir()
    (folder / "hf" / "config.json").write_text(json.dumps({"model_type": "no-such"}), encoding="utf-8")
    (folder / "hfcode").mkdir()
    code = {"model_type": "bert", "auto_map": {"AutoModel": "evil.Evil"}, "architectures": ["Evil"]}
    (folder / "hfcode" / "config.json").write_text(json.dumps(code), encoding="utf-8")
    (folder / "hfcode" / "evil.py").write_text("open('owned', 'w')\n", encoding="utf-8")
    (folder / "nothing").mkdir()


FORMS = ("pt", "safetensors", "onnx")
HOSTILE = (
    *(f"{kind}.{s}" for kind in ("truncated", "empty", "text", "folder", "zeros") for s in FORMS),
    "pickle.pt", "zipped.pt", "module.pt", "flipped.pt", "tampered", "nocard", "strangecard", "hf", "hfcode", "nothing",
    "missing.pt", "missing.safetensors", "missing.onnx", "missing",
)  # fmt: skip
