"""Which stage may come after which, and what each needs: known before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from compresskit.errors import UsageError
from compresskit.recipe.limits import Limits
from compresskit.registry import get, methods
from compresskit.stage import Form, Stage

_MERGE = "lora.merge"
_BEFORE_CODES = ("factorize", "prune", "distill")
"""Stages that change float weights: codes can't be cut, split or trained by them."""
_WHAT = {"torch": "a module", "onnx": "an ONNX graph", "weights": "tensors without an architecture"}


@dataclass(frozen=True)
class Start:
    """What is known of a model before the first stage.

    Attributes:
        form: Of its body.
        name: For messages.
        done: Names of the stages that it went through, the last one last.
        beside: Adapters lie beside its weights.
        folder: It is a folder.
    """

    form: Form
    name: str
    done: tuple[str, ...] = ()
    beside: bool = False
    folder: bool = False


def check_measured(start: Start, limits: Limits, *, evaluated: bool, benched: bool = True, export: bool = True) -> None:
    """Refuse limits and data that nothing can be measured for.

    Args:
        start: The model.
        limits: What was asked for.
        evaluated: There is evaluation data.
        benched: The speed is to be measured.
        export: An ONNX file is to be written.

    Raises:
        UsageError: Says which.
    """
    runs = export and start.form != "weights"
    if not runs and (evaluated or limits.min_speedup is not None):
        why = "leave --no-export away" if start.form != "weights" else "give --arch FILE.py:NAME"
        what = "--eval-data" if evaluated else "--min-speedup"
        raise UsageError(f"{what} needs a model that runs, and no ONNX file is written here", why)
    limits.check(evaluated=runs and evaluated, benched=runs and benched)


def misfits(
    start: Start, stages: Sequence[Stage], *, data: bool, export: bool = True
) -> Iterator[tuple[int, UsageError]]:
    """What can't come where it stands, each with its place among the stages.

    Args:
        start: The model.
        stages: In order.
        data: There is calibration and training data.
        export: An ONNX file is to be written.
    """
    if start.form == "weights" and start.done:
        yield 0, UsageError(f"{start.name} went through {start.done[-1]} already", "start from the original again")
        return
    now, origin, beside = start.form, start.name, start.beside
    quantized = next((name for name in reversed(start.done) if name.startswith("quantize.")), None)
    here = ""  # the step that quantized, where it is one of these
    for place, stage in enumerate(stages):
        name = stage.name()
        if stage.stage == "quantize" and now == "onnx" and quantized:
            where = f"{name} comes after {here}: what is quantized can't be again" if here else (
                f"{start.name} went through {quantized} already"
            )  # fmt: skip
            yield place, UsageError(where, "leave one of them away" if here else "start from the original again")
        elif stage.stage in _BEFORE_CODES and here:
            yield place, UsageError(f"{name} comes after quantize", f"{stage.stage} first, then quantize")
        elif beside and name != _MERGE:
            yield (
                place,
                UsageError(
                    f"{name} can't work on adapters that lie beside the weights: they merge before",
                    "merge them first: compresskit lora merge MODEL -o MERGED (lora's own --merge does it at once)",
                ),
            )
        elif not (now in stage.takes or (now == "torch" and "onnx" in stage.takes)):
            buildable = now == "weights" or (now == "onnx" and start.folder)
            yield place, _unable(stage, now, origin, buildable=buildable and origin == start.name)
        elif (wanted := wanted_data(stage)) and not data:
            yield place, UsageError(f"{stage.stage} --method {stage.method} needs {wanted} data", "give --data")
        elif stage.gives == "onnx" and not export:
            yield place, UsageError(f"{name} gives an ONNX file", "leave --no-export away")
        beside = stage.beside
        if stage.stage == "quantize":
            quantized = here = name
        if stage.gives != "same" and stage.gives != now:
            now, origin = stage.gives, f"what {name} gives"


def wanted_data(stage: Stage) -> str | None:
    """Which data a stage can't do without: ``training``, ``calibration`` or none."""
    if "training" in stage.needs or getattr(stage, "epochs", 0) > 0:
        return "training"
    return "calibration" if "calibration" in stage.needs else None


def _unable(stage: Stage, now: Form, origin: str, *, buildable: bool) -> UsageError:
    able = [m for m in methods(stage.stage) if now in get(f"{stage.stage}.{m}").takes]
    hints = ["give --arch FILE.py:NAME"] * buildable + [f"--method {m} can" for m in able]
    return UsageError(f"{stage.name()} can't work on {_WHAT[now]}, which {origin} is", ", or: ".join(hints))
