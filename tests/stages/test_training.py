"""The options of stages that train: what they do to a module, what is recorded, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from compresskit.cli.stages import make
from compresskit.data.opening import open_source
from compresskit.data.source import Source
from compresskit.errors import InputError, UsageError
from compresskit.kinds import Kind
from compresskit.model import Card, InputSpec, Model
from compresskit.stage import Context
from compresskit.stages.quantize_qat import QuantizeQat
from compresskit.stages.training import TrainingOptions
from compresskit.train.reading import Reading
from compresskit.train.task import Task

INPUTS = (InputSpec("x", "float32", ("batch", 3, 8, 8)),)
TEXT = (InputSpec("input_ids", "int64", ("batch", "sequence"), 20),)


class Train(TrainingOptions):
    """Trains, and nothing else."""

    kind: ClassVar = Kind(
        name="train", summary="Train.", changes_size=False, before_codes=False, only_tunes=True, quantizes=False
    )
    method: ClassVar[str] = "plain"
    takes: ClassVar = ("torch",)
    gives: ClassVar = "same"
    needs_no_replay: ClassVar[bool] = True

    epochs: int = 2

    def run(self, model: Model, ctx: Context) -> Model:
        raise NotImplementedError


def fresh() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(8, 4)).eval()


@pytest.fixture
def source(tmp_path: Path) -> Callable[..., Source]:
    """Images whose colour is their class."""

    def make_source(count: int = 256, labels: bool = True) -> Source:
        rng = np.random.default_rng(0)
        y = rng.integers(0, 4, count)
        x = rng.normal(size=(count, 3, 8, 8)).astype(np.float32)
        x += np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, -1, -1]], np.float32)[y][:, :, None, None]
        np.savez(tmp_path / "data.npz", x=x, **({"y": y} if labels else {}))
        return open_source(str(tmp_path / "data.npz"), inputs=INPUTS)

    return make_source


def train(options: dict[str, Any], data: Source | None, *, seed: int = 0, **how: Any) -> tuple[nn.Module, dict]:
    module = how.pop("module", None) or fresh()
    told: list[str] = how.pop("told", [])
    ctx = Context(Path(), data, seed, tell=told.append)
    stage = make(Train, options)
    assert isinstance(stage, Train)
    return module, stage.train(module, Card("torch", inputs=INPUTS), ctx, **how)


def state(module: nn.Module) -> list[bytes]:
    return [tensor.numpy().tobytes() for tensor in module.state_dict().values()]


def test_labels_are_learnt_and_the_report_is_told(source: Callable[..., Source]) -> None:
    module, facts = train({"epochs": 4, "batch_size": 32, "lr": 0.1, "held_out": 56}, source())
    told = facts["training"]
    assert told["samples"] == 200 and told["held_out"] == 56 and told["optimizer"] == "sgd" and told["lr"] == 0.1
    assert [set(point) for point in told["curve"]] == [{"epoch", "loss", "lr", "accuracy"}] * 4
    assert told["curve"][-1]["accuracy"] > 0.9 and told["curve"][-1]["loss"] < told["curve"][0]["loss"]
    assert told["data"] == "npz/data.npz" or (told["data"].endswith("data.npz") and len(told["sha256"]) == 64)
    assert facts["notes"][0].startswith("trained for 4 epochs on 200 samples") and "against labels" in facts["notes"][0]
    assert facts["notes"][1] == "56 more samples were held out for validation after each epoch"
    assert not module.training


def test_each_optimizer_has_a_rate_of_its_own(source: Callable[..., Source]) -> None:
    for kind, rate in (("sgd", 0.01), ("adamw", 1e-4), ("muon", 0.02)):
        deeper = nn.Sequential(*fresh()[:-1], nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
        _, facts = train({"epochs": 1, "optimizer": kind}, source(), module=deeper)
        assert (facts["training"]["optimizer"], facts["training"]["lr"]) == (kind, rate)
    with pytest.raises(InputError, match="between the first and the last layer"):
        train({"epochs": 1, "optimizer": "muon"}, source())


def test_a_teacher_is_learnt_from_without_labels(source: Callable[..., Source]) -> None:
    teacher, _ = train({"epochs": 4, "batch_size": 32, "lr": 0.1}, source())
    before = state(teacher)
    module, facts = train({"epochs": 6, "batch_size": 32, "lr": 0.1}, source(labels=False), teacher=teacher)
    assert "against the teacher's outputs" in facts["notes"][0] and state(teacher) == before
    x = torch.from_numpy(next(source().batches(256)).inputs["x"])
    with torch.no_grad():
        assert (module(x).argmax(1) == teacher(x).argmax(1)).float().mean() > 0.85
    _, both = train({}, source(), teacher=teacher)
    assert "against labels and the teacher's outputs" in both["notes"][0]


def test_scores_are_no_classes(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(64, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "scores.npz", x=x, y=x.mean((1, 2, 3)))
    scores = open_source(str(tmp_path / "scores.npz"), inputs=INPUTS)
    teacher = fresh()
    with torch.no_grad():
        teacher[-1].bias += 3.0  # a shift of all outputs, which a distance of classes wouldn't see
    module, facts = train({"epochs": 8, "batch_size": 16, "lr": 0.05}, scores, teacher=teacher)
    assert "against the teacher's outputs" in facts["notes"][0] and "labels were not used" in facts["notes"][-1]
    inputs = torch.from_numpy(x)
    with torch.no_grad():
        assert (module(inputs) - teacher(inputs)).abs().mean() < 1.0
    with pytest.raises(InputError, match="nothing to train on"):
        train({"epochs": 1}, scores)


def test_labels_that_are_all_unknown_are_not_counted(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(64, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "unknown.npz", x=x, y=np.full(64, -1))
    unknown = open_source(str(tmp_path / "unknown.npz"), inputs=INPUTS)
    _, facts = train({"epochs": 1, "held_out": 16}, unknown, teacher=fresh())
    assert "against the teacher's outputs" in facts["notes"][0]
    assert "held_out_loss" in facts["training"]["curve"][0]


def test_a_stage_brings_a_loss_of_its_own(source: Callable[..., Source]) -> None:
    seen: list[Task] = []

    def make_loss(task: Task) -> Callable[..., torch.Tensor]:
        seen.append(task)
        return lambda module, part: task.output(module, part).square().mean()

    _, facts = train({"lr": 0.05}, source(), loss=make_loss)
    assert seen[0].names == ["x"] and seen[0].labels == "classes"
    assert facts["training"]["curve"][-1]["loss"] < facts["training"]["curve"][0]["loss"]


def test_a_language_model_learns_from_its_text() -> None:
    class Texts:
        name, kind, labelled = "texts", "tokens", False

        def __len__(self) -> int:
            return 64

        def batches(self, size: int, limit: int | None = None):
            from compresskit.data.source import Batch

            ids = (np.arange(64)[:, None] + np.arange(6)) % 20  # each token follows from the one before
            for at in range(0, min(limit or 64, 64), size):
                yield Batch({"input_ids": ids[at : at + size].astype(np.int64)})

        def fingerprint(self) -> str:
            return "0" * 64

    torch.manual_seed(0)
    module = nn.Sequential(nn.Embedding(20, 16), nn.Linear(16, 20))
    stage = Train(epochs=30, batch_size=16, lr=0.05, held_out=8)
    facts = stage.train(module, Card("torch", task="causal-lm", inputs=TEXT), Context(Path(), Texts()))
    curve = facts["training"]["curve"]
    assert facts["training"]["optimizer"] == "adamw" and "the text's own tokens" in facts["notes"][0]
    assert curve[0]["loss"] > 1 and curve[-1]["loss"] < 0.1 and curve[-1]["held_out_loss"] < 0.1
    ids = torch.arange(20)
    assert (module(ids).argmax(1) == (ids + 1) % 20).float().mean() > 0.9


def test_data_too_large_for_memory_are_read_as_training_goes_on(
    source: Callable[..., Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    held, told = train({"held_out": 40}, source())
    whole = Reading.material
    monkeypatch.setattr(Reading, "material", lambda self: whole(self, 1000))
    read, told_again = train({"held_out": 40}, source())
    assert state(read) == state(held) and told == told_again


def test_zero_epochs_train_nothing(source: Callable[..., Source]) -> None:
    module, facts = train({"epochs": 0}, None)
    assert facts == {} and state(module) == state(fresh())


def test_the_seed_decides(source: Callable[..., Source]) -> None:
    first, again, other = (train({}, source(), seed=seed)[0] for seed in (0, 0, 1))
    assert state(first) == state(again) != state(other)


def test_patience_keeps_the_best_epoch_and_says_so(source: Callable[..., Source]) -> None:
    options = {"epochs": 40, "batch_size": 16, "lr": 0.3, "patience": 2, "held_out": 64}
    _, facts = train(options, source())
    told = facts["training"]
    assert told["kept_epoch"] == told["epochs"] - 2 < 38
    assert f"the weights are those of epoch {told['kept_epoch']}, the best on 64 held-out samples" in facts["notes"]


@pytest.mark.parametrize(
    ("count", "options", "held"),
    [
        (3000, {}, 0),
        (3000, {"patience": 1}, 150),
        (400, {"patience": 1}, 100),
        (10_000, {}, 500),
        (10_000, {"held_out": 0}, 0),
        (100_000, {}, 2000),
    ],
)
def test_samples_are_held_out_where_it_pays(count: int, options: dict, held: int) -> None:
    assert Train(**options)._held(count) == held
    assert QuantizeQat(**options)._held(count) == (held if options else 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"patience": 1, "held_out": 0}, "`held_out` 0 leaves none"),
        ({"patience": 1, "train_samples": 150}, "100 samples can't be held out of 150"),
        ({"augment": "crop", "train_samples": 64}, None),
    ],
)
def test_options_that_do_not_fit_the_data_are_refused(
    options: dict, said: str | None, source: Callable[..., Source]
) -> None:
    if said is None:
        assert "shifted" in " ".join(train(options, source())[1]["notes"])
        return
    with pytest.raises(UsageError, match=said):
        train(options, source())


def test_training_needs_data_and_something_to_learn(source: Callable[..., Source]) -> None:
    with pytest.raises(UsageError, match=r"training in train\.plain needs data"):
        train({}, None)
    with pytest.raises(InputError, match="nothing to train on"):
        train({}, source(labels=False))
    with pytest.raises(InputError, match="don't fit the model's output"):
        module = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
        Train().train(module, Card("torch", inputs=INPUTS), Context(Path(), source()))


def test_a_kept_state_is_told_of_and_changes_no_byte(source: Callable[..., Source], tmp_path: Path) -> None:
    plain, facts = train({}, source())
    folder, told = tmp_path / "kept", list[str]()
    for options in ({}, {}, {"lr": 0.05}):
        module, found = train({**options, "checkpoint": folder}, source(), told=told)
        assert (state(module) == state(plain)) == (options == {}) and (found == facts) == (options == {})
    assert told[0].startswith("resuming after epoch 2 of 2 from ") and len(told) == 2
    assert "keeps 1 training of other options, data or weights: this one starts from the beginning" in told[1]
    assert "checkpoint" not in Train(checkpoint=folder).options()


@pytest.mark.parametrize("options", [{"bits": 3}, {"bits": 8, "activations": 8}], ids=["weights", "int8"])
def test_qat_goes_on_after_a_kill(options: dict, source: Callable[..., Source], tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def run(folder: Path | None, dies: bool = False) -> Any:
        steps = 0

        def progress(what: str, _done: int, _total: int) -> None:
            nonlocal steps
            steps += what.startswith("training")
            if dies and steps == 12:  # in the second of three epochs
                raise Killed

        stage = QuantizeQat(epochs=3, batch_size=32, lr=0.05, checkpoint=folder, **options)
        work = Path(mkdtemp(dir=tmp_path))
        model = Model(copy.deepcopy(fresh()), Card("torch", inputs=INPUTS), Path("net.pt"))
        done = stage.run(model, Context(work, source(), progress=progress))
        body = done.body
        return body.read_bytes() if isinstance(body, Path) else state(body)

    whole = run(None)
    with pytest.raises(Killed):
        run(tmp_path / "kept", dies=True)
    assert len(list((tmp_path / "kept").iterdir())) == 1
    assert run(tmp_path / "kept") == whole
