"""``compress``: a search that ends, goes on, and gives back a model, its recipe and the way to it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from cli_material import ARCH, Cli
from warm import Warm

from compresskit.checkpoint.bundle import read_card
from compresskit.report import Report, Verdict, read_report

SPACE = """\
steps:
  - one-of: [none, {factorize.svd: {rank: {any-of: [6, 8]}, include: [first]}}]
  - one-of: [{quantize.rtn: {bits: {any-of: [4, 8]}}}, {quantize.int8-static: {samples: 32}}]
"""
FILES = ("compress", "m.pt", *ARCH, "--data", "d.npz", "--eval-data", "d.npz", "--cache", "steps", "--no-html")
ASKED = (*FILES, "--space", "space.yaml", "--no-bench", "--max-drop", "20pt", "-o", "out")

TRAINS = """\
steps:
  - one-of: [none, {factorize.svd: {rank: {any-of: [4, 8]}, include: [first]}}]
  - one-of: [none, {distill.kd: {teacher: $model, epochs: {from: 1, to: 3}}, preview: skip}]
  - one-of: [{quantize.rtn: {bits: 8}}, {quantize.auto: {target-bits: {any-of: [3, 5]}}, preview: {preset: fast}}]
"""
DIES = """\
import os
from compresskit.search import trying
from compresskit.cli.main import main

measure, count = trying.Trying.measure, []

def dies(self, at):
    count.append(at)
    os._exit(9) if len(count) == 3 else None
    return measure(self, at)

trying.Trying.measure = dies
main()
"""
"""Ends as by SIGKILL in the middle of its third candidate."""


@pytest.fixture
def place(here: Path) -> Path:
    (here / "space.yaml").write_text(SPACE, encoding="utf-8")
    return here


def found(place: Path) -> Report:
    return read_report(place / "out")


def test_a_search_gives_a_model_that_passes_and_the_recipe_that_makes_its_bytes(place: Path, cli: Cli) -> None:
    done = cli(*ASKED, "--trials", 6)
    assert done.code == 0, done
    report = found(place)
    assert report.verdict is Verdict.PASS and report.search is not None
    search = report.search
    assert len(search.tried) == 6 and search.winner in search.front
    winner = search.tried[search.winner]
    assert winner.state == "kept" and winner.bytes == report.models[1].bytes
    # Without the speed, what is wanted is the smallest of those that pass.
    assert winner.bytes == min(one.bytes for one in search.tried if one.state == "kept" and one.bytes)
    assert "→" in done.out and "candidates tried" in done.out
    assert [f"candidate {one.number}: " in done.err for one in search.tried] == [True] * 6

    data = ("--data", "d.npz", "--eval-data", "d.npz")
    again = cli("run", "out/recipe.yaml", "m.pt", *ARCH, *data, "--no-bench", "--no-html", "--no-cache", "-o", "again")
    assert again.code == 0, again
    for name in ("model.onnx", "model.safetensors"):
        assert (place / "again" / name).read_bytes() == (place / "out" / name).read_bytes()


def test_several_picks_give_a_bundle_each(place: Path, cli: Cli) -> None:
    (place / "space.yaml").write_text(
        "steps: [one-of: [none, factorize.svd: {rank: 1, include: [first]}], one-of: [quantize.rtn: {bits: 4}]]",
        encoding="utf-8",
    )
    asked = [*ASKED, "--max-drop", "90pt", "--pick"]
    done = cli(*asked, "size,quality")
    assert done.code == 0, done
    reports = [read_report(place / name) for name in ("out", "out-quality")]
    for report in reports:
        search = report.search
        assert search is not None and len(search.tried) == 2
        assert report.models[1].bytes == search.tried[search.winner or 0].bytes
        # The figures are those by which the candidates were compared.
        judged = next(one for one in search.judged if one.number == search.winner)
        assert report.values("accuracy")[report.models[1].name].value == judged.value
    assert [report.search and report.search.pick for report in reports] == ["size", "quality"]
    assert (reports[0].models[1].bytes or 0) < (reports[1].models[1].bytes or 0)
    assert "--pick quality: candidate" in done.out and "out-quality" in done.out
    assert (again := cli(*asked, "knee,quality", "-o", "other")).code == 0, again
    both = read_report(place / "other")  # one candidate is both, or there are two bundles
    assert (place / "other-quality").exists() == (both.search is not None and both.search.pick == "knee")
    taken = cli(*asked, "size,quality")
    assert taken.code == 2 and "exists already" in taken.err


def test_what_promises_most_is_trained_and_then_ends_in_every_way_to_quantize(place: Path, cli: Cli) -> None:
    (place / "space.yaml").write_text(TRAINS, encoding="utf-8")
    done = cli(*ASKED, "--trials", 12)
    assert done.code == 0, done
    search = found(place).search
    assert search is not None
    by_rung = {rung: [one for one in search.tried if one.rung == rung] for rung in ("look", "brief", "whole")}
    assert not any(one.trained for one in by_rung["look"])
    # The first that is trained, briefly, is the original.
    assert [step for one in by_rung["brief"][:1] for step in one.steps] and len(by_rung["brief"][0].steps) == 1
    trained = [one for one in search.tried if one.rung in ("trained", "whole") and one.trained]
    assert {one.values["distill.kd.epochs"] for one in trained} <= {1, 2, 3}
    ends = {one.values["quantize"] for one in trained}
    assert ends == {"quantize.rtn", "quantize.auto"}
    assert "target-bits 3" in done.err and "target-bits 5" in done.err


def test_the_same_command_goes_on_where_the_search_was(place: Path, cli: Cli) -> None:
    assert cli(*ASKED, "--trials", 3).code == 0
    first = found(place).search
    assert first is not None
    done = cli(*ASKED, "--trials", 5, "--force")
    assert done.code == 0 and "resuming with 3 candidates" in done.err
    then = found(place).search
    assert then is not None and then.tried[:3] == first.tried and len(then.tried) == 5


def test_a_killed_search_keeps_what_it_finished(place: Path, warm_torch: Warm, cli: Cli) -> None:
    """The process ends, as by SIGKILL, in the middle of its third candidate."""
    assert warm_torch.run(("-c", DIES, *ASKED, "--trials", "6"), cwd=place).returncode == 9
    assert not (place / "out").exists()
    done = cli(*ASKED, "--trials", 6)
    assert done.code == 0, done
    assert "resuming with 2 candidates" in done.err
    search = found(place).search
    assert search is not None
    # The one that was cut off is tried again, under a number of its own.
    recipes = [json.dumps(one.values, sort_keys=True) for one in search.tried if one.state in ("kept", "missed")]
    assert len(recipes) == len(set(recipes))
    assert 2 not in [one.number for one in search.tried]
    assert search.tried[2].number > 2


def test_bars_that_nothing_can_keep_end_with_the_nearest(place: Path, cli: Cli) -> None:
    done = cli(*ASKED[:-4], "--max-size", "1kB", "-o", "out")
    assert done.code == 1, done
    report = found(place)
    assert report.verdict is Verdict.FAIL and report.search is not None
    smallest = min(one.bytes for one in report.search.tried if one.bytes)
    assert report.models[1].bytes == smallest
    assert any("no candidate meets the limits" in note and "`max_size`" in note for note in report.notes)


def test_what_would_be_tried_is_printed_and_read(place: Path, cli: Cli) -> None:
    done = cli(*FILES, "--dry-run")
    assert done.code == 0, done
    assert {"steps"} == set(yaml.safe_load(done.out))
    (place / "own.yaml").write_text(done.out, encoding="utf-8")
    again = cli(*FILES, "--dry-run", "--space", "own.yaml")
    assert again.out == done.out
    assert not (place / "m-compressed.study").exists()


def test_unlabelled_samples_choose_by_likeness(place: Path, cli: Cli) -> None:
    with np.load("d.npz") as kept:
        np.savez("plain.npz", x=kept["x"])
    words = ["plain.npz" if word == "d.npz" and at < 6 else word for at, word in enumerate(ASKED)]
    done = cli(*words, "--trials", 4)
    assert done.code == 0, done
    search = found(place).search
    assert search is not None and search.metric == "likeness"
    assert any("similarity" in note for note in search.notes)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--time", "soon"), 2, "--time is a number and a unit"),
        (("--minimize", "energy"), 2, "--minimize is one of"),
        (("--pick", "best"), 2, "--pick is one of"),
        (("--steps", "lora"), 2, "nothing of that kind"),
        (("--space", "nowhere.yaml"), 2, "nowhere.yaml"),
        (("--study", "d.npz"), 2, "holds no study"),
        (("--study", "nosuch://x"), 4, "doesn't answer"),
        (("--max-size", "small"), 2, "a size is a number"),
        (("--batch-axis", "state"), 2, "--batch-axis state: expected NAME=AXIS"),
    ],
)
def test_bad_input_is_refused_before_anything_is_tried(
    words: tuple[str, ...], code: int, said: str, place: Path, cli: Cli
) -> None:
    cli(*ASKED, *words).refused(code, said)
    assert not (place / "out").exists()


def test_data_are_needed(here: Path, cli: Cli) -> None:
    cli("compress", "m.pt", *ARCH, "--max-drop", "1pt").refused(2, "--eval-data")
    cli("compress", "m.pt", *ARCH).refused(2, "needs samples", "--data")


def test_a_study_of_another_search_is_refused(place: Path, cli: Cli) -> None:
    assert cli(*ASKED, "--trials", 1).code == 0
    cli(*ASKED[:-4], "--max-drop", "19pt", "-o", "other", "--study", "out.study").refused(2, "other bars")
    with np.load("d.npz") as kept:
        np.savez("d.npz", x=kept["x"] * 2, y=kept["y"])
    cli(*ASKED, "--force").refused(2, "other data")
    assert read_card(place / "out").history


def test_workers_join_a_search_and_no_candidate_is_lost_or_tried_twice(place: Path, warm_torch: Warm, cli: Cli) -> None:
    """The worker that began it dies in a candidate; two others go on, and one of them takes that candidate over."""
    died = warm_torch.run(("-c", DIES, *ASKED, "--time", "90s"), cwd=place)
    assert died.returncode == 9
    words = ("-m", "compresskit", "compress", "--join", "out.study", "--cache", "steps")
    logs = [place / f"{number}.log" for number in range(2)]
    with logs[0].open("w") as first, logs[1].open("w") as second:
        joined = [warm_torch.start(words, cwd=place, stderr=file) for file in (first, second)]
        assert [one.wait(120) for one in joined] == [0, 0], [log.read_text(encoding="utf-8") for log in logs]
    last = cli(*ASKED, "--time", "30s")
    assert last.code == 0, last
    search = found(place).search
    assert search is not None
    said = "\n".join([died.stderr, *(log.read_text(encoding="utf-8") for log in logs), last.err])
    told = [int(number) for number in re.findall(r"^candidate (\d+): ", said, re.MULTILINE)]
    assert sorted(told) == [one.number for one in search.tried]
    tried = [json.dumps(one.values, sort_keys=True) for one in search.tried]
    assert len(tried) == len(set(tried))
    # The third in the queue was cut off: another worker tried it, under a number of its own.
    assert 2 not in told
    assert {"factorize.svd": "none", "quantize": "quantize.rtn", "quantize.rtn.bits": 8} in [
        one.values for one in search.tried
    ]
