"""What a recipe says, once it was read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from compresskit.checkpoint.arch import portable_reference
from compresskit.model import portable
from compresskit.stage import Stage


@dataclass(frozen=True)
class Step:
    """One step: a stage and what it may cost.

    Attributes:
        stage: With its options.
        max_drop: Loss of quality against the model before this step that it may cost, as ``0.5pt`` or ``1%``.
        rollback: Undo the step where it costs more, or more than the recipe's own ``max-drop`` where it has no limit
            of its own; without it a missed limit of the step is a failed gate.
        line: Of the recipe file; 0 where there is none.
    """

    stage: Stage
    max_drop: str | None = None
    rollback: bool = False
    line: int = 0


def axes_document(axes: Mapping[str, int | None] | None) -> dict[str, int | Literal["none"]] | None:
    """``batch-axis`` as a recipe writes it: ``none`` for an input that all samples share; None without any axis."""
    return {name: "none" if at is None else at for name, at in (axes or {}).items()} or None


@dataclass(frozen=True)
class Recipe:
    """A pipeline, ready to run. Paths are as the command line would take them.

    Attributes:
        name: The file's name without its suffix.
        point: The values of the matrix that this recipe stands for, by their dotted keys; empty without a matrix.
        description: One line for ``recipe ls``.
        model: MODEL; None must be given when it is run.
        arch: ``FILE.py:NAME`` or ``package.module:NAME``.
        arch_args: Keyword arguments of ``arch``.
        input_shape: Shape of the model's input; the first axis is the batch axis.
        batch_axis: Where samples lie in the inputs of an ONNX file; ``none`` for what they share.
        key: Which of the state dicts in MODEL's file.
        allow_nonfinite: Accept NaN and Inf in the weights.
        data: Calibration and training data.
        hold_out: Share of ``data`` that no step gets.
        eval_data: Evaluation data for the verdict.
        normalize: ``MEAN/STD`` or ``imagenet``.
        sequence: Most tokens of a text sample.
        metric: Name or ``FILE.py:NAME``.
        steps: In order.
        max_drop: Of the whole, against the original.
        max_size: ``20MB``.
        min_speedup: 1.2 is 20 % faster.
        device: To measure on.
        threads: Threads per operator; 0 uses all cores.
        seed: Random seed.
    """

    name: str
    steps: tuple[Step, ...]
    point: dict[str, Any] = field(default_factory=dict)
    description: str = ""
    model: str | None = None
    arch: str | None = None
    arch_args: dict[str, Any] = field(default_factory=dict)
    input_shape: tuple[int, ...] | None = None
    batch_axis: dict[str, int | Literal["none"]] | None = None
    key: str | None = None
    allow_nonfinite: bool = False
    data: str | None = None
    hold_out: float | None = None
    eval_data: str | None = None
    normalize: str | None = None
    sequence: int = 128
    metric: str | None = None
    max_drop: str | None = None
    max_size: str | None = None
    min_speedup: float | None = None
    device: str = "cpu"
    threads: int = 0
    seed: int = 0

    def document(self) -> dict[str, Any]:
        """The mapping of a recipe file that says the same; absolute paths are cut, so that it fits any machine."""
        steps = [_step(step) for step in self.steps]
        checks = {"max-drop": self.max_drop, "max-size": self.max_size, "min-speedup": self.min_speedup}
        found: dict[str, Any] = {
            "description": self.description or None,
            "model": _cut(self.model),
            "arch": self.arch and portable_reference(self.arch),
            "arch-args": self.arch_args or None,
            "input-shape": list(self.input_shape) if self.input_shape else None,
            "batch-axis": self.batch_axis,
            "key": self.key,
            "allow-nonfinite": self.allow_nonfinite or None,
            "data": _cut(self.data),
            "hold-out": self.hold_out,
            "eval-data": _cut(self.eval_data),
            "normalize": self.normalize,
            "sequence": self.sequence,
            "metric": _cut(self.metric),
            "steps": steps,
            "checks": {name: value for name, value in checks.items() if value is not None} or None,
            "device": self.device,
            "threads": self.threads,
            "seed": self.seed,
        }
        return {name: value for name, value in found.items() if value is not None}


def _cut(word: str | None) -> str | None:
    return None if word is None else portable(word)


def _step(step: Step) -> dict[str, Any]:
    given = step.stage.options()
    options = {name.replace("_", "-"): given[name] for name in step.stage.model_fields_set if name in given}
    found: dict[str, Any] = {step.stage.name(): options}
    if step.max_drop is not None:
        found["max-drop"] = step.max_drop
    if step.rollback:
        found["rollback"] = True
    return found
