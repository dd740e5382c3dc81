"""Files that are nearly right: whatever is altered in them, a reader gives what it gives or one typed error.

Each case is known by its reader and seed: ``mutant(reader, seed)`` makes it again.
"""

from __future__ import annotations

import io
import json
import random
import signal
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from compresskit.checkpoint.bundle import ONNX_NAME, read_card, seal
from compresskit.checkpoint.huggingface import read_config
from compresskit.checkpoint.load import load
from compresskit.checkpoint.shards import open_shards
from compresskit.checkpoint.tensors import open_tensors
from compresskit.data.archive import read_npz
from compresskit.data.tables import read_table
from compresskit.errors import CompressKitError
from compresskit.model import Arch, Card, InputSpec
from compresskit.ops.lora.folder import read_adapter
from compresskit.recipe.reading import read_recipe
from compresskit.report import Gate, Measurement, ModelEntry, Report, Verdict
from compresskit.runner.check import open_report

SECONDS = 5
SLOW, FAST = 1_600, 20
"""Seeds of each reader."""
_WORDS = (
    b"-5", b"1e999", b"9" * 30, b"1" + b"0" * 400, b"null", b"[]", b"{}", b'"\\ud800"', b"NaN", b"true", b"\x00",
    b"\xff", b"../..", b"/etc/passwd", b"x" * 255, b"\x1b[31m", b'"', b"\n", b"18446744073709551616", b"0",
    b"-9223372036854775809",
)  # fmt: skip


def weights() -> dict[str, torch.Tensor]:
    return {"layer.w": torch.arange(12.0).reshape(3, 4), "layer.b": torch.ones(3)}


def saved(legacy: bool) -> bytes:
    buffer = io.BytesIO()
    wrapped = {"state_dict": weights(), "epoch": 3, "args": {"lr": 0.1, "names": ["a", "b"]}}
    torch.save(wrapped, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def repacked(content: bytes, name: str, change: Callable[[bytes], bytes]) -> bytes:
    """The archive with another member of this name, and checksums that fit."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            new.writestr(info.filename, change(data) if info.filename.endswith(name) else data)
    return buffer.getvalue()


def graph() -> bytes:
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
        [value("x", TensorProto.FLOAT, ["N", 4])], [value("y", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(np.ones((4, 3), "f4"), "w")],
    )  # fmt: skip
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def tensors_file(folder: Path, name: str) -> bytes:
    save_file(weights(), folder / name)
    return (folder / name).read_bytes()


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.ones((3, 4), "f4"), y=np.arange(3))
    return buffer.getvalue()


@dataclass(frozen=True)
class Reader:
    """What is altered, and what reads it.

    Attributes:
        file: Name of the file that is altered.
        make: Writes a sound one, and what belongs to it, into a folder.
        read: Reads it.
        member: Of an archive: the member that is altered, with a checksum that fits.
    """

    file: str
    make: Callable[[Path], bytes]
    read: Callable[[Path], object]
    member: str = ""


def bundle(folder: Path) -> bytes:
    (folder / ONNX_NAME).write_bytes(graph())
    inputs = (InputSpec("x", "float32", ("batch", 4)),)
    seal(folder, Card("onnx", Arch("onnx"), inputs, history=()))
    return (folder / "compresskit.json").read_bytes()


def report(folder: Path) -> bytes:
    models = [ModelEntry(name=n, path=f"{n}.onnx", bytes=9, sha256="0" * 64) for n in ("a", "b")]
    figures = [Measurement(model=n, name="latency_p50", value=1.0, low=0.9, high=1.1, unit="ms") for n in ("a", "b")]
    gates = [Gate(name="max-drop", limit="1pt", value=0.1, unit="pt", passed=True, asked=True)]
    made = Report(command="compare", verdict=Verdict.PASS, models=models, measurements=figures, gates=gates)
    return made.to_json().encode()


def config(folder: Path) -> bytes:
    found = {
        "architectures": ["BertModel"], "model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1,
        "vocab_size": 16, "num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": 8,
        "type_vocab_size": 2, "id2label": {"0": "a", "1": "b"}, "layer_norm_eps": 1e-5, "hidden_act": "gelu",
    }  # fmt: skip
    return json.dumps(found).encode()


def index(folder: Path) -> bytes:
    tensors_file(folder, "a.safetensors")
    placed = dict.fromkeys(weights(), "a.safetensors")
    return json.dumps({"metadata": {"total_size": 60}, "weight_map": placed}).encode()


def adapter(folder: Path) -> bytes:
    pair = {"lora_A.weight": torch.ones(2, 4), "lora_B.weight": torch.ones(3, 2)}
    named = {f"base_model.model.layer.{name}": value for name, value in pair.items()}
    save_file(named, folder / "adapter_model.safetensors")
    found = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["layer"],
        "bias": "none",
        "rank_pattern": {},
    }
    return json.dumps(found).encode()


RECIPE = b"""seed: 1
checks: {max-size: 20MB}
arch-args: {depth: 20, names: [a, &b b, *b]}
steps:
  - prune.magnitude: {sparsity: 0.5}
  - quantize.rtn: {bits: 4, group-size: 32, exclude: [head]}
"""
READERS = {
    "checkpoint": Reader("m.pt", lambda _: saved(legacy=False), open_tensors),
    "checkpoint's pickle": Reader("m.pt", lambda _: saved(legacy=False), open_tensors, "data.pkl"),
    "old checkpoint": Reader("m.pt", lambda _: saved(legacy=True), open_tensors),
    "safetensors": Reader("m.safetensors", lambda folder: tensors_file(folder, "m.safetensors"), open_tensors),
    "onnx": Reader("m.onnx", lambda _: graph(), load),
    "card": Reader("compresskit.json", bundle, lambda path: (read_card(path.parent), load(path.parent))),
    "graph of a bundle": Reader(ONNX_NAME, lambda folder: (bundle(folder), graph())[1], lambda path: load(path.parent)),
    "report": Reader("report.json", report, open_report),
    "config": Reader("config.json", config, lambda path: read_config(path.parent)),
    "index": Reader("model.safetensors.index.json", index, lambda path: open_shards(path.parent)),
    "adapter": Reader("adapter_config.json", adapter, lambda path: read_adapter(path.parent)),
    "npz": Reader("x.npz", lambda _: npz(), read_npz),
    "npz's array": Reader("x.npz", lambda _: npz(), read_npz, "x.npy"),
    "csv": Reader("x.csv", lambda _: b'text,label\n"a, b",1\nc,0\n', read_table),
    "jsonl": Reader("x.jsonl", lambda _: b'{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n', read_table),
    "recipe": Reader("r.yaml", lambda _: RECIPE, read_recipe),
}


def altered(content: bytes, rng: random.Random) -> bytes:
    """One to four bytes, pieces or words of it are altered, moved, doubled or gone."""
    out = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        end = min(len(out), at + rng.choice((1, 2, 4, 8, 30)))
        kind = rng.randrange(6)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at:end] = rng.randbytes(end - at)
        elif kind == 2:
            del out[at:end]
        elif kind == 3:
            out[at:at] = out[at:end] * rng.choice((1, 2, 50))
        elif kind == 4:
            out[at:end] = rng.choice(_WORDS)
        elif numbers := [i for i, byte in enumerate(out) if chr(byte) in "0123456789"]:
            place = rng.choice(numbers)
            out[place : place + 1] = rng.choice(_WORDS)
    return bytes(out)


def mutant(name: str, seed: int, sound: bytes) -> bytes:
    """The case of a seed."""
    reader, rng = READERS[name], random.Random(f"{name} {seed}")
    if reader.member:
        return repacked(sound, reader.member, lambda data: altered(data, rng))
    return altered(sound, rng)


class TooSlow(BaseException):
    """A case took too long; no handler of errors may take it for one."""


@contextmanager
def limited() -> Iterator[None]:
    """Ends a case that takes more than its seconds, where the system has alarms."""
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(_number: int, _frame: FrameType | None) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def wrong(name: str, seeds: range, folder: Path) -> list[str]:
    """The cases that gave anything but an answer or a typed error."""
    reader = READERS[name]
    sound = reader.make(folder)
    path = folder / reader.file
    path.write_bytes(sound)
    reader.read(path)  # as it stands it is read
    found = []
    for seed in seeds:
        path.write_bytes(mutant(name, seed, sound))
        try:
            with limited():
                reader.read(path)
        except CompressKitError as error:
            if not all(line.isprintable() for line in error.messages()):
                found.append(f"{name} {seed}: control codes in {error.messages()}")
        except BaseException as error:
            found.append(f"{name} {seed}: {type(error).__name__}: {error}"[:300])
    return found


@pytest.mark.parametrize("name", READERS)
def test_an_altered_file_is_read_or_refused(tmp_path: Path, name: str) -> None:
    assert wrong(name, range(FAST), tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_altered_files_are_read_or_refused(tmp_path: Path, name: str) -> None:
    assert wrong(name, range(FAST, SLOW), tmp_path) == []
