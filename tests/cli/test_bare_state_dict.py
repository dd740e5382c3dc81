"""Quantizing tensors without their architecture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_material import ARCH, SHAPE, Cli

import compresskit


def tensors(path: Path) -> dict[str, object]:
    from safetensors.torch import load_file

    return load_file(path)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("bits", ["4", "8"])
@pytest.mark.parametrize("source", ["m.pt", "m.safetensors"])
def test_it_equals_quantizing_with_the_architecture(cli: Cli, source: str, bits: str) -> None:
    import torch

    assert cli("quantize", source, "--bits", bits, "-o", "loose").code == 0
    assert cli("quantize", source, *ARCH, *SHAPE, "--bits", bits, "--no-export", "-o", "known").code == 0
    loose, known = (tensors(Path(name, "model.safetensors")) for name in ("loose", "known"))
    assert loose.keys() == known.keys() and "first.codes" in loose
    assert all(torch.equal(loose[name], known[name]) for name in loose)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    outputs = []
    for name in ("loose", "known"):
        module = compresskit.load(name, arch="net.py:Net").body
        assert isinstance(module, torch.nn.Module)
        outputs.append(module(x).detach())
    plain = compresskit.load(source, arch="net.py:Net").body(x)  # type: ignore[operator]
    assert torch.equal(*outputs)
    assert 0 < (outputs[0] - plain).norm() / plain.norm() < (0.2 if bits == "4" else 0.02)


@pytest.mark.usefixtures("here")
def test_the_bundle_is_small_and_says_what_was_left(cli: Cli) -> None:
    found = cli("quantize", "m.pt", "--bits", "4", "--exclude", "head", "-o", "out", "--json", "-")
    report = json.loads(found.out)
    assert set(report["coverage"]["done"]) == {"first"} and report["coverage"]["skipped"] == {"head": "excluded"}
    written = {"README.md", "compresskit.json", "model.safetensors", "report.json"}
    assert {p.name for p in Path("out").iterdir()} == written
    rounding = next(m for m in report["measurements"] if m["name"] == "weight_sqnr")
    assert 15 < rounding["value"] < 30 and rounding["unit"] == "dB" and rounding["n"] == 1
    assert Path("out/model.safetensors").stat().st_size < Path("m.safetensors").stat().st_size / 2


@pytest.mark.usefixtures("here")
def test_running_the_result_asks_for_the_architecture(cli: Cli) -> None:
    cli("bench", "bare").refused(2, "--arch")
    cli("evaluate", "bare", "--data", "d.npz").refused(2, "--arch")
    assert cli("evaluate", "bare", *ARCH, "--data", "d.npz").code == 0
    assert cli("export", "bare", *ARCH, *SHAPE, "-o", "again.onnx").code == 0
    assert cli("compare", "m.onnx", "again.onnx", "--data", "d.npz", "--no-bench").code == 0


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", ["run_12:30.pt", "my model (1).pt", "модель.pt", "weights", "x.bin", "-dash.pt"])
def test_a_checkpoint_may_have_any_name(cli: Cli, name: str) -> None:
    import torch

    if os.name == "nt" and ":" in name:
        pytest.skip("no such names there")
    torch.save({"a.weight": torch.ones(64, 64)}, f"./{name}")
    found = cli("quantize", "--bits", "4", "-o", "out", "--", name)
    assert found.code == 0, found


DRESSINGS = {
    "nested": lambda s: {"state_dict": s, "epoch": 3},
    "model": lambda s: {"model": s, "optimizer": {"state": {}, "param_groups": []}},
    "parallel": lambda s: {f"module.{k}": v for k, v in s.items()},
    "compiled": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "half": lambda s: {k: v.half() for k, v in s.items()},
    "bfloat": lambda s: {k: v.bfloat16() for k, v in s.items()},
    "double": lambda s: {k: v.double() for k, v in s.items()},
    "transposed": lambda s: {k: v.t().contiguous().t() if v.ndim == 2 else v for k, v in s.items()},
}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("dressing", DRESSINGS)
def test_every_dressing_with_and_without_the_architecture(cli: Cli, dressing: str) -> None:
    import torch

    state = torch.load("m.pt", weights_only=True)
    torch.save(DRESSINGS[dressing](state), "dressed.pt")
    for name, more in (("loose", ()), ("known", (*ARCH, *SHAPE, "--no-export"))):
        found = cli("quantize", "dressed.pt", *more, "--bits", "4", "-o", name)
        assert found.code == 0, found
    x = torch.ones(2, 32)
    loose, known = (compresskit.load(name, arch="net.py:Net").body(x) for name in ("loose", "known"))  # type: ignore[operator]
    assert torch.equal(loose, known)


PEAK = """
import sys, threading, time
from compresskit.cli.main import main

def own():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

def watch():
    while True:
        peak[0] = max(peak[0], own())
        time.sleep(0.002)

import torch
peak = [own()]
before = peak[0]
threading.Thread(target=watch, daemon=True).start()
sys.argv = ["compresskit", *sys.argv[1:]]
try:
    main()
finally:
    print("grew by", peak[0] - before, file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("form", ["pt", "safetensors"])
def test_memory_is_that_of_the_largest_tensor(tmp_path: Path, form: str) -> None:
    """400 MB in tensors of 42 MB. Memory of the process's own is counted; pages of the mapped file are the system's."""
    import torch
    from safetensors.torch import save_file

    state = {f"layers.{i}.weight": torch.randn(2560, 4096) for i in range(10)}
    path = tmp_path / f"big.{form}"
    save_file(state, path) if form == "safetensors" else torch.save(state, path)
    del state
    words = ("quantize", str(path), "--bits", "4", "-o", str(tmp_path / "out"), "--json", "-")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *words], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 1024 * int(done.stderr.split()[-1]) < 42e6 + 20e6
