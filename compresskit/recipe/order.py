"""Which stage may come after which, and what each needs: known before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from compresskit import registry
from compresskit.errors import CompressKitError, UsageError
from compresskit.recipe.limits import Limits
from compresskit.stage import Form, Stage

_WHAT = {"torch": "a module", "onnx": "an ONNX graph", "weights": "tensors without an architecture"}


@dataclass(frozen=True)
class Start:
    """What is known of a model before the first stage.

    Attributes:
        form: Of its body.
        name: For messages.
        done: Names of the stages that it went through, the last one last.
        adapters: Adapters lie beside its weights.
        folder: It is a folder.
    """

    form: Form
    name: str
    done: tuple[str, ...] = ()
    adapters: bool = False
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
        why = "remove `no_export`" if start.form != "weights" else "give `arch` FILE.py:NAME"
        what = "`eval_data`" if evaluated else "`min_speedup`"
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
    quantized = next((name for name in reversed(start.done) if _quantizes(name)), None)
    closing = next((known for name in reversed(start.done) if (known := _closing(name))), None)
    now = _Now(start, start.form, start.name, start.adapters, quantized, data, export, closing=closing)
    for place, stage in enumerate(stages):
        error = next((found for rule in _RULES if (found := rule(stage, now))), None)
        if error is not None:
            yield place, error
        now = now.after(stage)


@dataclass(frozen=True)
class _Now:
    """What is known of a model before a stage.

    Attributes:
        start: The model before the first stage.
        form: Of its body.
        name: For messages.
        adapters: Adapters lie beside its weights.
        quantized: Name of the stage that quantized it.
        data: There is calibration and training data.
        export: An ONNX file is to be written.
        here: It was quantized by one of the stages, not before.
        closing: Name of the last stage that only some others can follow, and theirs.
    """

    start: Start
    form: Form
    name: str
    adapters: bool
    quantized: str | None
    data: bool
    export: bool
    here: bool = False
    closing: tuple[str, tuple[str, ...]] | None = None

    def after(self, stage: Stage) -> _Now:
        now = replace(self, adapters=stage.leaves_adapters, closing=_closing(stage.name()) or self.closing)
        if stage.kind.quantizes:
            now = replace(now, quantized=stage.name(), here=True)
        if stage.gives != "same" and stage.gives != self.form:
            now = replace(now, form=stage.gives, name=f"what {stage.name()} gives")
        return now


def _quantizes(name: str) -> bool:
    """Whether a stage of a history quantizes; a plugin that isn't installed any more is not known to."""
    kind = registry.kind(name.partition(".")[0])
    return kind is not None and kind.quantizes


def _closing(name: str) -> tuple[str, tuple[str, ...]] | None:
    """A stage of a history with those that can follow it, where not all can."""
    try:
        able = registry.get(name).followed_by
    except CompressKitError:  # a plugin that isn't installed any more
        return None
    return None if able is None else (name, able)


def _twice_quantized(stage: Stage, now: _Now) -> UsageError | None:
    if not (stage.kind.quantizes and now.form == "onnx" and now.quantized):
        return None
    if now.here:
        text = f"{stage.name()} comes after {now.quantized}: a quantized model cannot be quantized again"
        return UsageError(text, "remove one of them")
    return UsageError(f"{now.start.name} went through {now.quantized} already", "start from the original again")


def _after_codes(stage: Stage, now: _Now) -> UsageError | None:
    if not (stage.kind.before_codes and now.here):
        return None
    return UsageError(f"{stage.name()} comes after quantize", f"{stage.kind.name} first, then quantize")


def _after_closing(stage: Stage, now: _Now) -> UsageError | None:
    if now.closing is None or stage.name() in now.closing[1]:
        return None
    name, able = now.closing
    text = f"{stage.name()} can't work on what {name} gives: {f'only {chr(44).join(able)}' if able else 'nothing'} can"
    first = f"{stage.kind.name} first, then {name.partition('.')[0]}"
    return UsageError(
        text, "make it the last step" if not able else "take one of these" if stage.kind.quantizes else first
    )


def _on_adapters(stage: Stage, now: _Now) -> UsageError | None:
    if not now.adapters or stage.takes_adapters:
        return None
    return UsageError(
        f"{stage.name()} cannot work on a model with separate adapters",
        "merge them first: compresskit lora merge MODEL -o MERGED (lora's own `merge` does it at once)",
    )


def _wrong_form(stage: Stage, now: _Now) -> UsageError | None:
    if now.form in stage.takes or (now.form == "torch" and "onnx" in stage.takes):
        return None
    able = [m for m in registry.methods(stage.kind.name) if now.form in registry.get(f"{stage.kind.name}.{m}").takes]
    buildable = now.name == now.start.name and (now.form == "weights" or (now.form == "onnx" and now.start.folder))
    hints = ["give `arch` FILE.py:NAME"] * buildable + [f"`method` {m} can" for m in able]
    return UsageError(f"{stage.name()} can't work on {_WHAT[now.form]}, which {now.name} is", ", or: ".join(hints))


def _without_data(stage: Stage, now: _Now) -> UsageError | None:
    wanted = stage.wanted_data
    if wanted is None or now.data:
        return None
    return UsageError(f"{stage.kind.name} `method` {stage.method} needs {wanted} data", "give `data`")


def _without_export(stage: Stage, now: _Now) -> UsageError | None:
    if stage.gives != "onnx" or now.export:
        return None
    return UsageError(f"{stage.name()} gives an ONNX file", "remove `no_export`")


_RULES = (_twice_quantized, _after_codes, _after_closing, _on_adapters, _wrong_form, _without_data, _without_export)
"""The first that a stage breaks is told."""
