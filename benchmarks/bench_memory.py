"""Peak memory of quantizing a bare state dict, above that of mapping the file: the largest tensor and a constant.

Each run is a process of its own whose peak resident bytes the system tells. It is held against a process that imports
the same libraries and reads every page of the same file through a map: mapped pages count as resident, but the system
takes them back when it needs them. A file of four times the size shows that what is above the map doesn't grow with it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from harness import ROOT, Bench, absent, workplace

MB = 1_000_000
CONSTANT = 64 * MB
ROWS = (2560, 3584, 5120, 6144)
COLUMNS = 4096
# ru_maxrss is inherited over exec: a small parent keeps it to the child's own.
PEAK = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(peak if sys.platform == "darwin" else peak * 1024)
sys.exit(code)
"""
MAP = """
import mmap, sys, torch, compresskit.cli.run_stage, compresskit.ops.quantize.stream, compresskit.checkpoint.load
import compresskit.runner.loading, compresskit.runner.pipeline, compresskit.checkpoint.safetensors_writer
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
    sum(data[i] for i in range(0, len(data), mmap.PAGESIZE))
"""
MAKE = """
import sys, torch
from safetensors.torch import save_file
path, rows = sys.argv[1], [int(n) for n in sys.argv[2].split(",")]
torch.manual_seed(0)
state = {f"layer{i}.weight": torch.randn(n, int(sys.argv[3])) for i, n in enumerate(rows)}
save_file(state, path) if path.endswith(".safetensors") else torch.save(state, path)
"""


def main() -> None:
    bench = Bench("memory", __doc__ or "")
    if sys.platform == "win32":
        absent("the peak memory of another process, which Windows doesn't tell this way", "run it on Linux or macOS")
    largest = max(ROWS) * COLUMNS * 4
    for kind in (".safetensors",) if bench.quick else (".safetensors", ".pt"):
        for bits, times in ((4, 1),) if bench.quick else ((4, 1), (4, 4), (8, 1)):
            total, mapped, peak = measured(kind, bits, times)
            above = peak - mapped
            allowed = largest + CONSTANT
            bench.row(
                f"quantize --bits {bits} of a bare {kind}, {total / MB:.0f} MB, peak above a map of it",
                f"≤ {allowed / MB:.0f} MB", f"{above / MB:.0f} MB", 1,
                f"peak {peak / MB:.0f} MB, map {mapped / MB:.0f} MB", above <= allowed,
            )  # fmt: skip
    print(f"  the bar is the largest tensor, {largest / MB:.0f} MB, and {CONSTANT / MB:.0f} MB")
    bench.end()


def measured(kind: str, bits: int, times: int) -> tuple[int, int, int]:
    """(bytes of the checkpoint, peak of a map of it, peak of quantizing it)."""
    with workplace() as folder:
        path = folder / f"model{kind}"
        python(MAKE, path, ",".join(map(str, ROWS * times)), COLUMNS)
        mapped = peak_of(sys.executable, "-c", MAP, path)
        out = folder / "out"
        peak = peak_of(sys.executable, "-m", "compresskit", "quantize", path, "--bits", bits, "-q", "-o", out)
        return path.stat().st_size, mapped, peak


def peak_of(*words: Any) -> int:
    """Peak resident bytes of a process."""
    return int(next(python(PEAK, *words)))


def python(code: str, *arguments: Any) -> Iterator[str]:
    """Run code in a small process; its lines."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True
    )
    return iter(done.stdout.splitlines())


if __name__ == "__main__":
    main()
