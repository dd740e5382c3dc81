"""Wall time of ``compresskit --help`` and every sub-help against ``python -c "import typer"``, taking turns."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
from harness import ROOT, Bench, command, ratio, spread

from compresskit.cli.app import summaries

MOST = 2.0


def main() -> None:
    bench = Bench("start-up", __doc__ or "")
    rounds = 3 if bench.quick else 30
    words = {
        "import typer": [sys.executable, "-c", "import typer"],
        "--help": command("--help"),
        **{f"{name} --help": command(name, "--help") for name in (["quantize"] if bench.quick else summaries())},
    }
    for each in words.values():  # byte code and file caches
        seconds(each)
    times: dict[str, list[float]] = {name: [] for name in words}
    for turn in range(rounds):
        for name in list(words) if turn % 2 else reversed(words):
            times[name].append(seconds(words[name]))
    base = times.pop("import typer")
    bench.row(
        'python -c "import typer"', "", f"{1e3 * np.median(base):.0f} ms", rounds, spread([1e3 * t for t in base], 0)
    )
    for name, own in times.items():
        top = name == "--help"
        value, half = ratio(own, base)
        bench.row(
            f"compresskit {name}, over import typer", f"≤ {MOST:g}×" if top else "", f"{value:.2f}×", rounds, half,
            value <= MOST if top else None,
        )  # fmt: skip
        bench.row(
            f"compresskit {name}", "", f"{1e3 * np.median(own):.0f} ms", rounds, spread([1e3 * t for t in own], 0)
        )
    bench.end()


def seconds(words: list[str]) -> float:
    """Wall time of one process."""
    start = time.perf_counter()
    subprocess.run(words, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
