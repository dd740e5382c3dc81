"""Models compared as they are: evaluate, bench and compare."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskit.benchmark import target as targets
from compresskit.benchmark.sweep import Point
from compresskit.errors import InputError, UsageError
from compresskit.model import Applied, Model, portable
from compresskit.report import Measurement, Report
from compresskit.runner.candidate import Candidate
from compresskit.runner.int8_saturation import int8_arithmetic_on
from compresskit.runner.judging import Measuring, Ready, ReportBuilder
from compresskit.runner.layers import layers_of
from compresskit.runner.prepare import counted, to_onnx, with_inputs
from compresskit.runner.promises import may_slow, promises_size, promises_speed
from compresskit.runner.recommend import able, everywhere, recommendation
from compresskit.runner.timing import Timing
from compresskit.runtimes import runs_modules
from compresskit.stage import Progress, silent

if TYPE_CHECKING:
    from compresskit.data.source import Source

_STOPPED = "interrupted: the figures cover what was measured before that"
Reader = Callable[[Path, str], Model]
Opener = Callable[[Model], "Source | None"]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM while models were timed; ``report`` tells what was measured by then, ``code`` how to exit."""

    def __init__(self, report: Report, code: int) -> None:
        super().__init__()
        self.report, self.code = report, code


@dataclass(frozen=True)
class Comparison:
    """How models are compared.

    Attributes:
        judged: Hold the models to the limits; without it there are no gates.
        evaluated: Measure quality; needs data, or a second model.
        runtimes: Each model is measured under each; ``auto`` alone is every one that is installed and opens the model.
        timing: What is timed; None is one sample a call.
        loader_args: Arguments of ``load``, for runtimes that read the model again.
    """

    judged: bool
    evaluated: bool = True
    runtimes: Sequence[str] = ("onnxruntime",)
    timing: Timing | None = None
    loader_args: dict[str, Any] = field(default_factory=dict)

    @property
    def automatic(self) -> bool:
        """The runtimes are found out."""
        return list(self.runtimes) == ["auto"]


def check_comparison(models: int, measuring: Measuring, how: Comparison, *, evaluated: bool) -> None:
    """Refuse options that don't fit each other, before anything is read.

    Args:
        models: How many are compared.
        measuring: All of it but the data.
        how: What is compared.
        evaluated: Whether there is evaluation data.

    Raises:
        UsageError: Names one.
    """
    target, limits = measuring.target, measuring.limits
    if int8_arithmetic_on(target) != "native" and list(how.runtimes) != ["onnxruntime"]:
        raise UsageError(f"`target` {target} can be emulated for onnxruntime only", "remove `runtime`")
    if measuring.metric is not None and not evaluated:
        raise UsageError("`metric` needs data", "give `data`")
    limits.check(evaluated=evaluated, benched=measuring.bench, data_option="`data`")
    if how.timing is not None and how.timing.sampled and len({point.sequence for point in how.timing.where}) > 1:
        raise UsageError("samples of `data` have lengths of their own", "give one `sequence`: texts are cut there")
    if limits.min_speedup is not None and models * len(how.runtimes) < 2 and not how.automatic:
        raise UsageError("`min_speedup` needs a second model to compare with the first")


def compare(
    paths: Sequence[Path],
    read: Reader,
    open_data: Opener,
    measuring: Measuring,
    how: Comparison,
    *,
    command: str = "",
    progress: Progress = silent,
) -> Report:
    """Measure models and compare each with the first.

    Args:
        paths: The models, the baseline first.
        read: Gives the model at a path, for a runtime.
        open_data: Gives the data that suits the first model, or None.
        measuring: Metric, limits, bench, threads, device and seed; its ``source`` isn't used.
        how: What is compared.
        command: How the user asked for this.
        progress: Called from time to time as ``progress(what, done, total)``.

    Returns:
        A report; where nothing was judged it has no gates and its verdict is UNVERIFIED, or INCONCLUSIVE where noise
        hides which model is faster.

    Raises:
        CompressKitError: A model can't be read, exported or run.
        Interrupted: Ctrl-C or SIGTERM, when something had been timed.
    """
    timing = how.timing or Timing([measuring.point])
    with tempfile.TemporaryDirectory(prefix="compresskit-") as folder:
        opened = _Opened(Path(folder), read, open_data, measuring, how, progress)
        opened.add_all(paths)
        if how.automatic:
            opened.leave_out_unable(timing.fitting(paths)[0].where[0])
        models = opened.models
        builder = ReportBuilder(models, measuring, progress)
        if how.evaluated:
            _evaluate(builder, opened.source)
        if measuring.bench:
            builder.measure_speed(paths, timing, samples=opened.source, keep=True)
        timed = builder.timed
        report = builder.report(
            builder.gates() if how.judged else None,
            history=opened.history,
            notes=[
                *([_STOPPED] if timed.stopped else []),
                *(recommendation(models, timed.measurements) if how.automatic else []),
                *opened.left_out,
                *opened.notes,
            ],
            last_notes=_elsewhere(measuring.target, timed.measurements),
            command=command,
            layers=[layer for model in models for layer in layers_of(model.name, model.path)] if how.judged else [],
        )
    if timed.stopped:
        raise Interrupted(report, timed.stopped)
    return report


@dataclass
class _Opened:
    """The models of a comparison, read and exported one after the other.

    Attributes:
        folder: For what is exported.
        models: Each under each runtime, those of the baseline first.
        source: The data, or None.
        history: What was done to the last model.
        left_out: A note on each runtime that was left out.
        notes: What a reader must know of the models' files.
    """

    folder: Path
    read: Reader
    open_data: Opener
    measuring: Measuring
    how: Comparison
    progress: Progress
    models: list[Candidate] = field(default_factory=list)
    source: Source | None = None
    history: Sequence[Applied] = ()
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _first: Sequence[Applied] = ()

    def add_all(self, paths: Sequence[Path]) -> None:
        """Open all models under all runtimes."""
        runtimes = self.how.runtimes
        if self.how.automatic:
            runtimes, self.left_out = everywhere()
        for name, path in zip(_names(paths), paths, strict=True):
            for runtime in runtimes:
                try:
                    self._add(path, name if len(runtimes) == 1 else f"{name} ({runtime})", runtime)
                except (InputError, UsageError) as error:
                    # torch alone needs to know how to build a module
                    if not self.how.automatic or not runs_modules(runtime):
                        raise
                    self.left_out.append(f"{runtime} can't run {name}: {error.message}")

    def _add(self, path: Path, label: str, runtime: str) -> None:
        model = self.read(path, runtime)
        if not self.models:
            self.source = self.open_data(model)
        model = with_inputs(model, self.source)
        modules = runs_modules(runtime)
        if modules and isinstance(model.body, Path):
            raise UsageError(f"{model.source} does not say how to build the module", "give `arch` FILE.py:NAME")
        file, counts = self.folder / f"{len(self.models)}.onnx", counted(model)
        shipped = None
        if not modules:
            shipped = to_onnx(model, file, data=self.source, seed=self.measuring.seed, progress=self.progress)
            self.notes += shipped.doubts
        more: dict[str, Any] = {"runtime": runtime, **({"loader_args": self.how.loader_args} if modules else {})}
        if not self.models:
            self._first = model.card.history
        more["promises_speed"] = promises_speed(model.card.history, self._first)
        more["may_slow"] = may_slow(model.card.history, self._first)
        more["promises_size"] = promises_size(model.card.history, self._first)
        ready = Ready(model, shipped, counts, model.source)
        self.models.append(ready.candidate(label, portable(model.source), self.measuring, **more))
        self.history = model.card.history
        self.notes += [note for note in model.notes if note not in self.notes]

    def leave_out_unable(self, point: Point) -> None:
        """Keep those that their runtime runs at a point."""
        self.models, refused = able(self.models, batch=point.batch, sequence=point.sequence)
        self.left_out += refused


def _evaluate(builder: ReportBuilder, source: Source | None) -> None:
    """Measure quality where there is something to measure it on, or against."""
    alone = len(builder.models) == 1
    if source is not None or not alone:
        builder.measure_quality(source)
    if alone and (builder.measured is None or builder.measured.metric is None):
        raise UsageError("no metric can be computed for this model on this data", "give `metric`, or other `data`")
    if (target := builder.measuring.target) is not None and not builder.int8_notes:
        builder.int8_notes = [f"`target` {target} changes nothing: only the products of int8 files depend on it"]


def _elsewhere(target: str | None, timed: list[Measurement]) -> list[str]:
    """What is to be said of speed when the quality is another CPU's."""
    there, here = targets.get(target), targets.here()
    return (
        [f"the speed was measured on this machine ({here.title}), not on {there.title}"]
        if timed and there != here
        else []
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """A short name for each model, made unique: the file's name, with its folder, or a count."""
    names = [path.name or str(path) for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            names[index] = f"{name} #{seen[name]}"
    return names
