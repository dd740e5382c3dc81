"""Good recipes: what a file comes to."""

from __future__ import annotations

from pathlib import Path

import pytest

from compresskit.recipe.plan import Recipe
from compresskit.recipe.problems import RecipeError
from compresskit.recipe.reading import read_recipe
from compresskit.stage import MODEL

WHOLE = """\
description: One line.
model: models/m.th
arch: net.py:Net
arch-args: {depth: 20, keep_this_name: true}
input_shape: "1,3,32,32"
data: train.npz
eval_data: test.npz
normalize: imagenet
sequence: 64
metric: accuracy
steps:
  - prune.structured: {target-macs: 0.5, epochs: 15, lr: 1e-2}
    max-drop: 1pt
    rollback: true
  - distill.kd:
      teacher: $model
      epochs: 3
  - quantize.int8-static
checks: {max-drop: 1%, max_size: 20MB, min-speedup: 1.2}
device: cpu
threads: 2
seed: 7
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a project below it."""
    project = tmp_path / "project"
    (project / "models").mkdir(parents=True)
    for name in ("models/m.th", "train.npz", "test.npz", "net.py"):
        (project / name).touch()
    monkeypatch.chdir(tmp_path)
    return Path("project")


def write(folder: Path, text: str, name: str = "r.yaml") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def one(where: str | Path, **how: object) -> Recipe:
    (recipe,) = read_recipe(where, **how)  # type: ignore[arg-type]
    return recipe


def test_every_key_arrives(folder: Path) -> None:
    found = one(write(folder, WHOLE), allow_code=True, complete=True)
    assert (found.name, found.point, found.description) == ("r", {}, "One line.")
    assert found.model == str(folder / "models" / "m.th") and found.arch == f"{folder / 'net.py'}:Net"
    assert found.arch_args == {"depth": 20, "keep_this_name": True}
    assert (found.input_shape, found.sequence) == ((1, 3, 32, 32), 64)
    assert (found.data, found.eval_data) == (str(folder / "train.npz"), str(folder / "test.npz"))
    assert (found.normalize, found.metric, found.device) == ("imagenet", "accuracy", "cpu")
    assert (found.max_drop, found.max_size, found.min_speedup) == ("1%", "20MB", 1.2)
    assert (found.threads, found.seed) == (2, 7)


def test_steps_are_stages_with_what_they_may_cost(folder: Path) -> None:
    prune, distill, quantize = one(write(folder, WHOLE), allow_code=True).steps
    assert prune.stage.name() == "prune.structured" and prune.stage.lr == 0.01  # type: ignore[attr-defined]
    assert (prune.max_drop, prune.rollback, prune.line) == ("1pt", True, 12)
    assert distill.stage.teacher == MODEL and (distill.max_drop, distill.rollback) == (None, False)  # type: ignore[attr-defined]
    assert (quantize.stage.name(), quantize.line) == ("quantize.int8-static", 18)


def test_the_file_alone_needs_no_model(folder: Path) -> None:
    bare = write(folder, "steps: [quantize.int8-static]\nchecks: {max-drop: 1%, min-speedup: 1.5}\n")
    assert one(bare).model is None
    with pytest.raises(RecipeError) as found:
        read_recipe(bare, complete=True)
    said = [problem.text for problem in found.value.problems]
    assert any(text.startswith("model: must be given") for text in said)
    assert any("needs calibration data" in text for text in said)
    assert any("max-drop needs evaluation data" in text for text in said)


def test_the_command_line_completes_and_wins(folder: Path) -> None:
    file = write(folder, "data: train.npz\nsteps: [quantize.gptq]\nchecks: {max-drop: 1%}\n")
    given = {
        "model": "project/models/m.th", "arch": "project/net.py:Net", "eval-data": "project/test.npz",
        "checks.max-drop": "2pt", "seed": None,
    }  # fmt: skip
    found = one(file, overrides=given, sets=["steps.0.bits=3", "checks.max-drop=3%"], complete=True)
    assert (found.model, found.arch) == ("project/models/m.th", "project/net.py:Net")  # typed: from here, code allowed
    assert (found.data, found.max_drop, found.seed) == (str(folder / "train.npz"), "2pt", 0)
    assert found.steps[0].stage.bits == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("steps.0.exclude=[head, 'b*']", "exclude", ("head", "b*")),
        ("steps.0.group_size=64", "group_size", 64),
        ("steps.0.group-size=", "group_size", None),
        ("steps.0.symmetric=true", "symmetric", True),
    ],
)
def test_set_takes_yaml_values(folder: Path, text: str, name: str, value: object) -> None:
    found = one(write(folder, "steps: [quantize.gptq: {group-size: 32}]"), sets=[text])
    assert getattr(found.steps[0].stage, name) == value


def test_set_reaches_a_steps_own_keys_and_arch_args(folder: Path) -> None:
    file = write(folder, "arch: a.b:C\narch-args: {depth: 1}\nsteps: [quantize.rtn]")
    sets = ["steps.0.max-drop=1pt", "steps.0.rollback=true", "arch-args.some_name=3"]
    found = one(file, sets=sets, allow_code=True)
    assert (found.steps[0].max_drop, found.steps[0].rollback) == ("1pt", True)
    assert found.arch_args == {"depth": 1, "some_name": 3}


def test_a_matrix_is_every_combination(folder: Path) -> None:
    text = "steps: [quantize.gptq]\nmatrix: {steps.0.bits: [3, 4], seed: [0, 1, 2]}\n"
    found = read_recipe(write(folder, text))
    assert [r.point for r in found] == [
        {"steps.0.bits": bits, "seed": seed} for bits in (3, 4) for seed in (0, 1, 2)
    ]  # fmt: skip
    assert [(r.steps[0].stage.bits, r.seed) for r in found] == [  # type: ignore[attr-defined]
        (r.point["steps.0.bits"], r.point["seed"]) for r in found
    ]


def test_what_is_typed_takes_the_place_of_a_row_of_the_matrix(folder: Path) -> None:
    file = write(folder, "steps: [quantize.gptq]\nmatrix: {steps.0.bits: [3, 4], seed: [0, 1]}\n")
    found = read_recipe(file, sets=["steps.0.bits=8"])
    assert [(r.steps[0].stage.bits, r.point) for r in found] == [(8, {"seed": 0}), (8, {"seed": 1})]  # type: ignore[attr-defined]


def test_included_mappings_are_merged_and_steps_replaced(folder: Path) -> None:
    (folder / "parts").mkdir()
    (folder / "parts" / "inner.npz").touch()
    write(folder / "parts", "data: inner.npz\nchecks: {max_drop: 1%, max-size: 9MB}\nsteps: [quantize.rtn]\n", "a.yaml")
    write(folder, "include: parts/a.yaml\nchecks: {max-size: 8MB}\nseed: 3\n", "b.yaml")
    found = one(write(folder, "include: [b.yaml]\nsteps: [quantize.hqq]\nchecks: {max-drop: 2%}\n"))
    assert found.data == str(folder / "parts" / "inner.npz")  # from the file that names it
    assert (found.max_drop, found.max_size, found.seed) == ("2%", "8MB", 3)
    assert [step.stage.name() for step in found.steps] == ["quantize.hqq"]


def test_a_recipe_that_ships_can_be_included(folder: Path) -> None:
    found = one(write(folder, "include: edge-int8\nchecks: {max-drop: 3%}\n"))
    assert (found.name, found.max_drop, found.steps[0].stage.name()) == ("r", "3%", "quantize.int8-static")


def test_anchors_and_merge_keys(folder: Path) -> None:
    text = "matrix: {seed: &two [1, 2], threads: *two}\nsteps:\n  - quantize.rtn: &o {bits: 3}\n"
    text += "  - quantize.hqq: {<<: *o, symmetric: true}\n"
    first, *others = read_recipe(write(folder, text))
    assert len(others) == 3
    stage = first.steps[1].stage
    assert (stage.bits, stage.symmetric) == (3, True)  # type: ignore[attr-defined]


def test_adapters_beside_codes_may_be_the_end_but_no_middle(folder: Path) -> None:
    one(write(folder, "steps: [quantize.nf4, lora.lora]"))
    one(write(folder, "steps: [lora.lora: {merge: true}, quantize.gptq]"))
    with pytest.raises(RecipeError, match="a model with separate adapters"):
        read_recipe(write(folder, "steps: [lora.lora, quantize.gptq]"))


def test_an_absolute_path_stays(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "project" / "train.npz"
    assert one(write(folder, f"data: {data.as_posix()!r}\nsteps: [quantize.gptq]")).data == data.as_posix()
