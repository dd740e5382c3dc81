"""The options that all ways of distillation share, and what they do with them."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, field_validator

from compresskit.errors import InputError, UsageError
from compresskit.facts import Facts, Text
from compresskit.kinds import DISTILL
from compresskit.model import Model, portable
from compresskit.stage import Chosen, Context, Form, Progress, TeacherRef, Tunable, silent
from compresskit.stages.distill_student import kept_blocks, narrower, shallower
from compresskit.stages.training import TrainingOptions

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compresskit.ops.distill.teacher import Stand
    from compresskit.ops.shrinking import CalibrationData
    from compresskit.train.task import Loss, Task

_WEIGHTS = (".safetensors", ".bin", ".onnx")
_LOOK = 2
"""Samples that student and teacher are first tried on."""
_BATCH = 64
"""Samples at once, where a lesson is planned on some."""


@dataclass(frozen=True)
class Lesson:
    """What a way of distillation trains.

    Attributes:
        student: The module to be trained; holds the student, and what is trained beside it.
        teacher: Called as the student is.
        loss: Makes the loss from the task.
        facts: What was decided, as JSON.
        notes: The same for people.
        settle: Called once the student is trained: puts back what was changed for the lesson alone.
    """

    student: nn.Module
    teacher: nn.Module
    loss: Callable[[Task], Loss]
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    settle: Callable[[], None] = field(default=lambda: None)


@dataclass(frozen=True)
class Pupil:
    """A student before its lesson.

    Attributes:
        module: In eval mode.
        task: From its card.
        inputs: What it takes, by name.
        run: Calls a module on some samples as the student is called.
        output: What the student says of them.
        changing: The same sample is another one in each epoch.
        data: Takes so many samples of the data that it is to be trained on.
        transformer: A config of transformers tells its sizes.
        progress: Shows how far a long plan of the lesson is.
        origins: Its blocks, each with the name of the teacher's that it was made from; empty for another student.
    """

    module: nn.Module
    task: str
    inputs: tuple[str, ...]
    run: Callable[[nn.Module], Any]
    output: Tensor
    data: Callable[[int], CalibrationData]
    transformer: bool = False
    progress: Progress = field(default=silent)
    changing: bool = False
    origins: dict[str, str] = field(default_factory=dict)

    @property
    def classes(self) -> int:
        """How many classes the output tells apart; 0 where it is no class logits."""
        logits = self.task == "causal-lm" or (self.task not in ("embedding", "values") and self.output.dim() == 2)
        return self.output.shape[-1] if logits and self.output.shape[-1] > 1 else 0


@dataclass(frozen=True, kw_only=True)
class TeacherFacts:
    """A teacher as the card names it.

    Attributes:
        model: Its name.
        sha256: The hashes of its weights, by file.
    """

    model: Text
    sha256: Mapping[Text, Text]


@dataclass(frozen=True, kw_only=True)
class DistillFacts(Facts):
    """Of a student.

    Attributes:
        teacher: What it learnt from.
        pairs: Its layers that learnt from one of the teacher's, and which.
    """

    teacher: TeacherFacts
    pairs: Mapping[Text, Text] = field(default_factory=dict)


class Distill(TrainingOptions):
    """A way to train a student on what a teacher says."""

    kind: ClassVar = DISTILL
    takes: ClassVar[tuple[Form, ...]] = ("torch",)
    gives: ClassVar = "same"
    facts: ClassVar[type[DistillFacts]] = DistillFacts
    needs_no_replay: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("training", "teacher")
    rates: ClassVar[dict[str, float]] = {"sgd": 5e-2, "adamw": 3e-4, "muon": 2e-2}
    sees_layers: ClassVar[bool] = False
    """Whether the teacher must be a module whose layers can be looked into."""

    teacher: Annotated[
        str | None,
        Field(
            description="Teacher: any MODEL, also an .onnx file. (MODEL itself, with `student_depth` or "
            "`student_width`)",
            json_schema_extra={"format": "path"},
        ),
    ] = None
    teacher_arch: Annotated[
        str | None,
        Field(
            description="FILE.py:NAME of the class or function that builds the teacher. Its code is executed.",
            json_schema_extra={"format": "code"},
        ),
    ] = None
    teacher_arch_args: Annotated[str | None, Field(description="Keyword arguments of `teacher_arch` as JSON.")] = None
    teacher_key: Annotated[
        str | None,
        Field(description="Which state dict of the teacher's file to read, for example params_ema or ema.model."),
    ] = None
    student_depth: Annotated[
        int | None,
        Field(ge=1, description="Make the student from MODEL: keep this many of its most important blocks."),
        Tunable(2, 6),
    ] = None
    student_width: Annotated[
        float | None,
        Field(gt=0, lt=1, description="Make the student from MODEL: keep this fraction of its channels or heads."),
    ] = None
    epochs: Annotated[int, Field(ge=1, le=10_000, description="Training epochs."), Tunable(1, 16, log=True)] = 20
    batch_size: Annotated[int, Field(ge=1, description="Training batch size.")] = 64
    lr: Annotated[
        float | None,
        Field(gt=0, description="Learning rate, with cosine decay to zero. (sgd: 0.05, adamw: 3e-4, muon: 0.02)"),
    ] = None
    teacher_share: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Fraction of the loss that comes from the teacher, for samples with a label "
            "(label -1 means none).",
        ),
    ] = 0.9

    @field_validator("teacher_arch_args")
    @classmethod
    def _json_object(cls, value: str | None) -> str | None:
        try:
            if value is not None and not isinstance(json.loads(value), dict):
                raise ValueError
        except ValueError:
            raise ValueError("""a JSON object, for example '{"depth": 20}'""") from None
        return value

    @property
    def learns_from(self) -> TeacherRef | None:
        """The teacher that is named; None where the student is to be made from MODEL."""
        if self.teacher is None:
            return None
        args = json.loads(self.teacher_arch_args) if self.teacher_arch_args else None
        return TeacherRef(self.teacher, self.teacher_arch, args, self.teacher_key)

    def options(self) -> dict[str, Any]:
        """The options as JSON; paths as an artefact may hold them."""
        from compresskit.checkpoint.arch import portable_reference

        arch = None if self.teacher_arch is None else portable_reference(self.teacher_arch)
        return super().options() | {"teacher": self.teacher and portable(self.teacher), "teacher_arch": arch}

    def choose(self, model: Model, ctx: Context) -> Chosen:
        """This stage, once it is sure that teacher, student and data go together."""
        self._check(ctx)
        if ctx.teacher is not None:
            self._meet(model, ctx.teacher, ctx)
        return Chosen((self,))

    def run(self, model: Model, ctx: Context) -> Model:
        """Train a student in place, made from the given module first where that is asked for.

        Raises:
            UsageError: There is no teacher or no data, or options that don't fit.
            InputError: Teacher and student don't say the same things, the data don't fit, or training diverged.
        """
        import copy

        import torch

        self._check(ctx)
        teacher = ctx.teacher or replace(model, body=copy.deepcopy(model.body))
        origins: dict[str, str] = {}
        made: list[str] = []
        if self.student_depth is not None:
            model = shallower(model, self.student_depth, ctx)
            origins = kept_blocks(model) if ctx.teacher is None else {}
            made += model.card.history[-1].facts["notes"][:1]
        if self.student_width is not None:
            model = narrower(model, self.student_width, ctx)
            made += model.card.history[-1].facts["notes"][:1]
        pupil, stand = self._meet(model, teacher, ctx)
        torch.manual_seed(ctx.seed)  # a method may make layers that are trained beside the student
        lesson = self.lesson(replace(pupil, origins=origins), stand)
        facts = self.train(lesson.student, model.card, ctx, teacher=lesson.teacher, loss=lesson.loss)
        lesson.settle()
        facts |= lesson.facts | {"teacher": _about(teacher), "notes": made + facts["notes"] + lesson.notes}
        return self.recorded(model, facts)

    def _check(self, ctx: Context) -> None:
        """Refuse what can be known to be missing."""
        if ctx.data is None:
            raise UsageError(f"distill `method` {self.method} needs training data", "give `data` FILE")
        if ctx.teacher is None:
            self.check_options()

    def check_options(self) -> None:
        """Refuse to learn from nobody.

        Raises:
            UsageError: There is no teacher, and no student to be made from MODEL.
        """
        if self.teacher is None and self.student_depth is None and self.student_width is None:
            raise UsageError(
                "distill needs a teacher",
                "give `teacher` MODEL, or `student_depth` or `student_width` to make the student from MODEL",
            )

    @abstractmethod
    def lesson(self, pupil: Pupil, teacher: Stand) -> Lesson:
        """How the student learns.

        Args:
            pupil: The student.
            teacher: In its place; what it says has the student's form.

        Raises:
            InputError: The method doesn't suit these models.
            UsageError: Options that don't fit them.
        """

    def _meet(self, model: Model, teacher: Model, ctx: Context) -> tuple[Pupil, Stand]:
        """The student, and a teacher that says what it does."""
        import torch

        from compresskit.ops.calibration.trace import tensors_in
        from compresskit.ops.packed.modules import PackedLayer
        from compresskit.stages.batches import batches_of, forward_of

        if ctx.data is None or isinstance(model.body, Path):
            raise TypeError("data and a module are needed")
        if any(isinstance(layer, PackedLayer) for layer in model.body.modules()):
            raise UsageError(f"{model.source} is quantized: its codes can't be trained", "distill first, then quantize")
        inputs = batches_of(ctx.data, model.card.inputs, _LOOK, _LOOK)[0]
        stand = self._stand(model, teacher, list(inputs))
        run = partial(_called, forward_of(model.body, model.card.inputs), inputs)
        with torch.no_grad():
            found = next(tensors_in(run(model.body.eval())))
            try:
                wanted = next(tensors_in(run(stand)))
            except InputError as error:
                where = f"the teacher {teacher.source} can't read these data"
                raise InputError(f"{where}: {error.message}", error.hint) from error
        if found.shape != wanted.shape:
            raise InputError(
                f"the teacher {teacher.source} gives {list(wanted.shape[1:])} a sample, the student {model.source} "
                f"{list(found.shape[1:])}",
                "a teacher's classes or outputs must be those of the student",
            )
        changing = self._augment(ctx, next(iter(inputs.values()))) is not None
        targets = next(ctx.data.batches(_LOOK, _LOOK)).targets
        scored = model.card.task == "unknown" and targets is not None and targets.dtype.kind == "f"
        task = "values" if scored else model.card.task
        data, known = partial(_seen, model, ctx), model.card.arch.kind == "transformers"
        return Pupil(model.body, task, tuple(inputs), run, found, data, known, ctx.progress, changing), stand

    def _asked_once(self, pupil: Pupil, teacher: Stand) -> nn.Module:
        """The teacher, remembering what it said where the same samples come again.

        A training that goes on after a kill would begin without memory, and its last bits could differ.
        """
        from compresskit.ops.distill.teacher_cache import TeacherCache

        again = self.epochs > 1 and self.checkpoint is None and not pupil.changing and pupil.output.dim() == 2
        return TeacherCache(teacher) if again else teacher

    def _stand(self, model: Model, teacher: Model, names: list[str]) -> Stand:
        """The teacher in the student's place."""
        from compresskit.ops.distill.teacher import SessionTeacher, Stand, places_of
        from compresskit.runtimes import get
        from compresskit.stages.batches import forward_of

        if not isinstance(teacher.body, Path):
            own = [spec.name for spec in teacher.card.inputs] or names
            return Stand(teacher.body, forward_of(teacher.body, teacher.card.inputs), names, places_of(own, names))
        if self.sees_layers:
            raise UsageError(
                f"distill `method` {self.method} looks into the teacher's layers, which {teacher.source} doesn't show",
                "give the teacher as a module, or take `method` standardized",
            )
        session = get("onnxruntime").open(teacher.body)
        places = places_of([spec.name for spec in session.inputs], names)
        return Stand(SessionTeacher(session), lambda target, batch: target(**batch), names, places)


def _called(
    forward: Callable[[nn.Module, dict[str, Tensor]], Any], inputs: dict[str, Tensor], module: nn.Module
) -> Any:
    return forward(module, inputs)


def _seen(model: Model, ctx: Context, samples: int) -> CalibrationData:
    from compresskit.stages.batches import calibration_data

    return calibration_data(model, ctx, samples=samples, size=_BATCH, rows=_LOOK, by_length=False)


def _about(teacher: Model) -> dict[str, Any]:
    """What the card records of a teacher: its name, and the hashes of its weights."""
    from compresskit.checkpoint.bundle import sha256

    source = teacher.source
    inside = sorted(source.iterdir()) if source.is_dir() else [source]
    files = [path for path in inside if path.is_file() and (path == source or path.suffix in _WEIGHTS)]
    return {"model": portable(source), "sha256": {path.name: sha256(path) for path in files}}
