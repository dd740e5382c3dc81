"""What `compress` finds: ResNet-20 and MiniLM under tight bars, digits against random search, searches that are killed.

The searches run as a user would run them, within the time that is given; their results are measured on test images that
the search never chose by.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import tempfile
import time
from functools import partialmethod
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from cifar import NORMALIZE
from harness import ROOT, Bench, cli, command, figure, minilm

from compresskit.errors import UsageError
from compresskit.report import Report, read_report
from compresskit.searched import Search

_DIGITS = ("--arch", "net.py:Net", "--data", "train.npz", "--eval-data", "test.npz", "--no-html")
_SEEDS = 5
_DIGITS_S, _RESNET_S = 60.0, 90.0
_KILLS = 10
_TOGETHER = 12


def main() -> None:
    bench = Bench("search", __doc__ or "", data=True)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        os.environ["COMPRESSKIT_CACHE"] = str(place / "steps")
        for drop, minutes in ((0.3, 30), (1.0, 60)):
            if bench.wants(f"ResNet-20 at {drop} pt"):
                resnet(bench, place, drop, minutes)
        if bench.wants("MiniLM at 0.5 pt"):
            text(bench, place)
        cases = {
            "digits, 1 kB": hopeless, "digits, killed": killed, "digits against random search": digits_against_random,
            "ResNet-20 without training against random": resnet_against_random,
            "digits, three workers": three_workers,
        }  # fmt: skip
        if wanted := [run for case, run in cases.items() if bench.wants(case)]:
            cli("demo", "-o", place / "digits")
            for run in wanted:
                run(bench, place / "digits")
    bench.end()


def resnet(bench: Bench, place: Path, drop: float, minutes: int) -> None:
    """One search, and all models of its front that were measured on the test images."""
    name, out = f"ResNet-20 at {drop} pt", place / f"resnet-{drop}"
    start = time.monotonic()
    report = cli(
        "compress", bench.data("models", "resnet20.th"), "--arch", "examples/cifar_resnet.py:resnet20",
        "--input-shape", "1,3,32,32", "--data", bench.data("cifar10", "train.npz"), "--eval-data",
        bench.data("cifar10", "test.npz"), "--normalize", NORMALIZE, "--max-drop", f"{drop}pt", "--time",
        f"{minutes}m", "-o", out,
    )  # fmt: skip
    took = (time.monotonic() - start) / 60
    found_rows(bench, name, report, (9.0, 3.0) if drop < 1 else (8.0, 3.3), f"{took:.0f} min")


def found_rows(bench: Bench, name: str, report: Report, wanted: tuple[float, float], how: str) -> None:
    """What one search found.

    Args:
        bench: Where it is recorded.
        name: Of the rows.
        report: Of the search.
        wanted: Times smaller and times as fast that a model of the front should be.
        how: Time that it took, and by how many workers.
    """
    search = report.search
    assert search is not None
    passing = [one for one in search.judged if one.passed]
    tried = {one.number: one for one in search.tried}
    smallest = max((tried[one.number].smaller or 0 for one in passing), default=0.0)
    fastest = max((one.speedup or 0 for one in passing), default=0.0)
    about = f"{len(search.tried)} candidates, {how}"
    bench.row(
        f"{name}, smallest that passes", f"≥ {wanted[0]:.1f}×", f"{smallest:.1f}×", 1, about, smallest >= wanted[0]
    )
    bench.row(f"{name}, fastest that passes", f"≥ {wanted[1]:.1f}×", f"{fastest:.2f}×", 1, about, fastest >= wanted[1])
    lost = report.evaluation.drops if report.evaluation else {}
    metric = "accuracy" if report.values("accuracy") else "spearman"
    found = figure(report, metric)
    ratio = report.models[0].bytes / report.models[1].bytes
    low, high = next(iter(lost.values()), (math.nan, math.nan))
    told = f"{ratio:.1f}× smaller, {figure(report, 'speedup').value:.2f}× as fast"
    bench.row(
        f"{name}, the result",
        "",
        f"{found.value:.2f}",
        found.n,
        f"{told}; 95 % of the drop {low:+.2f} to {high:+.2f}",
    )


def text(bench: Bench, place: Path) -> None:
    """One search on MiniLM, and the shipped recipe for its kind on the same data."""
    name, data = "MiniLM at 0.5 pt", bench.data("text", "stsb-en-train.csv")
    words = (minilm(), "--data", data, "--eval-data", bench.data("text", "stsb-en-test.csv"), "--max-drop", "0.5pt")
    recipe = cli("run", "cpu-fast", *words, "-o", place / "cpu-fast")
    size, speed = recipe.models[0].bytes / recipe.models[-1].bytes, figure(recipe, "speedup").value
    bench.row(
        f"{name}, recipe cpu-fast", "", f"{figure(recipe, 'spearman').value:.2f}", figure(recipe, "spearman").n,
        f"{size:.1f}× smaller, {speed:.2f}× as fast, {recipe.verdict.value}",
    )  # fmt: skip
    start = time.monotonic()
    report = cli("compress", *words, "--time", "1m" if bench.quick else "30m", "-o", place / "minilm")
    found_rows(bench, name, report, (size, speed), f"{(time.monotonic() - start) / 60:.0f} min")


def digits_against_random(bench: Bench, place: Path) -> None:
    asked = {
        "model": place / "digits.pt", "arch": f"{place}/net.py:Net", "input_shape": (1, 1, 8, 8),
        "data": place / "train.npz", "eval_data": place / "test.npz", "seconds": _DIGITS_S,
    }  # fmt: skip
    against_random(bench, "digits", place, asked)


def resnet_against_random(bench: Bench, place: Path) -> None:
    """Without training; the test images are only a formality here: what is compared is measured on held-out ones."""
    with np.load(bench.data("cifar10", "test.npz")) as test:
        np.savez(place / "few.npz", **{name: test[name][:500] for name in test.files})
    asked = {
        "model": bench.data("models", "resnet20.th"), "arch": f"{ROOT}/examples/cifar_resnet.py:resnet20",
        "input_shape": (1, 3, 32, 32), "data": bench.data("cifar10", "train.npz"), "eval_data": place / "few.npz",
        "normalize": NORMALIZE, "steps": ("prune", "factorize", "quantize"), "seconds": _RESNET_S,
    }  # fmt: skip
    against_random(bench, "ResNet-20 without training", place, asked)


def against_random(bench: Bench, name: str, place: Path, asked: dict[str, Any]) -> None:
    """The area that passing candidates dominate, over that of random search in the same time."""
    pairs = []
    for seed in range(1 if bench.quick else _SEEDS):
        ours, theirs = (area(searched(place, asked, seed, blind)) for blind in (False, True))
        pairs.append((ours, theirs))
        print(f"  seed {seed}: {ours:.3f} against {theirs:.3f}", flush=True)
    value, low, high, how = compared(pairs)
    bench.row(
        f"{name} against random search, area of the front", "≥ 1.1×, low above 1", f"{value:.2f}×", len(pairs),
        f"95 %: {low:.2f} to {high:.2f}; {how}; {asked['seconds']:.0f} s each", value >= 1.1 and low > 1,
    )  # fmt: skip


def compared(pairs: list[tuple[float, float]]) -> tuple[float, float, float, str]:
    """(ratio, its 95 % interval, what it is of): of areas that may be 0, where one search found nothing that passes."""
    if all(two > 0 for _, two in pairs):
        logs = [math.log(max(one, 1e-9) / two) for one, two in pairs]
        middle = sum(logs) / len(logs)
        spread = math.sqrt(sum((log - middle) ** 2 for log in logs) / max(1, len(logs) - 1))
        half = 2.776 * spread / math.sqrt(len(logs))  # Student, 4 degrees of freedom
        return math.exp(middle), math.exp(middle - half), math.exp(middle + half), "mean of the ratios"
    draws, rng = [], random.Random(0)
    for _ in range(4000):
        drawn = rng.choices(pairs, k=len(pairs))
        draws.append(sum(one for one, _ in drawn) / max(1e-9, sum(two for _, two in drawn)))
    draws.sort()
    ones, twos = (sum(values) for values in zip(*pairs, strict=True))
    nothing = sum(two == 0 for _, two in pairs)
    how = f"ratio of the means, as random search found nothing in {nothing} of {len(pairs)}"
    return ones / max(1e-9, twos), draws[100], draws[-100], how


def searched(place: Path, asked: dict[str, Any], seed: int, blind: bool) -> Search:
    """One search; blind: at random, each candidate followed to its end."""
    import optuna

    from compresskit import compress
    from compresskit.search import searching
    from compresskit.search.space import Space

    out = place / "random"
    for folder in (out, Path(f"{out}.study"), place / "steps"):
        shutil.rmtree(folder, ignore_errors=True)
    patches = []
    if blind:
        patches = [
            patch.object(searching.Policy, "next", lambda *_, **__: None),
            patch.object(searching, "_Untrained", lambda trial, _: trial),
            patch.object(Space, "untrained", lambda _, values: dict(values)),
            patch.object(Space, "steps", partialmethod(_in_full, Space.steps)),
            patch.object(optuna.samplers, "TPESampler", lambda **_: optuna.samplers.RandomSampler(seed=seed)),
        ]
    for one in patches:
        one.start()
    try:
        report = compress(output=out, max_drop="1pt", seed=seed, cache=place / "steps", **asked)
    except UsageError:  # nothing could be measured in the time
        return Search()
    finally:
        for one in patches:
            one.stop()
    assert report.search is not None
    return report.search


def _in_full(space: Any, steps: Any, values: Any, **_how: Any) -> Any:
    """The steps of a candidate, never in their cheap form."""
    return steps(space, values)


def area(search: Search) -> float:
    """What passing candidates dominate, in logarithms of size and time of a call, from the original on."""
    points = sorted(
        ((math.log(one.smaller or 1), math.log(one.faster or 1)) for one in search.tried if one.state == "kept"),
        reverse=True,
    )
    found, top = 0.0, 0.0
    for size, speed in points:
        if speed > top and size > 0:
            found += size * (speed - top)
            top = speed
    return found


def killed(bench: Bench, place: Path) -> None:
    """A search that is killed at random times, again and again, keeps what it finished, and its recipe is sound."""
    out, study = place / "killed", place / "killed.study"
    words = command(
        "compress", "digits.pt", *_DIGITS, "--max-drop", "1pt", "--time", "60s", "--cache", "kept", "-o", "killed"
    )
    rng, known, kept = random.Random(0), {}, 0
    for _ in range(1 if bench.quick else _KILLS):
        with subprocess.Popen(words, cwd=place, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
            time.sleep(rng.uniform(6, 14))
            process.kill()
        now = finished(study)
        kept += all(now.get(number) == text for number, text in known.items())
        known = now
    assert not out.exists()
    subprocess.run([*words, "--trials", str(len(known) + 1)], cwd=place, check=False, capture_output=True)
    report = read_report(out)
    again = command("run", "killed/recipe.yaml", "digits.pt", *_DIGITS, "--no-bench", "--no-cache", "-o", "again")
    rerun = subprocess.run(again, cwd=place, check=False, capture_output=True)
    made = [path.name for path in out.iterdir() if path.name in ("model.onnx", "model.safetensors")]
    same = rerun.returncode == 0 and all((place / "again" / n).read_bytes() == (out / n).read_bytes() for n in made)
    count = _count(report)
    bench.row(
        "digits, killed at random times: finished candidates kept", "all", f"{kept} of {_KILLS}", _KILLS,
        f"{count} candidates in all", kept == _KILLS,
    )  # fmt: skip
    bench.row(
        "digits, killed at random times: the recipe gives the result's bytes",
        "equal",
        "equal" if same else "other",
        1,
        "",
        same,
    )


def finished(study: Path) -> dict[int, str]:
    """The records of finished candidates in a study's journal."""
    from compresskit.search.study import SearchStudy

    if not study.is_dir():
        return {}
    found = SearchStudy.open(str(study), goals=2, seed=0, create=False)
    return {one.number: one.model_dump_json() for one in found.tried()}


def _count(report: Report) -> int:
    return len(report.search.tried) if report.search is not None else 0


def three_workers(bench: Bench, place: Path) -> None:
    """The same number of candidates by one worker and by three on this machine, without timing any; one is killed."""
    ways: dict[str, tuple[float, list[str]]] = {}
    for name, others in (("alone", 0), ("three", 2)):
        words = command(
            "compress", "digits.pt", *_DIGITS, "--no-bench", "--trials", str(_TOGETHER), "--time", "10m", "--cache",
            f"{name}-steps", "-o", name,
        )  # fmt: skip
        start = time.monotonic()
        with subprocess.Popen(words, cwd=place, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as first:
            study = place / f"{name}.study" / "journal.log"
            while not study.exists() or b'"until"' not in study.read_bytes():
                time.sleep(0.2)
            join = command("compress", "--join", f"{name}.study", "--cache", f"{name}-steps")
            joined = [
                subprocess.Popen(join, cwd=place, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
                for _ in range(others)
            ]
            if joined:
                time.sleep(15)
                joined.pop().kill()
            first.wait()
            for other in joined:
                other.wait()
        search = read_report(place / name).search
        assert search is not None
        ways[name] = (search.seconds, [f"{one.rung} {sorted(one.values.items())}" for one in search.tried])
        print(f"  {name}: {search.seconds:.0f} s, {time.monotonic() - start:.0f} s with the verdict", flush=True)
    twice = sum(len(keys) - len(set(keys)) for _, keys in ways.values())
    few = sum(len(keys) < _TOGETHER for _, keys in ways.values())
    bench.row(
        "digits, three workers, one killed: candidates lost or tried twice", "0", str(twice + few), 2,
        f"{_TOGETHER} candidates each", twice + few == 0,
    )  # fmt: skip
    bench.row(
        "digits, three workers, one killed: time of the search over that of one", "",
        f"{ways['three'][0] / ways['alone'][0]:.2f}×", 1, f"{ways['alone'][0]:.0f} s alone",
    )  # fmt: skip


def hopeless(bench: Bench, place: Path) -> None:
    """A size that nothing reaches."""
    start = time.monotonic()
    words = command("compress", "digits.pt", *_DIGITS, "--max-size", "1kB", "--time", "30m", "-o", "hopeless")
    done = subprocess.run(words, cwd=place, check=False, capture_output=True, text=True)
    took = time.monotonic() - start
    found = json.loads((place / "hopeless" / "report.json").read_bytes())
    told = any("would meet" in note for note in found["notes"])
    bench.row(
        "digits, 1 kB: exit 1 with the nearest",
        "≤ 120 s",
        f"{took:.0f} s",
        1,
        "",
        done.returncode == 1 and told and took <= 120,
    )


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
