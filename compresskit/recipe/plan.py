"""What a recipe says, once it was read and checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from compresskit.stage import Stage

MODEL = "$model"
"""In an option of a step that names a model: the recipe's own model, as it was before the first step."""


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


@dataclass(frozen=True)
class Recipe:
    """A pipeline, ready to run. Paths are as the command line would take them.

    Attributes:
        name: The file's name without its suffix.
        point: The values of the matrix that this recipe stands for, by their dotted keys; empty without a matrix.
        description: One line for ``recipe ls``.
        model: MODEL; None must be given when it is run.
        arch: ``FILE.py:NAME`` or ``package.module:NAME``.
        arch_args: Its keyword arguments.
        input_shape: Batch first.
        allow_nonfinite: Accept NaN and infinities among the weights.
        data: Calibration and training data.
        eval_data: What the verdict is measured on.
        normalize: ``MEAN/STD`` or ``imagenet``.
        sequence: Most tokens of a text sample.
        metric: Name or ``FILE.py:NAME``.
        steps: In order.
        max_drop: Of the whole, against the original.
        max_size: ``20MB``.
        min_speedup: 1.2 is 20 % faster.
        device: To measure on.
        threads: Of one operator; 0 is all cores.
        seed: Of every random choice.
    """

    name: str
    steps: tuple[Step, ...]
    point: dict[str, Any] = field(default_factory=dict)
    description: str = ""
    model: str | None = None
    arch: str | None = None
    arch_args: dict[str, Any] = field(default_factory=dict)
    input_shape: tuple[int, ...] | None = None
    allow_nonfinite: bool = False
    data: str | None = None
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
