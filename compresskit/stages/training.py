"""The options of stages that train, and how they become a training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from compresskit.errors import InputError, UsageError
from compresskit.model import Card, portable
from compresskit.stage import Context, Stage

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compresskit.train.augment import Augment
    from compresskit.train.loop import Fitted
    from compresskit.train.reading import Reading
    from compresskit.train.settings import Kind, Optimizing
    from compresskit.train.task import Loss, Task
    from compresskit.train.training_plan import TrainingPlan

_SMALL = 24
"""Pixels a side below which a picture is taken for something that must not be shifted or mirrored."""
_MANY = 10_000
"""Samples from which on some are held out to be measured, though nothing depends on it."""
_HELD, _LEAST_HELD, _MOST_HELD = 0.05, 100, 2000


class TrainingOptions(Stage):
    """Options of stages that train a module on `data`; a stage gives another default by declaring a field again."""

    learns_tokens: ClassVar[bool] = True
    """Whether a language model learns from the tokens of its data besides its teacher."""
    learns_scores: ClassVar[bool] = False
    """Whether the scores of sentence pairs are learnt; else their single texts are, from a teacher."""
    measures: ClassVar[bool] = True
    keeps_blocks: ClassVar[bool] = False  # then `checkpoint` is not for training alone
    """Whether samples are held out unasked where there are many."""

    rates: ClassVar[dict[str, float]] = {"sgd": 1e-2, "adamw": 1e-4, "muon": 2e-2}
    """Learning rates where none is given: for a model that has learnt already."""

    epochs: Annotated[int, Field(ge=0, le=10_000, description="Training epochs.")] = 0
    train_samples: Annotated[int | None, Field(ge=2, description="Number of training samples. (all)")] = None
    batch_size: Annotated[int, Field(ge=1, description="Training batch size.")] = 128
    accumulate: Annotated[
        int,
        Field(
            ge=1,
            description="Gradient accumulation: batches per optimizer step. Saves memory at a large effective batch.",
        ),
    ] = 1
    optimizer: Annotated[
        Literal["sgd", "adamw", "muon"] | None,
        Field(
            description="Optimizer of training. muon may learn more in few epochs. (sgd with convolutions, else adamw)"
        ),
    ] = None
    lr: Annotated[
        float | None,
        Field(gt=0, description="Learning rate, with cosine decay to zero. (sgd: 0.01, adamw: 1e-4, muon: 0.02)"),
    ] = None
    warmup: Annotated[
        float, Field(ge=0, lt=1, description="Fraction of the steps for the linear warm-up of the learning rate.")
    ] = 0.0
    weight_decay: Annotated[float, Field(ge=0, description="Weight decay (L2 penalty).")] = 1e-4
    clip: Annotated[
        float, Field(ge=0, description="Gradient clipping: maximum norm of the gradient; 0 turns it off.")
    ] = 0.0
    ema: Annotated[
        float, Field(ge=0, lt=1, description="Decay of the exponential moving average of the weights; 0 turns it off.")
    ] = 0.0
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Field(
            description="Precision of forward passes in training; weights keep their type. auto: bfloat16 on GPUs, "
            "else float32."
        ),
    ] = "auto"
    patience: Annotated[
        int,
        Field(
            ge=0,
            description="Early stopping: epochs without improvement on held-out samples. The best epoch is kept. 0 "
            "trains all epochs and keeps the last.",
        ),
    ] = 0
    held_out: Annotated[
        int | None,
        Field(
            ge=0,
            description="Number of validation samples, held out of `data`. (5 %, 100 to 2000, with `patience`; "
            "prune and distill also from 10,000 samples on; else 0)",
        ),
    ] = None
    augment: Annotated[
        Literal["auto", "none", "crop", "crop-flip"],
        Field(description="Image augmentation. auto: crop-flip for colour images of 24 pixels or more, else none."),
    ] = "auto"
    teacher_share: Annotated[
        float, Field(ge=0, le=1, description="Fraction of the loss that comes from the teacher, for data with labels.")
    ] = 0.5
    temperature: Annotated[float, Field(gt=0, description="Temperature of the teacher's logits.")] = 2.0
    dropout: Annotated[
        bool | None,
        Field(description="Keep dropout on in training. (off without labels)"),
    ] = None
    recalibrate: Annotated[bool, Field(description="Re-estimate the statistics of batch normalization at the end.")] = (
        False
    )
    checkpoint: Annotated[
        Path | None,
        Field(
            exclude=True,  # where a state lay decides nothing
            json_schema_extra={"format": "output-path"},
            description="Folder for the training state after each epoch. The same command resumes from it.",
        ),
    ] = None

    @property
    def trains(self) -> bool:
        """Whether there is an epoch of training."""
        return self.epochs > 0

    @model_validator(mode="after")
    def _nothing_idle(self) -> TrainingOptions:
        own = type(self).model_fields
        besides = ("epochs", "checkpoint") if self.keeps_blocks else ("epochs",)
        idle = [n for n in TrainingOptions.model_fields if n not in besides and getattr(self, n) != own[n].default]
        if idle and not self.epochs:
            raise UsageError(f"`{idle[0]}` is for training, and `epochs` is 0", "give `epochs` N")
        return self

    def train(
        self,
        module: nn.Module,
        card: Card,
        ctx: Context,
        *,
        teacher: nn.Module | None = None,
        loss: Callable[[Task], Loss] | None = None,
        after_step: Callable[[], None] | None = None,
    ) -> dict[str, Any]:
        """Train a module in place on the context's data, as the options say.

        Args:
            module: Left in eval mode, on the CPU.
            card: Of the model: what goes in, and its task.
            ctx: With data.
            teacher: What to learn from besides labels; the uncompressed model, or another. Not changed.
            loss: Makes the loss from the task, which knows what is in a batch; by default
                :meth:`~compresskit.train.task.Task.loss`, against labels and the teacher as far as there are any.
            after_step: Called when parameters have moved: to put back what has to stay as it is.

        Returns:
            Facts to merge into those of the stage: ``training`` with the curve, and ``notes``; empty for 0 epochs.

        Raises:
            UsageError: There is no data.
            InputError: The data don't fit, there is nothing to learn from, or training diverged.
        """
        from compresskit.train.processes import Team, on_device

        if not self.epochs:
            return {}
        plan = self.training_plan(module, card, ctx, teacher)
        task = plan.task
        if loss is None and teacher is None and task.labels is None:
            raise InputError("there is nothing to train on: the data has no labels", "give labelled `data`")
        if teacher is not None:
            teacher.eval()
        with on_device(Team().device, module, teacher):
            chosen = partial(task.loss, teacher) if loss is None else loss(task)
            fitted = plan.fit(module, chosen, after_step)
        labels = {
            "classes": ["labels"], "tokens": ["the text's own tokens"], "scores": ["the scores of pairs"], None: []
        }[task.labels]  # fmt: skip
        taught = ["the teacher's outputs"] if teacher is not None else []
        aim = " and ".join([*(labels if not taught or self.teacher_share < 1 else []), *taught])
        notes = self.notes(plan, fitted, ctx, aim)
        if ctx.data is not None and ctx.data.labelled and task.labels is None:
            notes.append(f"no sample of {portable(ctx.data.name)} has a class as its label: labels were not used")
        return {"training": self.told(plan, fitted, ctx), "notes": notes}

    def training_plan(
        self, module: nn.Module, card: Card, ctx: Context, teacher: nn.Module | None = None
    ) -> TrainingPlan:
        """The samples, the aim and the length of a training.

        Raises:
            UsageError: There is no data, or too little to hold some out.
            InputError: The data don't fit.
        """
        from compresskit.train.reading import Reading
        from compresskit.train.settings import Training
        from compresskit.train.training_plan import TrainingPlan

        if ctx.data is None:
            raise UsageError(f"training in {self.name()} needs data", "give `data`")
        count = min(self.train_samples or len(ctx.data), len(ctx.data))
        classified = ctx.data.labelled and ctx.data.kind != "pairs" and card.task in ("classification", "unknown")
        reading = Reading(ctx.data, card.inputs, count, labelled=classified, seed=ctx.seed, scored=self.learns_scores)
        samples = reading.material()
        task = self._task(reading, module, card, teacher)
        task.check(module.eval(), next(samples.plain(2, 2)), reading.labels)
        held = self._held(len(samples))
        rest, apart = samples.split(held, ctx.seed) if held else (samples, None)
        learns = task.labels is not None and (teacher is None or self.teacher_share < 1)
        how = Training(
            self.epochs, self.batch_size, self._optimizing(module), self.accumulate, self.clip, self.precision,
            self.ema, self.patience, learns if self.dropout is None else self.dropout, self.recalibrate,
            ctx.seed,
        )  # fmt: skip
        return TrainingPlan(
            rest, task, how, apart, self._augment(ctx, next(samples.plain(1, 1))[0]), self.checkpoint,
            self._origin(ctx, teacher), ctx.progress, ctx.tell,
        )  # fmt: skip

    def _task(self, reading: Reading, module: nn.Module, card: Card, teacher: nn.Module | None) -> Task:
        """What training aims at, as the samples and the model allow."""
        from compresskit.stages.batches import forward_of
        from compresskit.train.task import Task

        calls = {id(known): forward_of(known, card.inputs) for known in (module, teacher) if known is not None}
        language = card.task == "causal-lm" and "input_ids" in reading.names and self.learns_tokens
        classes = reading.classes and (reading.labels is None or bool((reading.labels >= 0).any()))
        return Task(
            reading.names,
            lambda target, batch: calls.get(id(target), calls[id(module)])(target, batch),
            "scores" if reading.scored else "classes" if classes else "tokens" if language else None,
            reading.classes or card.task in ("classification", "causal-lm"),
            self.teacher_share,
            self.temperature,
            _reach(reading.labels) if reading.scored else (0.0, 1.0),
        )

    def told(self, plan: TrainingPlan, fitted: Fitted, ctx: Context) -> dict[str, Any]:
        """What the report says of a training: on what, how, and the curve."""
        if ctx.data is None:
            raise TypeError("data are needed")
        about = {"data": portable(ctx.data.name), "sha256": ctx.data.fingerprint()}
        return {**about, **plan.facts(fitted)}

    def notes(self, plan: TrainingPlan, fitted: Fitted, ctx: Context, aim: str) -> list[str]:
        """The same for people.

        Args:
            plan: What was settled.
            fitted: The result of training.
            ctx: With the data.
            aim: What was learnt from: ``labels and the model's own outputs``.
        """
        count = len(fitted.curve)
        epochs = f"{count} epoch{'s' if count > 1 else ''}"
        name = portable(ctx.data.name) if ctx.data is not None else "nothing"
        found = [f"trained for {epochs} on {len(plan.samples)} samples of {name}, against {aim}"]
        held = 0 if plan.held is None else len(plan.held)
        if self.patience:
            found.append(f"the weights are those of epoch {fitted.kept}, the best on {held} held-out samples")
        elif held:
            found.append(f"{held} more samples were held out for validation after each epoch")
        if plan.augment is not None:
            flipped = "" if self.augment == "crop" else " and flipped"
            found.append(
                f"training images were shifted by up to an eighth{flipped} at random: `augment` none leaves them"
            )
        return found

    def _held(self, count: int) -> int:
        """How many of ``count`` samples are held out."""
        if self.held_out is None and not self.patience and (count < _MANY or not self.measures):
            return 0
        held = min(max(int(_HELD * count), _LEAST_HELD), _MOST_HELD) if self.held_out is None else self.held_out
        if self.patience and not held:
            raise UsageError("`patience` needs samples to measure on, and `held_out` 0 leaves none")
        if held > count // 2:
            raise UsageError(
                f"{held} samples can't be held out of {count}: at most half of them", "give more `data`, or `held_out`"
            )
        return held

    def _optimizing(self, module: nn.Module) -> Optimizing:
        from torch import nn

        convolves = any(isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) for layer in module.modules())
        return self.moving("sgd" if convolves else "adamw", self.rates)

    def moving(self, kind: Kind, rates: Mapping[str, float]) -> Optimizing:
        """How parameters move.

        Args:
            kind: The optimizer where the options name none.
            rates: By optimizer the learning rate where the options give none.
        """
        from compresskit.train.settings import Optimizing

        kind = self.optimizer or kind
        return Optimizing(self.lr or rates[kind], kind, "cosine", self.warmup, self.weight_decay)

    def check_training_data(self, ctx: Context) -> None:
        """Refuse to train without data.

        Raises:
            UsageError: There are epochs, and no data.
        """
        if self.epochs and ctx.data is None:
            raise UsageError("`epochs` needs training data", "give `data` FILE")

    def _augment(self, ctx: Context, image: Tensor) -> Augment | None:
        from compresskit.train.augment import crop_and_flip

        if self.augment == "none":
            return None
        if self.augment == "auto":
            photos = ctx.data is not None and ctx.data.kind == "images" and image.dim() == 4 and image.shape[1] == 3
            if not photos or min(image.shape[2:]) < _SMALL:
                return None
        elif image.dim() != 4:
            raise UsageError(f"`augment` {self.augment} is for images, the samples are {tuple(image.shape[1:])}")
        return partial(crop_and_flip, margin=max(1, image.shape[2] // 8), flip=self.augment != "crop")

    def _origin(self, ctx: Context, teacher: nn.Module | None) -> dict[str, Any]:
        """What decides the result of a training besides the module's weights; empty where no state is kept."""
        from compresskit.train.processes import Team
        from compresskit.train.state import key_of

        if self.checkpoint is None or ctx.data is None:
            return {}
        team = Team()
        taught = key_of({}, teacher) if teacher is not None else ""
        return {
            "stage": self.name(),
            "options": self.options(),
            "data": ctx.data.fingerprint(),
            "teacher": taught,
            "seed": ctx.seed,
            "device": team.device.type,
            "processes": team.size,
        }


def _reach(scores: Tensor | None) -> tuple[float, float]:
    """The least and the greatest score, which stand for cosines of 0 and 1.

    Raises:
        InputError: All scores are one, or they aren't in memory.
    """
    if scores is None:
        raise InputError("scored pairs of more than a gigabyte can't be trained on", "give fewer: `train_samples`")
    low, high = (float(value) for value in scores.aminmax())
    if not low < high:
        raise InputError(f"every pair has the score {low:g}: there is nothing to learn", "give pairs of several scores")
    return low, high
