"""The oldest onnxruntime that runs what compresskit writes as well as today's; the releases come from PyPI.

As well means: as near to the float32 model's outputs, by relative L2. Kernels of 8 bit round otherwise in others,
so outputs needn't be the same.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from harness import Bench, workplace
from small_models import FEEDS, images, texts

VERSIONS = ("1.16.3", "1.17.3", "1.18.1", "1.19.2", "1.20.1", "1.21.1", "1.22.1")
MORE, ALWAYS = 1.25, 0.01
"""How many times today's error an older release may have; so much is nothing."""
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
        for make in (images, texts):
            files = make(bench, folder)
            exact = needed(output(next(iter(files.values())), None, folder))
            for name, path in files.items():
                if bench.wants(name):
                    compared(bench, name, path, exact, engines, folder)
    bench.end()


def compared(
    bench: Bench, name: str, path: Path, exact: np.ndarray, engines: dict[str, Path | None], folder: Path
) -> None:
    """One row of a file."""

    def error(found: np.ndarray) -> float:
        return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))

    today = error(needed(output(path, None, folder)))
    errors, good = {"today": f"{today:.3f}"}, []
    for version, place in engines.items():
        found = output(path, place, folder) if place else None
        errors[version] = "refused" if found is None else f"{error(found):.3f}"
        if found is not None and error(found) <= MORE * today + ALWAYS:
            good.append(version)
    about = "; ".join(f"{version} {said}" for version, said in errors.items())
    bench.row(f"{name}, oldest that runs it", "", good[0] if good else "none of these", len(engines), about)


def needed(found: np.ndarray | None) -> np.ndarray:
    if found is None:
        sys.exit("a file doesn't run under today's onnxruntime")
    return found


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


if __name__ == "__main__":
    main()
