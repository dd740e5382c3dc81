"""Reading tensors: dressings, dtypes, ties, strides, NaN."""

from __future__ import annotations

import argparse
import collections
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from compresskit.checkpoint.state_dict_keys import match_keys
from compresskit.checkpoint.tensors import open_tensors
from compresskit.errors import InputError

W = torch.arange(12.0).reshape(3, 4)
PLAIN = {"layer.w": W, "layer.b": torch.ones(3)}


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in PLAIN.items()}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "saved",
    [
        PLAIN,
        {"state_dict": PLAIN, "epoch": 3, "best": torch.tensor(0.9)},
        {"model": PLAIN, "optimizer": {"state": {0: {"m": W}}}},
        {"model_state_dict": prefixed("module.")},
        {"ema": PLAIN},
        {"ema": {"w": torch.zeros(1)}, "model": PLAIN},
        {"weights_of_mine": PLAIN},
        {"state_dict": {"model": prefixed("module._orig_mod.")}},
        prefixed("module."),
        prefixed("_orig_mod."),
        prefixed("_orig_mod.module."),
        {"state_dict": PLAIN, "args": argparse.Namespace(lr=0.1), "best_acc": np.float64(91.2)},
        {
            "state_dict": PLAIN,
            "log": collections.defaultdict(list, loss=[1.0]),
            "kinds": {torch.float16, 1 + 2j},
            "raw": b"x",
        },
        {**PLAIN, "steps": 12, "note": "text", "layer._extra_state": None},
    ],
)
def test_every_dressing_comes_off(tmp_path: Path, saved: Any, legacy: bool) -> None:
    path = tmp_path / "m.pth"
    torch.save(saved, path, _use_new_zipfile_serialization=not legacy)
    tensors = open_tensors(path)
    assert tensors.names() == list(PLAIN)
    assert all(torch.equal(tensors.get(name), value) for name, value in PLAIN.items())


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        ({"epoch": 3}, "holds no tensors: its keys are 'epoch'"),
        ({}, "empty dictionary"),
        ([W], "no state dict"),
        (W, "single tensor"),
        ({"generator": PLAIN, "discriminator": PLAIN}, "2 groups of tensors: 'generator', 'discriminator'"),
    ],
)
def test_no_state_dict(tmp_path: Path, saved: Any, said: str) -> None:
    torch.save(saved, tmp_path / "m.pt")
    with pytest.raises(InputError, match=said):
        open_tensors(tmp_path / "m.pt")


DTYPES = [
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int64", "int32", "int16", "int8",
    "uint8", "uint16", "bool", "complex64",
]  # fmt: skip


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_kept(tmp_path: Path, dtype: str, form: str) -> None:
    value = torch.tensor([[0.0, 1.0, 2.0]]).to(getattr(torch, dtype))
    state = {
        "odd": torch.tensor([1], dtype=torch.uint8),
        "x": value,
        "scalar": value[0, 1].clone(),
        "none": value[:0].clone(),
    }
    path = tmp_path / "m.x"
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    tensors = open_tensors(path)
    assert tensors.dtype("x") == value.dtype and tensors.dtype_name("x") == dtype
    for name, want in state.items():
        got = tensors.get(name)
        assert got.shape == want.shape and got.dtype == want.dtype
        assert torch.equal(got.reshape(-1).view(torch.uint8), want.reshape(-1).view(torch.uint8))


@pytest.mark.parametrize("legacy", [False, True])
def test_ties_views_and_strides(tmp_path: Path, legacy: bool) -> None:
    base = torch.randn(6, 4)
    state = {
        "embed": base, "head": base, "turned": base.t(), "rows": base[2:4], "step": base[::2],
        "param": torch.nn.Parameter(torch.ones(2)),
        "last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }  # fmt: skip
    torch.save(state, tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
    tensors = open_tensors(tmp_path / "m.pt")
    assert tensors.ties == {"head": "embed"}
    for name, value in state.items():
        assert torch.equal(tensors.get(name), value) and tensors.get(name).is_contiguous()
    assert tensors.numel() == sum(v.numel() for n, v in state.items() if n != "head")


def test_a_cuda_saved_file_opens_without_cuda(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save(PLAIN, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    cpu, cuda = b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"
    assert cpu in content
    path.write_bytes(content.replace(cpu, cuda))
    assert torch.equal(open_tensors(path).get("layer.w"), W)


def test_writing_to_a_tensor_never_reaches_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save(PLAIN, path)
    before = path.read_bytes()
    tensors = open_tensors(path)
    tensors.get("layer.w").zero_()
    del tensors
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.float8_e5m2]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nonfinite_values_are_named(tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    bad = torch.tensor([0.0, 0.0, 0.0, value, 0.0]).to(dtype)
    torch.save({"good": W, "bad.weight": bad}, tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"in 'bad\.weight'\n"):
        open_tensors(tmp_path / "m.pt")
    assert len(open_tensors(tmp_path / "m.pt", allow_nonfinite=True)) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.bfloat16])
def test_large_finite_values_pass(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save({"w": torch.full((5000,), torch.finfo(dtype).max, dtype=dtype)}, tmp_path / "m.pt")
    assert open_tensors(tmp_path / "m.pt").names() == ["w"]


@pytest.mark.parametrize(
    ("names", "expected", "want"),
    [
        (["a", "b"], ["a", "b"], {"a": "a", "b": "b"}),
        (["model.a", "model.b"], ["a", "b"], {"model.a": "a", "model.b": "b"}),
        (["model.a", "model.b"], ["model.a", "model.b"], {"model.a": "model.a", "model.b": "model.b"}),
        (["a"], ["module.a"], {"a": "module.a"}),
        (["model.module.a"], ["net.a"], {"model.module.a": "net.a"}),
        (["enc._orig_mod.a", "b"], ["enc.a", "b"], {"enc._orig_mod.a": "enc.a", "b": "b"}),
        (["x"], ["y"], {"x": "x"}),
    ],
)
def test_match_keys(names: list[str], expected: list[str], want: dict[str, str]) -> None:
    assert match_keys(names, expected) == want


def test_unknown_name(tmp_path: Path) -> None:
    torch.save(PLAIN, tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"no tensor 'zzz'; it has 'layer\.w', 'layer\.b'"):
        open_tensors(tmp_path / "m.pt").get("zzz")


def test_unsupported_tensors_are_named(tmp_path: Path) -> None:
    torch.save({"w": torch.eye(3).to_sparse()}, tmp_path / "m.pt")
    with pytest.raises(InputError, match="sparse tensor"):
        open_tensors(tmp_path / "m.pt")


def test_importing_the_readers_imports_no_torch() -> None:
    files = Path(open_tensors.__code__.co_filename).parent.glob("[a-z]*.py")
    code = ";".join(f"import compresskit.checkpoint.{file.stem}" for file in files)
    code += ";import sys;print([m for m in ('torch','onnx','onnxruntime','transformers','numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet20", "resnet56"])
def test_a_published_checkpoint(shared: Path, name: str) -> None:
    """Of the kind before zip, saved on a GPU, under ``state_dict`` and ``module.``."""
    path = shared / "models" / f"{name}.th"
    want = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    tensors = open_tensors(path)
    assert tensors.names() == [key.removeprefix("module.") for key in want]
    assert all(torch.equal(tensors.get(key.removeprefix("module.")), value) for key, value in want.items())
