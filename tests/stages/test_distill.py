"""distill as stages: what students learn, what is recorded, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compresskit import registry
from compresskit.data.opening import open_source
from compresskit.errors import InputError, UsageError
from compresskit.exporter.checked import export_checked
from compresskit.model import Card, InputSpec, Model
from compresskit.stage import Context
from compresskit.stages.distill_base import Distill

INPUTS = (InputSpec("x", "float32", ("batch", 6)),)
CLASSIFIERS = ("standardized", "kd", "dkd", "features", "layers")


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inside = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.inside(x))


class Net(nn.Module):
    def __init__(self, width: int = 16, depth: int = 2, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Linear(6, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(torch.relu(self.stem(x))))


def model(seed: int = 0, *, task: str = "classification", **shape: int) -> Model:
    torch.manual_seed(seed)
    return Model(Net(**shape).eval(), Card("torch", inputs=INPUTS, task=task), Path(f"net{seed}.pt"))


@pytest.fixture
def teacher(tmp_path: Path) -> Model:
    """Tells apart which of four directions is the largest; nothing that a small student can't learn."""
    found = model(7, width=32, depth=3)
    assert isinstance(found.body, nn.Module)
    with torch.no_grad():
        found.body.head.weight.mul_(6)
    torch.save(found.body.state_dict(), tmp_path / "teacher.pt")
    return replace(found, source=tmp_path / "teacher.pt")


@pytest.fixture
def context(tmp_path: Path, teacher: Model) -> Callable[..., Context]:
    def make(labels: Any = True, *, taught: bool = True, count: int = 512) -> Context:
        x = np.random.default_rng(0).normal(size=(count, 6)).astype(np.float32)
        arrays = {"x": x}
        if labels is not False:
            assert isinstance(teacher.body, nn.Module)
            right = teacher.body(torch.from_numpy(x)).argmax(1).numpy()
            arrays["y"] = right if labels is True else np.where(np.arange(count) < labels, right, -1)
        np.savez(tmp_path / "data.npz", **arrays)
        data = open_source(str(tmp_path / "data.npz"), inputs=INPUTS)
        return Context(tmp_path, data, teacher=copy.deepcopy(teacher) if taught else None)

    return make


def stage(method: str, **options: Any) -> Distill:
    found = registry.get(f"distill.{method}")(**{"teacher": "teacher.pt", "epochs": 12, "lr": 5e-3, **options})
    assert isinstance(found, Distill)
    return found


def agreement(student: Model, teacher: Model) -> float:
    x = torch.randn(400, 6, generator=torch.Generator().manual_seed(3))
    assert isinstance(student.body, nn.Module) and isinstance(teacher.body, nn.Module)
    with torch.no_grad():
        return float((student.body(x).argmax(1) == teacher.body(x).argmax(1)).float().mean())


@pytest.mark.parametrize("method", CLASSIFIERS)
def test_a_student_comes_to_say_what_its_teacher_says(
    method: str, context: Callable[..., Context], teacher: Model
) -> None:
    student = model()
    before = agreement(student, teacher)
    found = stage(method).run(student, context())
    assert agreement(found, teacher) > 0.85 > before
    applied = found.card.history[-1]
    assert applied.name == f"distill.{method}" and applied.options["teacher"] == "teacher.pt"
    assert applied.facts["teacher"]["model"].endswith("teacher.pt") and applied.facts["teacher"]["model"][0] != "/"
    assert len(applied.facts["teacher"]["sha256"]["teacher.pt"]) == 64
    assert [point["epoch"] for point in applied.facts["training"]["curve"]] == list(range(1, 13))
    assert isinstance(found.body, Net) and not found.body.training
    assert all(p.requires_grad for p in found.body.parameters())


@pytest.mark.parametrize("method", ["standardized", "kd", "features", "layers"])
def test_no_labels_are_needed(method: str, context: Callable[..., Context], teacher: Model) -> None:
    assert agreement(stage(method).run(model(), context(labels=False)), teacher) > 0.85


@pytest.mark.parametrize("method", ["standardized", "dkd"])
def test_a_few_labels_among_many_samples_are_used(method: str, context: Callable[..., Context], teacher: Model) -> None:
    found = stage(method).run(model(), context(labels=32))
    assert agreement(found, teacher) > 0.85
    assert "labels" in found.card.history[-1].facts["notes"][0]


@pytest.mark.parametrize("method", CLASSIFIERS)
def test_the_seed_decides(method: str, context: Callable[..., Context]) -> None:
    ctx = context()
    torch.manual_seed(99)  # whatever was drawn before
    first = stage(method, epochs=1).run(model(), ctx)
    other = stage(method, epochs=1).run(model(), context())
    third = stage(method, epochs=1).run(model(), replace(context(), seed=1))
    states = [m.body.state_dict() for m in (first, other, third) if isinstance(m.body, nn.Module)]
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))
    assert not torch.equal(states[0]["head.weight"], states[2]["head.weight"])


@pytest.mark.parametrize("labels", [False, True])
def test_standardized_logits_weigh_against_labels(labels: bool, context: Callable[..., Context]) -> None:
    """Ten times the weight at a tenth of the rate is the same training, unless labels have a part in it."""
    how = {"epochs": 2, "optimizer": "sgd", "clip": 0, "weight_decay": 0}
    light = stage("standardized", logits_weight=1, lr=1e-2, **how).run(model(), context(labels=labels))
    heavy = stage("standardized", logits_weight=10, lr=1e-3, **how).run(model(), context(labels=labels))
    assert isinstance(light.body, nn.Module) and isinstance(heavy.body, nn.Module)
    same = torch.allclose(light.body.state_dict()["head.weight"], heavy.body.state_dict()["head.weight"], atol=1e-5)
    assert same != labels


def test_an_onnx_file_teaches_as_its_module_does(
    context: Callable[..., Context], teacher: Model, tmp_path: Path
) -> None:
    assert isinstance(teacher.body, nn.Module)
    export_checked(teacher.body, (replace(INPUTS[0], name="x"),), tmp_path / "t.onnx")
    file = Model(tmp_path / "t.onnx", Card("onnx"), tmp_path / "t.onnx")
    by_module = stage("kd", epochs=2).run(model(), context())
    by_file = stage("kd", epochs=2).run(model(), replace(context(), teacher=file))
    assert isinstance(by_module.body, nn.Module) and isinstance(by_file.body, nn.Module)
    x = torch.randn(8, 6)
    assert torch.allclose(by_module.body(x), by_file.body(x), atol=1e-3)
    for method in ("features", "layers"):
        with pytest.raises(UsageError, match=r"looks into the teacher's layers, which .*t\.onnx"):
            stage(method).run(model(), replace(context(), teacher=file))


def test_a_teacher_may_call_its_input_otherwise(context: Callable[..., Context], teacher: Model) -> None:
    class Other(nn.Module):
        def __init__(self, inside: nn.Module) -> None:
            super().__init__()
            self.inside = inside

        def forward(self, image: Tensor) -> Tensor:
            return self.inside(image)

    assert isinstance(teacher.body, nn.Module)
    other = Model(Other(teacher.body), Card("torch", inputs=(replace(INPUTS[0], name="image"),)), teacher.source)
    found = stage("standardized").run(model(), replace(context(), teacher=other))
    assert agreement(found, teacher) > 0.85


def test_a_student_is_made_from_its_teacher(context: Callable[..., Context], teacher: Model) -> None:
    whole = copy.deepcopy(teacher)
    found = stage("layers", teacher=None, student_depth=2, epochs=4).run(teacher, context(taught=False))
    assert [applied.name for applied in found.card.history] == ["prune.depth", "distill.layers"]
    assert isinstance(found.body, Net) and len(found.body.blocks) == 2
    assert agreement(found, whole) > 0.9
    # Each block learns from the one that it was.
    kept = found.card.history[0].facts["stacks"]["blocks"]["kept"]
    pairs = {f"blocks.{index}": f"blocks.{leaf}" for index, leaf in enumerate(kept)}
    assert found.card.history[-1].facts["pairs"] == pairs
    with pytest.raises(UsageError, match=r"`student_depth` 3: .* has 3 blocks"):
        stage("kd", teacher=None, student_depth=3).run(model(depth=3), context(taught=False))


def test_a_student_may_be_narrower_than_its_teacher(context: Callable[..., Context], teacher: Model) -> None:
    whole = copy.deepcopy(teacher)
    found = stage("standardized", teacher=None, student_width=0.5, epochs=4).run(teacher, context(taught=False))
    assert [applied.name for applied in found.card.history] == ["prune.structured", "distill.standardized"]
    assert isinstance(found.body, Net) and found.body.stem.out_features == 16
    assert agreement(found, whole) > 0.85


def test_layers_are_paired_by_name_and_projected(context: Callable[..., Context]) -> None:
    found = stage("features", layer_pairs=("blocks=blocks", "stem=stem"), epochs=1).run(model(width=12), context())
    assert found.card.history[-1].facts["pairs"] == {"blocks": "blocks", "stem": "stem"}
    assert isinstance(found.body, Net) and found.body.stem.out_features == 12
    with pytest.raises(UsageError, match="no layer of the teacher matches 'nope'"):
        stage("layers", layer_pairs=("blocks=nope",)).run(model(), context())


@pytest.mark.parametrize("method", ["features", "layers"])
@pytest.mark.parametrize(("logits", "same"), [("kd", {}), ("standardized", {"logits_weight": 1.0, "clip": 0})])
def test_beside_layers_of_no_weight_logits_teach_as_by_themselves(
    method: str, logits: str, same: dict[str, Any], context: Callable[..., Context]
) -> None:
    options: dict[str, Any] = {"epochs": 2, "temperature": 3.0, "optimizer": "sgd"}
    beside = stage(method, logits=logits, layer_weight=1e-12, **options).run(model(), context())
    alone = stage(logits, **options, **same).run(model(), context())
    assert isinstance(beside.body, nn.Module) and isinstance(alone.body, nn.Module)
    for found, wanted in zip(beside.body.parameters(), alone.body.parameters(), strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)


def test_two_classes_are_taught_by_their_probabilities(context: Callable[..., Context]) -> None:
    two = model(7, classes=2, width=32)
    ctx = replace(context(labels=False), teacher=replace(two, source=context().teacher.source))  # type: ignore[union-attr]
    found = stage("standardized").run(model(classes=2), ctx)
    assert agreement(found, two) > 0.85
    assert any("two classes" in note for note in found.card.history[-1].facts["notes"])


def test_embeddings_are_taught_by_their_values(context: Callable[..., Context], teacher: Model) -> None:
    ctx = context(labels=False)
    student = model(task="embedding")
    found = stage("standardized", epochs=20).run(student, ctx)
    x = torch.randn(200, 6)
    assert isinstance(found.body, nn.Module) and isinstance(teacher.body, nn.Module)
    with torch.no_grad():
        cosine = nn.functional.cosine_similarity(found.body(x), teacher.body(x))
    assert float(cosine.mean()) > 0.9
    assert any("not class logits" in note for note in found.card.history[-1].facts["notes"])
    with pytest.raises(InputError, match="dkd is for classes"):
        stage("dkd").run(model(task="embedding"), context())


def test_what_is_missing_is_said_before_anything_runs(context: Callable[..., Context], tmp_path: Path) -> None:
    student = model()
    with pytest.raises(UsageError, match="needs training data"):
        stage("kd").choose(student, Context(tmp_path))
    with pytest.raises(UsageError, match=r"needs a teacher\n.*`student_depth`"):
        stage("kd", teacher=None).choose(student, context(taught=False))
    with pytest.raises(UsageError, match=r"dkd needs class labels, .*data\.npz has none"):
        stage("dkd").choose(student, context(labels=False))
    with pytest.raises(InputError, match=r"teacher\.pt gives \[4\] a sample, the student net0\.pt \[5\]"):
        stage("kd").choose(model(classes=5), context())
    with pytest.raises(InputError, match="gkd is for causal language models"):
        stage("gkd").run(student, context())


def test_labels_that_are_no_classes_are_refused(context: Callable[..., Context], tmp_path: Path) -> None:
    x = np.zeros((64, 6), np.float32)
    np.savez(tmp_path / "wrong.npz", x=x, y=np.full(64, 9))
    np.savez(tmp_path / "scores.npz", x=x, y=np.linspace(0, 1, 64))
    with pytest.raises(InputError, match="labels from 9 to 9 don't fit"):
        stage("kd").run(model(), replace(context(), data=open_source(str(tmp_path / "wrong.npz"), inputs=INPUTS)))
    with pytest.raises(UsageError, match="dkd needs class labels"):
        stage("dkd").run(model(), replace(context(), data=open_source(str(tmp_path / "scores.npz"), inputs=INPUTS)))


def test_paths_of_this_machine_stay_out_of_the_card(tmp_path: Path) -> None:
    made = stage("kd", teacher=str(tmp_path / "a" / "t.pt"), teacher_arch=f"{tmp_path}/net.py:Net")
    assert str(tmp_path) not in str(made.options())
    assert made.options()["teacher"] == "a/t.pt" and made.options()["teacher_arch"] == "net.py:Net"
    with pytest.raises(ValueError, match="a JSON object"):
        stage("kd", teacher_arch_args="[1]")
