"""``pip install compresskit`` without an extra: what works there, and what says which extra it wants."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest
import torch
from blocking import block

# One process runs all of them, for the sake of its imports.
_DRIVER = """
import contextlib, importlib.metadata, io, json, sys
from compresskit.cli.main import main
hidden, commands = json.load(sys.stdin)
version = importlib.metadata.version
def visible(name):
    if name in hidden:
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = visible
found = []
for words in commands:
    sys.argv, code, errors = ["compresskit", *words], 0, io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    found.append((code, errors.getvalue()))
print(json.dumps(found))
"""
_NET = """
from torch import nn

def net():
    layers = nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4))
"""
_ARCH = ("--arch", "net.py:net", "--input-shape", "1,1,8,8")
_MADE = (*_ARCH, "--data", "d.npz", "--no-bench", "--quiet")
_RECIPE = """
steps:
  - prune.structured: {ratio: 0.25, round_to: 4}
  - quantize.rtn: {bits: 8}
"""
WORK = {
    "prune": ("prune", "m.pt", "--ratio", "0.25", "--round-to", "4", "--epochs", "1", *_MADE, "-o", "prune"),
    "factorize": ("factorize", "m.pt", "--budget", "0.6", *_MADE, "-o", "factorize"),
    "quantize": ("quantize", "m.pt", "--method", "gptq", "--bits", "4", *_MADE, "-o", "quantize"),
    "int8": ("quantize", "m.pt", "--method", "int8-static", *_MADE, "-o", "int8"),
    "distill": ("distill", "m.pt", "--teacher", "m.pt", "--teacher-arch", "net.py:net", "--epochs", "1", *_MADE,
                "-o", "distill"),
    "full": ("lora", "m.pt", "--method", "full", "--epochs", "1", *_MADE, "-o", "full"),
    "export": ("export", "m.pt", *_ARCH, "-o", "e.onnx"),
    "run": ("run", "r.yaml", "m.pt", *_MADE, "-o", "run"),
    "doctor": ("doctor", "--json", "doctor.json"),
}  # fmt: skip
WANT = {
    "lora": ("lora", "m.pt", "--epochs", "1", *_MADE, "-o", "lora"),
    "factorize": ("factorize", "m.pt", "--method", "cp", "--budget", "0.6", *_MADE, "-o", "cp"),
    "demo": ("demo", "-o", "demo"),
    "serve": ("serve", "e.onnx"),
}


def extras() -> tuple[list[str], list[str]]:
    """The packages that only extras bring, and their modules."""
    named: dict[bool, set[str]] = {False: set(), True: set()}
    for line in metadata.requires("compresskit") or []:
        if "extra == 'dev'" not in line:
            named["extra ==" in line].add(re.split(r"[^\w.-]", line)[0])
    only = sorted(named[True] - named[False])
    plain = {_plain(name) for name in only}
    owners = metadata.packages_distributions()
    # An example that a package left in the common folder belongs to nobody.
    return only, [m for m in owners if m != "example" and plain & {_plain(owner) for owner in owners[m]}]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """Exit code and errors of each command."""
    folder = tmp_path_factory.mktemp("plain")
    torch.manual_seed(0)
    names: dict[str, object] = {}
    exec(_NET, names)
    torch.save(names["net"]().state_dict(), folder / "m.pt")  # type: ignore[operator]
    (folder / "net.py").write_text(_NET, encoding="utf-8")
    (folder / "r.yaml").write_text(_RECIPE, encoding="utf-8")
    x = np.random.default_rng(0).normal(size=(64, 1, 8, 8)).astype(np.float32)
    np.savez(folder / "d.npz", x=x, y=np.arange(64) % 4)
    with pytest.MonkeyPatch.context() as patch:
        packages, modules = extras()
        assert {"transformers", "peft", "tensorly", "starlette"} <= set(modules)
        block(folder, patch, modules)
        done = subprocess.run(
            [sys.executable, "-c", _DRIVER], input=json.dumps([packages, [*WORK.values(), *WANT.values()]]), text=True,
            capture_output=True, cwd=folder, timeout=280, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads((folder / "doctor.json").read_text(encoding="utf-8"))
    assert not any(told["packages"].values())
    assert told["extras"] and all(told["extras"].values())
    names_ = [*WORK, *(f"{name} wants" for name in WANT)]
    return {name: tuple(each) for name, each in zip(names_, json.loads(done.stdout), strict=True)}


@pytest.mark.parametrize("name", WORK)
def test_it_works_without_an_extra(found: dict[str, tuple[int, str]], name: str) -> None:
    assert found[name] == (0, "")


@pytest.mark.parametrize("extra", WANT)
def test_it_says_which_extra_it_wants(found: dict[str, tuple[int, str]], extra: str) -> None:
    code, errors = found[f"{extra} wants"]
    assert code == 4
    assert re.fullmatch(
        rf"error: this needs [\w-]+, which is not installed\n  pip install 'compresskit\[{extra}\]'\n", errors
    )
