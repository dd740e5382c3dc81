"""The install for the edge: the commands that run ONNX files work where torch and its friends are not installed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from blocking import ROOT, block

sys.path.insert(0, str(ROOT / "tests" / "serve"))
from serve_material import COLUMNS, Server, body, tensor, tiny_model

LEFT_OUT = ("torch", "transformers", "tokenizers", "safetensors", "onnxscript", "onnx_ir", "sklearn", "scipy", "peft")


@pytest.fixture
def edge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a.onnx, b.onnx and d.npz; subprocesses lack what the edge install leaves out."""
    block(tmp_path, monkeypatch, LEFT_OUT)
    monkeypatch.chdir(tmp_path)
    for name in ("a.onnx", "b.onnx"):
        tiny_model(tmp_path / name)
    x = np.random.default_rng(0).normal(size=(32, COLUMNS)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=x.argmax(1))
    return tmp_path


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "compresskit", *words], capture_output=True, text=True, timeout=200, check=False
    )


def test_what_is_blocked_is_not_found(edge: Path) -> None:
    for name in LEFT_OUT:
        done = subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, text=True, check=False)
        assert "ModuleNotFoundError" in done.stderr


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (("inspect", "a.onnx"), "parameters"),
        (("evaluate", "a.onnx", "--data", "d.npz"), "100.00 %"),
        (("compare", "a.onnx", "b.onnx", "--data", "d.npz", "--no-bench"), "PASS"),
        (("bench", "a.onnx", "b.onnx", "--processes", "2", "--rounds", "2"), "p50 ms"),
        (("predict", "a.onnx", "d.npz"), "(8 numbers)"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_commands_on_onnx_files_need_no_torch(edge: Path, words: tuple[str, ...], shown: str) -> None:
    done = run(*words)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout


def test_check_needs_no_torch(edge: Path) -> None:
    assert run("compare", "a.onnx", "b.onnx", "--data", "d.npz", "--no-bench", "--json", "r.json").returncode == 0
    done = run("check", "r.json", "--max-drop", "1%")
    assert done.returncode == 0, done.stderr
    assert "PASS" in done.stdout


def test_serve_needs_no_torch(edge: Path) -> None:
    server = Server(edge / "a.onnx")
    try:
        assert server.infer(body(tensor()))[0] == 200
        assert server.stop() == (0, "")
    finally:
        server.close()


def test_a_command_that_needs_torch_says_so(edge: Path) -> None:
    header = b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
    (edge / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    done = run("inspect", "m.safetensors")
    assert (done.returncode, done.stdout) == (4, "")
    assert re.fullmatch(r"error: this needs \w+, which is not installed\n  pip install \S+\n", done.stderr)


@pytest.mark.parametrize(
    ("absent", "extra"),
    [("starlette", "[serve]"), ("uvicorn", "[serve]"), ("prometheus_client", "[serve]"), ("onnx", "")],
)  # fmt: skip
def test_serve_says_which_package_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absent: str, extra: str
) -> None:
    block(tmp_path, monkeypatch, (absent,))
    done = run("serve", str(tiny_model(tmp_path / "a.onnx")), "--port", "0")
    assert (done.returncode, done.stdout) == (4, "")
    assert absent in done.stderr and f"compresskit{extra}'" in done.stderr
    assert len(done.stderr.splitlines()) == 2


def test_the_lock_holds_both_machines_and_nothing_heavy() -> None:
    """Each entry is pinned with hashes; what is asked for is there."""
    text = (ROOT / "requirements" / "edge.txt").read_text(encoding="utf-8")
    entries = dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.M))
    asked = [
        line for line in (ROOT / "requirements" / "edge.in").read_text(encoding="utf-8").splitlines() if line[0] != "#"
    ]
    assert set(asked) <= set(entries)
    assert not entries.keys() & {"torch", "transformers", "scipy", "scikit-learn"}
    for block_ in re.split(r"\n(?=\w)", text.partition("\n\n")[0]):
        if "==" in block_ and not block_.startswith("#"):
            assert "--hash=sha256:" in block_, block_
