"""A single command, the library's ``run`` and a recipe are one loop: the same bytes, limits and verdict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import compresskit
from compresskit.data.opening import open_source
from compresskit.errors import InputError, UsageError
from compresskit.recipe.plan import Recipe, Step
from compresskit.report import Report
from compresskit.runner.steps import InMemory

NET = """\
from torch import nn


class Net(nn.Sequential):
    def __init__(self, width: int = 32):
        super().__init__(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 4))
"""
STEPS = (
    ("prune.magnitude", {"sparsity": 0.2}),
    ("factorize.svd", {"rank": 8, "include": ("0",)}),
    ("quantize.rtn", {"bits": 8}),
)
FILES = ("model.onnx", "model.safetensors", "compresskit.json")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with net.py, a student m.pt, a wider teacher t.pt and data d.npz that the teacher knows."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    torch.manual_seed(0)
    for name, width in (("m.pt", 32), ("t.pt", 64)):
        net = torch.nn.Sequential(torch.nn.Linear(16, width), torch.nn.ReLU(), torch.nn.Linear(width, 4))
        torch.save(net.state_dict(), name)
    x = np.random.default_rng(0).normal(size=(128, 16)).astype(np.float32)
    np.savez("d.npz", input=x, y=net(torch.from_numpy(x)).argmax(1).numpy())
    return tmp_path


def recipe(*steps: Step, **more: object) -> Recipe:
    given = {"model": "m.pt", "arch": "net.py:Net", "input_shape": (1, 16), "data": "d.npz", "eval_data": "d.npz"}
    return Recipe("r", steps, **given | {"max_drop": "100pt"} | more)  # type: ignore[arg-type]


def by_recipe(found: Recipe) -> Report:
    return compresskit.run("m.pt", found, "recipe", bench=False)


def by_library(*stages: object) -> Report:
    model = compresskit.load("m.pt", arch="net.py:Net", input_shape=(1, 16))
    data = open_source("d.npz")
    return compresskit.run(
        model, stages, "library", data=data, eval_data=data, bench=False, max_drop="100pt"  # type: ignore[arg-type]
    )  # fmt: skip


def told(report: Report) -> tuple[object, ...]:
    gates = [(gate.name, gate.limit, gate.value, gate.passed) for gate in report.gates]
    measured = [(m.model, m.name, m.value) for m in report.measurements]
    return report.verdict, gates, measured, report.history, report.coverage


def test_the_library_and_a_recipe_mean_the_same(here: Path) -> None:
    stages = [compresskit.method(name, **options) for name, options in STEPS]
    recipes, library = by_recipe(recipe(*map(Step, stages))), by_library(*stages)
    assert told(replace_names(recipes)) == told(replace_names(library))
    for name in FILES:
        assert (here / "recipe" / name).read_bytes() == (here / "library" / name).read_bytes(), name
    assert len(recipes.steps) == 3 and not library.steps
    assert (here / "recipe" / "provenance.json").is_file() and not (here / "library" / "provenance.json").exists()


def replace_names(report: Report) -> Report:
    """The report, its model's name that of its folder no longer."""
    return Report.model_validate_json(report.to_json().replace('"recipe', '"out').replace('"library', '"out'))


@pytest.mark.parametrize("way", ["recipe", "library"])
def test_a_student_is_held_against_the_teacher_of_the_first_step(here: Path, way: str) -> None:
    options = {"teacher": "t.pt", "teacher_arch": "net.py:Net", "teacher_arch_args": '{"width": 64}', "epochs": 1}
    stages = [compresskit.method("distill.kd", **options), compresskit.method("quantize.rtn", bits=8)]
    report = by_recipe(recipe(*map(Step, stages))) if way == "recipe" else by_library(*stages)
    teacher, student = report.models
    assert (teacher.name, teacher.parameters, student.parameters) == ("t.pt", 64 * 21 + 4, 32 * 21 + 4)
    assert report.values("accuracy")["t.pt"].value == 100


@pytest.mark.parametrize(("reads", "state"), [(True, "done"), (False, "cached")])
def test_a_step_that_reads_the_limits_is_computed_anew_for_others(
    here: Path, monkeypatch: pytest.MonkeyPatch, reads: bool, state: str
) -> None:
    stage = compresskit.method("quantize.rtn", bits=8)
    monkeypatch.setattr(type(stage), "reads_limits", reads)
    for drop in ("100pt", "90pt"):
        report = compresskit.run("m.pt", recipe(Step(stage), max_drop=drop), f"out{drop}", bench=False, cache="kept")
    assert report.steps[0].state == state


def test_the_key_of_a_teacher_says_which_state_dict_teaches(here: Path) -> None:
    good = torch.load("t.pt")
    torch.save({"params": {name: torch.zeros_like(value) for name, value in good.items()}, "ema": good}, "two.pt")
    learns = {"teacher": "two.pt", "teacher_arch": "net.py:Net", "teacher_arch_args": '{"width": 64}', "epochs": 1}
    found = {}
    for key in ("params", "ema"):
        report = by_library(compresskit.method("distill.kd", **learns, teacher_key=key))
        found[key] = report.values("accuracy")["two.pt"].value
        (here / "library").rename(key)
    assert found["ema"] == 100 > found["params"]


@pytest.mark.parametrize("way", ["recipe", "library"])
def test_a_later_teacher_leaves_the_original_as_it_is(here: Path, way: str) -> None:
    learns = {"teacher": "t.pt", "teacher_arch": "net.py:Net", "teacher_arch_args": '{"width": 64}', "epochs": 1}
    stages = [compresskit.method("prune.magnitude", sparsity=0.2), compresskit.method("distill.kd", **learns)]
    report = by_recipe(recipe(*map(Step, stages))) if way == "recipe" else by_library(*stages)
    assert report.models[0].name == "m.pt"


@pytest.mark.parametrize("way", ["recipe", "library"])
def test_a_teacher_is_no_output(here: Path, way: str) -> None:
    compresskit.run("m.pt", recipe(Step(compresskit.method("quantize.rtn", bits=8))), way, bench=False)
    stages = [compresskit.method("distill.kd", teacher=way, epochs=1)]
    with pytest.raises(UsageError, match=way):
        if way == "recipe":
            compresskit.run("m.pt", recipe(*map(Step, stages)), way, bench=False, force=True)
        else:
            by_library(*stages)
    assert (here / way / "model.onnx").is_file()


def test_a_single_step_is_neither_exported_twice_nor_read_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compresskit.exporter import checked
    from compresskit.runner import cached_steps

    exported: list[str] = []

    def counted(real: Any) -> Any:
        def export(first: object, second: object, path: Path, *rest: object, **more: object) -> object:
            exported.append(f"{real.__name__} {path.name}")
            return real(first, second, path, *rest, **more)

        return export

    for name in ("export_checked", "export_kept_checked"):
        monkeypatch.setattr(checked, name, counted(getattr(checked, name)))
    monkeypatch.setattr(cached_steps, "read_model", lambda *_: pytest.fail("read from disk"))
    by_library(compresskit.method("prune.magnitude", sparsity=0.2))
    assert exported == ["export_checked original.onnx", "export_kept_checked model.onnx"], "one trace"
    exported.clear()
    (here / "library").rename("first")
    by_library(compresskit.method("quantize.int8-static"))
    assert exported == ["export_checked original.onnx"], (
        "a stage for ONNX takes the file that the original is measured by"
    )


@pytest.mark.parametrize("way", ["recipe", "library"])
def test_a_student_that_cannot_be_exported_is_refused_before_it_is_trained(
    here: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compresskit.stages.distill_base import Distill

    code = (
        NET + "\n    def forward(self, input):\n        return super().forward(-input if input.sum() > 0 else input)\n"
    )
    (here / "bad.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(Distill, "run", lambda *_: pytest.fail("it was trained"))
    learns = {"teacher": "t.pt", "teacher_arch": "net.py:Net", "teacher_arch_args": '{"width": 64}', "epochs": 1}
    stage = compresskit.method("distill.kd", **learns)
    with pytest.raises(InputError, match="can't be exported"):
        if way == "recipe":
            by_recipe(recipe(Step(stage), arch="bad.py:Net"))
        else:
            data = open_source("d.npz")
            model = compresskit.load("m.pt", arch="bad.py:Net", input_shape=(1, 16))
            compresskit.run(model, [stage], "library", data=data, eval_data=data, bench=False)


@pytest.mark.parametrize(("options", "given"), [({}, 8), ({"data": None}, 8), ({"data": None, "eval_data": None}, 0)])
def test_the_file_is_tried_on_the_users_data_first(here: Path, options: dict[str, object], given: int) -> None:
    limits = {"max_drop": None} if "eval_data" in options else {}
    report = by_recipe(recipe(Step(compresskit.method("quantize.rtn", bits=8)), **options, **limits))
    reasons = [gate.reason for gate in report.gates if gate.name == "ONNX parity"]
    assert len(reasons) == 1 and reasons[0].endswith(
        f"{32 + given} inputs, 8 from the data" if given else "seeded inputs"
    )


def test_what_a_stage_chooses_is_checked_like_what_was_planned(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    take = InMemory.take
    monkeypatch.setattr(InMemory, "take", lambda self, *a: seen.append(list((got := take(self, *a)).stages)) or got)
    by_library(compresskit.method("quantize.auto", bits=4, preset="fast"))
    assert seen == [["quantize.rtn"]]
    model = compresskit.load("m.pt", arch="net.py:Net", input_shape=(1, 16))
    with pytest.raises(UsageError, match="gives an ONNX file"):
        compresskit.run(
            model, [compresskit.method("quantize.auto", bits=8)], "no", data=open_source("d.npz"), export=False
        )  # fmt: skip


def test_every_job_is_whole(here: Path) -> None:
    """Nothing planned is nothing undone: the bundle of the model itself."""
    report = by_library()
    assert report.history == [] and (here / "library" / "model.onnx").is_file()
    assert replace(recipe(), name="other").steps == ()
