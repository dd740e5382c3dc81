"""``run``: steps that are kept, undone, repeated; ``cache`` and ``verify``. A killed run goes on to the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_material import ARCH, MEASURED, RECIPE, Cli, picture
from cli_material import RUN_RECIPE as RUN
from warm import Warm

from compresskit.checkpoint.bundle import read_card
from compresskit.errors import as_flags
from compresskit.report import Report, Verdict, read_report


@pytest.fixture
def recipe(here: Path) -> Path:
    """A recipe of three steps in the current folder."""
    path = here / "r.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(material: Path, warm_torch: Warm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ``recipe`` after a run; never written to."""
    place = tmp_path_factory.mktemp("finished") / "here"
    shutil.copytree(material, place)
    (place / "r.yaml").write_text(RECIPE, encoding="utf-8")
    done = warm_torch.run(("-m", "compresskit", *RUN, "--quiet"), cwd=place)
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture
def ran(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the recipe, what its run gave, and the steps that were kept."""
    place = tmp_path / "ran"
    shutil.copytree(finished, place)
    monkeypatch.chdir(place)
    return place


def report(place: str = "out") -> Report:
    return read_report(Path(place, "report.json"))


def scaled(source: str, target: str) -> None:
    """The same data, doubled."""
    with np.load(source) as kept:
        doubled = {"x": kept["x"] * 2, "y": kept["y"]}
    np.savez(target, **doubled)


def result(place: str = "out") -> dict[str, str]:
    """The bytes of a result: all but what was measured, and where."""
    return {name: what for name, what in picture(Path(place)).items() if name not in MEASURED}


@pytest.mark.usefixtures("recipe")
def test_a_recipe_runs_its_steps_and_judges_the_whole(cli: Cli) -> None:
    done = cli(*RUN)
    assert done.code == 0, done
    found = report()
    assert [step.name for step in found.steps] == ["prune.magnitude", "factorize.svd", "quantize.rtn"]
    assert [applied["name"] for applied in found.history] == [step.name for step in found.steps]
    assert all(step.state == "done" and step.metric == "accuracy" for step in found.steps)
    shipped = found.values("accuracy")
    first, last = (shipped[entry.name].value for entry in found.models)
    costs = [step.drop for step in found.steps if step.drop is not None]
    assert len(costs) == 3 and sum(costs) == pytest.approx(first - last), "the costs of the steps add up"
    assert found.steps[-1].bytes == found.models[-1].bytes == Path("out/model.onnx").stat().st_size
    assert "1. prune.magnitude" in done.out and "3. quantize.rtn" in done.out
    read_card(Path("out"), verify=True)


@pytest.mark.usefixtures("ran")
def test_finished_steps_are_not_computed_again(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from compresskit.stages.factorize_linear import FactorizeSvd
    from compresskit.stages.prune_magnitude import PruneMagnitude

    first = result()
    for stage in (PruneMagnitude, FactorizeSvd):
        monkeypatch.setattr(stage, "run", lambda *_: pytest.fail("computed again"))
    again = cli(*RUN, "--force", "--set", "steps.2.bits=4")
    assert again.code == 0, again
    assert [step.state for step in report().steps] == ["cached", "cached", "done"]
    assert result() != first
    assert cli(*RUN, "--force").code == 0
    assert [step.state for step in report().steps] == ["cached"] * 3
    assert result() == first


@pytest.mark.usefixtures("ran", "translated_anew")
def test_with_and_without_a_cache_the_bytes_are_the_same(cli: Cli) -> None:
    kept = result()
    assert cli("run", "r.yaml", *ARCH, "--no-bench", "--no-cache", "-o", "other").code == 0
    assert result("other") == kept


@pytest.mark.usefixtures("recipe")
def test_a_cached_run_is_timed_all_the_same(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from compresskit.runner import judging
    from compresskit.runner.timing import Speed

    timed: list[str] = []

    def speed(models: list[object], *_: object, **__: object) -> Speed:
        timed.append(str(models[-1]))
        return Speed()

    monkeypatch.setattr(judging, "speed", speed)
    words = [word for word in RUN if word != "--no-bench"]
    cli(*words)
    cli(*words, "--force")
    assert len(timed) == 2


@pytest.mark.parametrize("change", [
    ("--set", "seed=1"), ("--set", "threads=1"), ("--set", "steps.0.sparsity=0.2"), ("--data", "other.npz"),
    ("--arch", "other.py:Net"), "m.pt",
])  # fmt: skip
@pytest.mark.usefixtures("ran")
def test_whatever_a_step_depends_on_makes_it_another(cli: Cli, change: tuple[str, str] | str) -> None:
    if os.cpu_count() == 1 and change == ("--set", "threads=1"):
        pytest.skip("that is all cores")
    scaled("d.npz", "other.npz")
    Path("other.py").write_text(Path("net.py").read_text() + "\n# changed\n")
    if change == "m.pt":
        import torch

        state = torch.load("m.pt", weights_only=True)
        state["first.weight"][0, 0] += 1
        torch.save(state, "m.pt")
        change = ("--set", "seed=0")
    cli(*RUN, "--force", *change)
    assert report().steps[0].state == "done"


@pytest.mark.usefixtures("ran")
def test_a_damaged_step_is_computed_again(cli: Cli) -> None:
    first = result()
    entry = max(Path("steps").glob("*/model.safetensors"), key=lambda path: path.stat().st_mtime)
    entry.write_bytes(entry.read_bytes()[:-4] + b"\0\1\2\3")
    assert cli(*RUN, "--force").code == 0
    assert "done" in [step.state for step in report().steps]
    assert result() == first


def test_a_step_that_costs_too_much_is_undone(cli: Cli, recipe: Path) -> None:
    ruin = "  - prune.magnitude: {sparsity: 0.98}\n    max-drop: 2pt\n    rollback: true\n"
    recipe.write_text(RECIPE.replace("  - factorize", ruin + "  - factorize"), encoding="utf-8")
    done = cli(*RUN)
    assert done.code == 0, done
    assert [step.state for step in report().steps] == ["done", "undone", "done", "done"]
    assert "lost of 2pt allowed" in report().steps[1].reason and "undone" in done.err
    assert len(report().history) == 3
    bytes_ = result()
    recipe.write_text(RECIPE, encoding="utf-8")
    cli(*RUN, "--force")
    assert result() == bytes_, "as if the step weren't there"


TUNED = "  - lora.bottleneck: {epochs: 1}\n"
"""Makes a model larger, which alone it may."""
RUIN = "  - prune.magnitude: {sparsity: 0.98}\n    max-drop: 0.5pt\n    rollback: true\n"


@pytest.mark.parametrize("steps", [RUIN + TUNED, TUNED])
def test_the_gates_are_those_of_the_steps_that_were_not_undone(cli: Cli, recipe: Path, steps: str) -> None:
    """A model that was only tuned may be larger than the original, whatever was tried and undone before."""
    head = RECIPE.partition("steps:\n")[0]
    recipe.write_text(f"{head}steps:\n{steps}checks: {{max-drop: 100pt}}\n", encoding="utf-8")
    done = cli(*RUN)
    assert done.code == 0, done
    found = report()
    assert [applied["name"] for applied in found.history] == ["lora.bottleneck"]
    assert found.models[1].bytes > found.models[0].bytes
    assert "size" not in [gate.name for gate in found.gates]


def test_a_step_that_stays_keeps_the_gate_of_the_size(cli: Cli, recipe: Path) -> None:
    head = RECIPE.partition("steps:\n")[0]
    kept = RUIN.replace("0.5pt", "100pt")
    recipe.write_text(f"{head}steps:\n{kept}{TUNED}checks: {{max-drop: 100pt}}\n", encoding="utf-8")
    assert cli(*RUN).code == 1
    assert [gate.name for gate in report().gates if gate.passed is False] == ["size"]


def test_a_missed_limit_of_a_step_fails_the_whole(cli: Cli, recipe: Path) -> None:
    ruin = "  - prune.magnitude: {sparsity: 0.98}\n    max-drop: 0.5pt\n"
    text = RECIPE.replace("  - prune.magnitude: {sparsity: 0.1}\n", ruin).replace("20pt", "100pt")
    recipe.write_text(text, encoding="utf-8")
    done = cli(*RUN)
    assert done.code == 1, done
    assert report().verdict is Verdict.FAIL
    assert [gate.name for gate in report().gates if gate.passed is False] == ["step 1, prune.magnitude: accuracy drop"]


def test_where_every_step_is_undone_nothing_is_written(cli: Cli, recipe: Path) -> None:
    head, _, tail = RECIPE.partition("steps:\n")
    ruin = "  - prune.magnitude: {sparsity: 0.98}\n    max-drop: 0.5pt\n    rollback: true\n"
    recipe.write_text(f"{head}steps:\n{ruin}checks{tail.partition('checks')[2]}", encoding="utf-8")
    done = cli(*RUN)
    assert done.code == 1
    assert "every step was undone" in done.err
    assert not Path("out").exists()


@pytest.mark.parametrize(("limit", "code"), [("", 0), ("    max-drop: 1pt\n", 1)])
def test_a_step_whose_cost_is_not_known_stays_and_says_so(cli: Cli, recipe: Path, limit: str, code: int) -> None:
    """Without labels there is no metric: nothing proves that the step costs too much, or that it doesn't."""
    with np.load("d.npz") as kept:
        np.savez("unlabelled.npz", x=kept["x"])
    text = f"  - prune.magnitude: {{sparsity: 0.1}}\n    rollback: true\n{limit}"
    head = RECIPE.partition("steps:\n")[0]
    recipe.write_text(f"{head}steps:\n{text}", encoding="utf-8")
    done = cli(*RUN, "--eval-data", "unlabelled.npz")
    assert done.code == code, done
    (step,) = report().steps
    assert step.state == "done" and "no metric was measured" in step.reason
    assert as_flags(f"step 1: kept, {step.reason}") in done.err
    gates = {gate.name: gate.passed for gate in report().gates if gate.asked}
    assert gates == ({"step 1, prune.magnitude: quality drop": None} if limit else {})


def test_a_matrix_gives_a_folder_for_each_point(cli: Cli, recipe: Path) -> None:
    recipe.write_text(RECIPE + "matrix: {steps.2.bits: [4, 8]}\n", encoding="utf-8")
    done = cli(*RUN)
    assert done.code == 0, done
    assert sorted(path.name for path in Path("out").iterdir()) == ["bits=4", "bits=8", "report.html"]
    assert [step.state for step in report("out/bits=8").steps] == ["cached", "cached", "done"]
    four, eight = (report(f"out/bits={bits}").models[-1].bytes for bits in (4, 8))
    assert four < eight
    assert "bits=4" in done.out and "bits=8" in done.out


@pytest.mark.usefixtures("recipe")
def test_a_dry_run_writes_nothing(cli: Cli, here: Path) -> None:
    before = picture(here)
    done = cli(*RUN, "--dry-run")
    assert done.code == 0, done
    assert "factorize.svd" in done.out and "rank: 8" in done.out
    assert picture(here) == before


@pytest.mark.usefixtures("recipe")
def test_a_disk_without_room_is_told_before_anything_runs(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    before = picture(here)
    monkeypatch.setattr(shutil, "disk_usage", lambda _place: usage(10**6, 10**6, 1000))
    cli(*RUN).refused(4, "MB of disk", "--cache")
    assert picture(here) == before


@pytest.mark.parametrize("model", ["m.onnx", "m.pt"])
def test_graphs_and_bare_weights_go_through_recipes(cli: Cli, here: Path, model: str) -> None:
    step = "quantize.int8-static" if model == "m.onnx" else "quantize.rtn: {bits: 4}"
    data = "data: d.npz\neval-data: d.npz\n" if model == "m.onnx" else ""
    (here / "r.yaml").write_text(f"model: {model}\n{data}steps: [{step}]\nchecks: {{max-size: 1MB}}\n")
    words = ("run", "r.yaml", "--no-bench", "--cache", "steps", "-o", "out", "--force")
    assert cli(*words).code == 0
    first = result()
    assert cli(*words).code == 0
    assert result() == first
    assert report().steps[0].state == "cached"


@pytest.mark.usefixtures("ran", "translated_anew")
def test_a_repeated_run_is_the_same_or_says_what_differs(cli: Cli) -> None:
    done = cli("verify", "out", "--allow-code")
    assert done.code == 0, done
    assert "REPRODUCED" in done.out and "model.onnx" in done.out
    place = Path("out/provenance.json")
    found = json.loads(place.read_text())
    found["files"]["model.onnx"] = "0" * 64
    found["surroundings"]["packages"]["torch"] = "1.0.0"
    place.write_text(json.dumps(found))
    done = cli("verify", "out", "--allow-code")
    assert done.code == 1
    assert "DIFFERS" in done.out and "packages.torch: 1.0.0 then" in done.out


@pytest.mark.usefixtures("ran")
def test_verify_wants_the_same_inputs_and_runs_no_code_unasked(cli: Cli) -> None:
    cli("verify", "out").refused(2, "--allow-code")
    scaled("d.npz", "d.npz")
    cli("verify", "out", "--allow-code").refused(3, "data", "SHA-256")
    Path("d.npz").unlink()
    cli("verify", "out", "--allow-code").refused(2, "d.npz")
    cli("verify", "bundle").refused(3, "provenance.json")


@pytest.mark.usefixtures("ran")
def test_the_cache_is_listed_and_cleared(cli: Cli) -> None:
    listed = cli("cache", "ls", "--cache", "steps", "--json", "-")
    entries = json.loads(listed.out)
    assert sorted(name for entry in entries for name in entry["steps"]) == [
        "export", "factorize.svd", "prune.magnitude", "quantize.rtn",
    ]  # fmt: skip
    assert "quantize.rtn" in cli("cache", "ls", "--cache", "steps").out
    Path("steps/mine.txt").write_text("years of work")
    cli("cache", "clear", "--cache", "steps").refused(2, "mine.txt")
    Path("steps/mine.txt").unlink()
    assert cli("cache", "clear", "--cache", "steps").code == 0
    assert not Path("steps").exists()


@pytest.mark.usefixtures("recipe")
def test_steps_that_were_not_used_for_long_make_room(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESSKIT_CACHE_SIZE", "20kB")
    cli(*RUN)
    left = [path.name for path in Path("steps").iterdir() if path.name != "figures"]
    assert len(left) < 4, "four entries of more than 5 kB each"


@pytest.mark.usefixtures("recipe")
def test_an_output_that_would_hurt_is_refused_before_anything_runs(cli: Cli, here: Path) -> None:
    before = picture(here)
    cli("run", "r.yaml", *ARCH, "-o", "m.pt").refused(2, "m.pt")
    cli("run", "r.yaml", *ARCH, "-o", "bundle").refused(2, "bundle", "exists")
    cli("run", "r.yaml", *ARCH, "--cache", "out/steps", "-o", "out").refused(2, "steps")
    cli("run", "r.yaml", *ARCH, "--cache", "steps", "--no-cache", "-o", "out").refused(2, "--no-cache")
    assert picture(here) == before


@pytest.mark.skipif(os.name == "nt", reason="rights work otherwise there")
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.usefixtures("recipe")
def test_a_cache_that_may_not_be_written_to_is_told(cli: Cli) -> None:
    Path("steps").mkdir(mode=0o500)
    cli(*RUN).refused(4, "steps")


@pytest.mark.parametrize("seeds", [("7",), pytest.param(tuple("0123456789"), marks=pytest.mark.slow)])
def test_the_folder_and_the_hash_seed_leave_no_trace(finished: Path, recipe: Path, seeds: tuple[str, ...]) -> None:
    places = [recipe.parent, recipe.parent.parent / "elsewhere"]
    shutil.copytree(*places)
    words = [sys.executable, "-m", "compresskit", "run", "r.yaml", *ARCH, "--no-bench", "--no-cache", "--force"]
    for number, seed in enumerate(seeds):
        place, env = places[number % 2], {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([*words, "-o", "out"], cwd=place, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert result(str(place / "out")) == result(str(finished / "out")), (place, seed)
        for file in (place / "out").glob("*.json"):
            assert str(place) not in file.read_text()
