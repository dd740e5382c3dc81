"""A recipe that is killed, or can't write, at any moment: nothing half-written, the next run ends in the same bytes."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from pathlib import Path

import pytest
from cli_material import MEASURED, RECIPE, RUN_RECIPE, Cli, Job, picture
from warm import Warm

from compresskit.checkpoint.bundle import read_card

RUN = (*RUN_RECIPE, "--quiet")


@pytest.fixture
def recipe(here: Path) -> Path:
    (here / "r.yaml").write_text(RECIPE, encoding="utf-8")
    return here


def visible(place: Path) -> set[str]:
    return {path.name for path in place.iterdir()}


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize("kills", [2, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_a_killed_run_goes_on_to_the_same_bytes(job: Job, recipe: Path, kills: int) -> None:
    inputs = picture(recipe)
    told = job(RUN, recipe)
    assert told["code"] == 0 and told["events"] > 50, (recipe.parent / "log").read_text()
    whole = picture(recipe / "out")
    entries = visible(recipe / "steps")
    shutil.rmtree(recipe / "out")
    shutil.rmtree(recipe / "steps")
    moments = [1 + told["events"] * n // kills for n in range(kills)]
    fewer = 0
    for at in moments:
        assert job(RUN, recipe, at, signal.SIGKILL)["code"] == -9, (recipe.parent / "log").read_text()
        left = recipe / "out"
        assert not left.exists() or picture(left) == whole, "whole or not there"
        again = job((*RUN, "--force"), recipe)
        assert again["code"] == 0, (recipe.parent / "log").read_text()
        fewer += again["events"] < told["events"]
        same = {k: v for k, v in picture(recipe / "out").items() if k not in MEASURED}
        assert same.items() <= whole.items(), at
        assert visible(recipe / "steps") == entries, "no debris in the cache"
        shutil.rmtree(recipe / "out")
        assert picture(recipe) | inputs == picture(recipe), "inputs are as they were"
        debris = [n for n in visible(recipe) if n.startswith(".")]
        assert not debris, "the next run sweeps what a killed one left"
        shutil.rmtree(recipe / "steps")
    assert fewer > kills // 4, "finished steps were taken from the cache"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("at", [1, 9, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 39) if n != 9)])
def test_a_disk_that_fails_leaves_nothing_half_written(
    cli: Cli, recipe: Path, monkeypatch: pytest.MonkeyPatch, code: int, at: int
) -> None:
    before = picture(recipe)
    seen = [0]
    sync = os.fsync

    def failing(handle: int) -> None:
        seen[0] += 1
        if seen[0] == at:
            raise OSError(code, os.strerror(code))
        sync(handle)

    monkeypatch.setattr(os, "fsync", failing)
    done = cli(*RUN)
    if seen[0] < at:
        pytest.skip(f"the run writes {seen[0]} times")
    assert done.code == 4, done
    assert len(done.err.splitlines()) <= 2
    monkeypatch.setattr(os, "fsync", sync)
    after = picture(recipe)
    assert {name: what for name, what in after.items() if not name.startswith("steps")} == before
    for place in (recipe / "steps").iterdir() if (recipe / "steps").is_dir() else ():
        assert not place.name.startswith("."), "no debris"
        if place.name != "figures":
            read_card(place, verify=True)
    assert cli(*RUN).code == 0


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_what_is_in_place_is_whole_where_a_disk_does_not_confirm_it(
    cli: Cli, recipe: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """The sync of the folder, after the output was renamed into it, fails."""
    before, sync = picture(recipe), os.fsync

    def failing(handle: int) -> None:
        if (recipe / "out").exists():
            raise OSError(code, os.strerror(code))
        sync(handle)

    monkeypatch.setattr(os, "fsync", failing)
    assert cli(*RUN).code == 4
    monkeypatch.setattr(os, "fsync", sync)
    read_card(recipe / "out", verify=True)
    after = picture(recipe)
    assert {name: what for name, what in after.items() if not name.startswith(("steps", "out"))} == before
    assert cli(*RUN, "--force").code == 0


def test_two_runs_onto_one_output_are_one_whole_winner(warm_torch: Warm, recipe: Path) -> None:
    words = ("-m", "compresskit", *RUN)
    logs = [recipe.parent / name for name in "ab"]
    with logs[0].open("wb") as a, logs[1].open("wb") as b:
        both = [warm_torch.start(words, cwd=recipe, stderr=file) for file in (a, b)]
    found = [run.wait(240) for run in both]
    ends = [(log.read_text(), code) for log, code in zip(logs, found, strict=True)]
    codes = sorted(found)
    assert codes in ([0, 0], [0, 2]), ends
    assert all("exists already" in text for text, code in ends if code == 2), ends
    read_card(recipe / "out", verify=True)
    assert not [name for name in visible(recipe) if name.startswith(".")]
