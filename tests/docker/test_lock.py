"""The lock of the edge: wheels for both architectures, each by its hash."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

GLIBC = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_pip_finds_a_wheel_with_a_known_hash_for_all(root: Path, tmp_path: Path, machine: str) -> None:
    """Asks the package index; pip itself refuses a file whose hash isn't in the lock."""
    platforms = [word for glibc in GLIBC for word in ("--platform", f"{glibc}_{machine}")]
    words = [
        "download", "--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:", "--implementation", "cp",
        "--python-version", "3.12", *platforms, "-r", str(root / "requirements" / "edge.txt"), "-d", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "pip", *words], stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr
    native = [path.name for path in tmp_path.iterdir() if machine in path.name]
    assert any(name.startswith("onnxruntime-") for name in native)
