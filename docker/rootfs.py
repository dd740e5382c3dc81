"""Makes the root folder of the edge image: Python, the packages, the shared libraries that they load, nothing else.

Runs in the build stage, on the Python of the image: ``python rootfs.py ROOT --packages DIR --source DIR``.
"""

from __future__ import annotations

import argparse
import compileall
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from py_compile import PycInvalidationMode

# Of the standard library: what tests, installs, draws windows, or belongs to none of our commands.
_STDLIB = (
    "__pycache__", "config-*", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages", "sqlite3", "test",
    "tkinter", "turtledemo", "venv", "_test*.so", "_tkinter*.so", "_sqlite3*.so", "_ctypes_test*.so", "xx*.so",
    "_curses*.so", "curses", "readline*.so", "_dbm*.so", "_gdbm*.so", "distutils", "*.a",
)  # fmt: skip
# Of the packages. libonnxruntime.so is a second copy of the engine, for programs in C; the rest converts or tests.
_PACKAGES = (
    "__pycache__", "bin", "*.pyi", "onnxruntime/capi/libonnxruntime.so*", "onnxruntime/transformers",
    "onnxruntime/tools", "onnxruntime/quantization", "onnxruntime/datasets", "onnxruntime/backend",
    "onnx/backend/test", "onnx/test", "onnx/*.h", "onnx/*/*.h", "onnx/*.cc", "onnx/*/*.cc", "onnx/*.proto*",
    "onnx/include", "onnx/reference/ops", "numpy/*/tests", "numpy/tests", "numpy/f2py", "numpy/_core/include",
    "numpy/_core/lib", "numpy/*/*.a", "numpy/random/lib", "numpy/random/_examples", "numpy/testing/tests",
)  # fmt: skip


def main() -> None:
    """Make the folder."""
    parser = argparse.ArgumentParser(description="Makes the root folder of the edge image.")
    parser.add_argument("root", type=Path)
    parser.add_argument("--packages", type=Path, required=True, help="what pip installed with --target")
    parser.add_argument("--source", type=Path, required=True, help="the package compresskit")
    options = parser.parse_args()
    root: Path = options.root
    if root.exists():
        sys.exit(f"{root} exists already")
    app = root / "app"
    copy(options.packages, app, _PACKAGES)
    copy(options.source, app / options.source.name, ("__pycache__",))
    library = Path(sysconfig.get_path("stdlib"))
    copy(library, inside(root, library), _STDLIB)
    python = Path(sys.executable).resolve()
    copy_file(python, inside(root, python))
    (root / "bin").mkdir(exist_ok=True)
    (root / "bin" / "python").symlink_to(python)
    for needed in sorted(libraries([python, *app.rglob("*.so*"), *inside(root, library).rglob("*.so")])):
        copy_file(needed, inside(root, needed))
    cache = Path("/etc/ld.so.cache")  # tells where libpython is
    if cache.is_file():
        copy_file(cache, inside(root, cache))
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc" / "passwd").write_text("nonroot:x:65532:65532::/tmp:/\n", encoding="ascii")
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    # The root is read-only when it runs: compiled now, or anew at every start.
    for folder in (app, inside(root, library)):
        compileall.compile_dir(
            folder, quiet=2, stripdir=str(root), invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
            optimize=0,
        )  # fmt: skip
    size = sum(path.lstat().st_size for path in root.rglob("*") if not path.is_dir())
    print(f"{root}: {size / 1e6:.1f} MB")


def inside(root: Path, path: Path) -> Path:
    """Where an absolute path lies in the new root."""
    return root / path.relative_to("/")


def copy(source: Path, target: Path, without: tuple[str, ...]) -> None:
    """Copy a folder; patterns without a slash are of names anywhere in it, others of paths."""

    def left_out(folder: str, names: list[str]) -> list[str]:
        here = Path(folder).relative_to(source)
        return [n for n in names if any((here / n).match(p) if "/" not in p else fits(here / n, p) for p in without)]

    shutil.copytree(source, target, ignore=left_out, symlinks=False, dirs_exist_ok=True)


def fits(path: Path, pattern: str) -> bool:
    """Whether a path has as many parts as a pattern, and each fits."""
    return len(path.parts) == pattern.count("/") + 1 and path.match(pattern)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file with its mode; a link becomes what it leads to."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(os.path.realpath(source), target)


def libraries(files: list[Path]) -> Iterator[Path]:
    """The shared libraries that files need, with the loader; those that lie beside them are there already."""
    seen: set[str] = set()
    for file in files:
        if file.is_symlink() or file.read_bytes()[:4] != b"\x7fELF":
            continue
        done = subprocess.run(["ldd", str(file)], capture_output=True, text=True, check=False)
        for line in done.stdout.splitlines():
            if "not found" in line:
                sys.exit(f"{file} needs a library that is not here: {line.strip()}")
            found = re.search(r"(?:=> )?(/\S+) \(0x", line)
            if found and found[1] not in seen and "/app/" not in found[1]:
                seen.add(found[1])
                yield Path(found[1])


if __name__ == "__main__":
    main()
