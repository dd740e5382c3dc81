"""The oldest onnxruntime that runs what compresskit writes, and gives what today's gives; installs them from PyPI."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from harness import Bench, workplace
from small_models import FEEDS, images, texts

VERSIONS = ("1.16.3", "1.17.3", "1.18.1", "1.19.2", "1.20.1", "1.21.1", "1.22.1")
NEAR = 0.02
"""Relative L2 of the outputs: kernels differ in how they round, not by more."""
RUN = (
    FEEDS
    + """
import sys
import onnxruntime as ort
options = ort.SessionOptions()
options.log_severity_level = 4
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
np.save(sys.argv[2], session.run(None, feeds(session))[0])
"""
)


def main() -> None:
    bench = Bench("older onnxruntime", __doc__ or "", data=True)
    with workplace() as folder:
        engines = {version: installed(version, folder) for version in VERSIONS}
        for name, path in {**images(bench, folder), **texts(bench, folder)}.items():
            if not bench.wants(name):
                continue
            today = output(path, None, folder)
            if today is None:
                sys.exit(f"{name} doesn't run under today's onnxruntime")
            good = {
                version: place is not None and near(output(path, place, folder), today)
                for version, place in engines.items()
            }
            oldest = next((version for version, fine in good.items() if fine), "none of these")
            about = ", ".join(f"{version} {'runs' if fine else 'no'}" for version, fine in good.items())
            bench.row(f"{name}, oldest that runs it", "", oldest, len(good), about)
    bench.end()


def installed(version: str, folder: Path) -> Path | None:
    """Where a release was put; None where there is none for this Python."""
    place = folder / version
    numpy = "numpy<2" if version < "1.19" else "numpy"
    words = ["-m", "pip", "install", "--quiet", "--only-binary", ":all:", "--target", place]
    done = subprocess.run(
        [sys.executable, *map(str, words), f"onnxruntime=={version}", numpy], check=False, stderr=subprocess.DEVNULL
    )
    return place if done.returncode == 0 else None


def output(path: Path, place: Path | None, folder: Path) -> np.ndarray | None:
    """The first output of a file under one release; None where it is refused."""
    kept = folder / "output.npy"
    kept.unlink(missing_ok=True)
    before = f"import sys; sys.path.insert(0, {str(place)!r})\n" if place else ""
    subprocess.run(
        [sys.executable, "-c", before + RUN, str(path), str(kept)], check=False, stderr=subprocess.DEVNULL
    )  # fmt: skip
    return np.load(kept) if kept.exists() else None


def near(found: np.ndarray | None, today: np.ndarray) -> bool:
    return found is not None and float(np.linalg.norm(found - today) / np.linalg.norm(today)) < NEAR


if __name__ == "__main__":
    main()
