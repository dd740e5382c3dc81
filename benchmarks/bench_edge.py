"""The edge image without an engine: the Dockerfile's own build commands replayed, the result weighed and run."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from bench_serve import model
from dockerfile import commands, variables
from harness import ROOT, Bench, absent, workplace

from compresskit.serve.probe import is_ready


def main() -> None:
    bench = Bench("edge", __doc__ or "")
    if sys.platform != "linux" or sys.version_info < (3, 12):
        absent("Python 3.12 on Linux, as in the image", "run this with another interpreter: it needs onnx and pydantic")
    with workplace() as folder:
        for step in map(shlex.split, commands("build")):
            words = [word.replace("/packages", f"{folder}/packages").replace("/rootfs", f"{folder}/rootfs", 1)
                     if word in ("/packages", "/rootfs") else word for word in step]  # fmt: skip
            subprocess.run([sys.executable, *words[1:]], cwd=ROOT, check=True, stdout=sys.stderr)
        root = folder / "rootfs"
        size = sum(path.lstat().st_size for path in root.rglob("*") if not path.is_dir()) / 1e6
        about = f"this Python {sys.version_info[0]}.{sys.version_info[1]}, not the base's"
        bench.row("unpacked, Python and its libraries included", "≤ 250 MB", f"{size:.1f} MB", 1, about, size <= 250)
        with tarfile.open(folder / "layer.tar.gz", "w:gz", compresslevel=6) as archive:
            archive.add(root, ".")
        packed = (folder / "layer.tar.gz").stat().st_size / 1e6
        bench.row("compressed with gzip -6", "≤ 90 MB", f"{packed:.1f} MB", 1, "", packed <= 90)
        names = {path.name for path in (root / "app").iterdir()}
        unwanted = names & {"torch", "transformers", "pip"}
        bench.row("torch, transformers and pip in it", "none", f"{len(unwanted)}", len(names), "", not unwanted)
        if os.geteuid() == 0 and shutil.which("chroot"):
            model(root / "m.onnx")
            for words in (["inspect", "/m.onnx"], ["bench", "/m.onnx", "--processes", "2", "--rounds", "2"]):
                code = chrooted(root, words).wait()
                bench.row(f"{words[0]} as user 65532 in that folder", "exit 0", f"exit {code}", 1, "", code == 0)
            good = serves(root)
            bench.row("serve as user 65532 in that folder", "ready", "ready" if good else "not ready", 1, "", good)
    bench.end()


def chrooted(root: Path, words: list[str]) -> subprocess.Popen[str]:
    """Start compresskit in the folder as the image would, as a user who owns nothing of it."""
    outer = [str(shutil.which("chroot")), "--userspec=65532:65532", str(root), "/bin/python", "-m", "compresskit"]
    return subprocess.Popen([*outer, *words], env=variables("edge"), stdout=subprocess.PIPE, text=True)


def serves(root: Path) -> bool:
    """Whether a server in the folder gets ready, says so to the probe, and stops as asked."""
    server = chrooted(root, ["serve", "/m.onnx", "--port", "0"])
    assert server.stdout is not None
    line = server.stdout.readline()
    ready = bool(line) and is_ready(line.removeprefix("ready: ").partition("/v2")[0])
    server.terminate()
    return server.wait(60) == 0 and ready


if __name__ == "__main__":
    main()
