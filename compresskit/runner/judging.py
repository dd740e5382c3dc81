"""The result compared with the original: measured, judged and reported."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from compresskit.benchmark.machine import environment
from compresskit.benchmark.run import unclear
from compresskit.benchmark.sweep import Point
from compresskit.data.source import notes_of
from compresskit.kinds import Kind
from compresskit.model import Applied, Model, portable
from compresskit.recipe.limits import Limits
from compresskit.report import Evaluation, Gate, Measurement, Report, StepEntry, Verdict, judge
from compresskit.runner.candidate import Candidate
from compresskit.runner.coverage import bytes_left, coverage
from compresskit.runner.gates import AS_FAST, gates
from compresskit.runner.int8_saturation import int8_arithmetic_on, saturation_notes
from compresskit.runner.layers import layers_of
from compresskit.runner.likeness import LikenessData, samples_of
from compresskit.runner.measure import Quality, quality
from compresskit.runner.measured import Measured
from compresskit.runner.prepare import Prepared
from compresskit.runner.promises import may_slow, promises_size, promises_speed, since, varies
from compresskit.runner.timing import SEQUENCE, Speed, Timing, speed
from compresskit.stage import Progress, silent

if TYPE_CHECKING:
    from compresskit.data.source import Source


@dataclass(frozen=True)
class Measuring:
    """What the verdict is measured with.

    Attributes:
        source: Evaluation data; None leaves the verdict UNVERIFIED.
        metric: Name or ``FILE.py:NAME``; None chooses one by data and task.
        limits: The gates.
        export: Export to ONNX; without it nothing runs, so neither quality nor speed is measured.
        bench: Measure the speed.
        sequence: Tokens of a sample in the bench.
        threads: Of one operator; 0 is the runtime's choice.
        device: Device, as the runtime names it.
        seed: Seed of the random inputs.
        target: Name of the CPU whose 8-bit products the quality is measured with; None is this machine, or the target
            that the last stage was given.
    """

    source: Source | None = None
    metric: str | None = None
    limits: Limits = field(default_factory=Limits)
    export: bool = True
    bench: bool = True
    sequence: int = SEQUENCE
    threads: int = 0
    device: str = "cpu"
    seed: int = 0
    target: str | None = None

    @property
    def point(self) -> Point:
        """Where models are timed unless more points are asked for: at one sample a call."""
        return Point(1, self.threads, self.sequence)

    def of(self, kinds: Sequence[Kind], target: str | None) -> Measuring:
        """As it is for what stages made.

        Args:
            kinds: Of all of them.
            target: What they were told to aim at; a target of its own counts more.
        """
        # Fine-tuning makes nothing smaller or faster.
        tuned = all(kind.only_tunes for kind in kinds)
        limits = replace(self.limits, may_grow=self.limits.may_grow or tuned)
        return replace(self, limits=limits, target=self.target or target)


@dataclass(frozen=True)
class Ready:
    """A model that can be measured.

    Attributes:
        model: What is known of it.
        shipped: What runs of it; None where nothing does.
        counts: Its parameters and multiply-accumulates.
        place: Its file, where nothing runs.
    """

    model: Model
    shipped: Prepared | None
    counts: dict[str, Any]
    place: Path

    def candidate(self, name: str, shown: str, measuring: Measuring, **more: Any) -> Candidate:
        """This model under a name and a path for the reader; ``more`` are other fields of the candidate."""
        card, path = self.model.card, self.shipped.path if self.shipped else self.place
        if path == self.model.source and self.model.notes:
            more["bytes"] = self._weights()
        return Candidate(
            name, path, shown, inputs=card.inputs, task=card.task, threads=measuring.threads, device=measuring.device,
            int8_arithmetic=int8_arithmetic_on(measuring.target), varies=varies(card.history), **self.counts, **more,
        )  # fmt: skip

    def _weights(self) -> int:
        """Bytes of the tensors that the model is, in a file that holds others too."""
        from compresskit.checkpoint.tensors import open_tensors

        return open_tensors(self.model.source, allow_nonfinite=True, key=self.model.key).nbytes()


class ReportBuilder:
    """Measures models and puts what was found into a report.

    Attributes:
        models: The baseline first.
        entries: Their lines in the report.
        measured: Their quality, once it was measured.
        timed: Their speed; empty until it was measured.
        figures: All that was measured, in the order of the report.
        int8_notes: On which CPUs the models' 8-bit products are exact.
    """

    def __init__(
        self,
        models: Sequence[Candidate],
        measuring: Measuring,
        progress: Progress = silent,
        known: Measured | None = None,
    ) -> None:
        """Begin with models.

        Args:
            models: The baseline first.
            measuring: What they are measured with.
            progress: Called from time to time as ``progress(what, done, total)``.
            known: Of two models: figures that were measured already.
        """
        self.models, self.measuring, self.progress, self._known = models, measuring, progress, known
        self.entries = [model.entry() for model in models]
        self.measured: Quality | None = None
        self.timed = Speed()
        self.figures: list[Measurement] = []
        self.int8_notes: list[str] = []
        self._shorter: list[str] = []

    def measure_quality(
        self,
        source: Source | None,
        quantized: Sequence[Candidate] | None = None,
        likeness: LikenessData | None = None,
    ) -> None:
        """Measure the quality, and find out on which CPUs it holds.

        Args:
            source: Without it, it is how closely each model follows the first.
            quantized: The models that may multiply 8-bit integers; None is all.
            likeness: What that is measured on; None is random inputs.
        """
        metric, seed, progress = self.measuring.metric, self.measuring.seed, self.progress
        if self._known is not None and source is not None:
            self.measured = self._known.quality_of(self.models)
        else:
            self.measured = quality(self.models, source, metric, likeness=likeness, seed=seed, progress=progress)
        self.figures += self.measured.measurements
        models = self.models if quantized is None else quantized
        self.int8_notes = saturation_notes(models, self.measured, source, progress=progress)

    def measure_speed(
        self,
        sources: Sequence[Path],
        timing: Timing | None = None,
        *,
        samples: Source | None = None,
        keep: bool = False,
    ) -> None:
        """Measure the speed, with no sample longer than all models take.

        Args:
            sources: Where the models were read from.
            timing: What is timed; None is one sample a call, with the threads and tokens of ``measuring``.
            samples: What models are timed on that take more or less time from input to input.
            keep: After Ctrl-C keep what is known so far.
        """
        timing, self._shorter = (timing or Timing([self.measuring.point])).fitting(sources)
        timing = replace(timing, bars=self._bars())
        known = None if self._known is None else self._known.speed_of(self.models)
        self.timed = known or speed(
            self.models, timing, seed=self.measuring.seed, keep=keep, source=samples, progress=self.progress
        )  # fmt: skip
        self.figures += self.timed.measurements

    def _bars(self) -> tuple[float, ...]:
        """The speed-ups that gates ask for."""
        if self.measuring.limits.min_speedup is not None:
            return (self.measuring.limits.min_speedup,)
        return () if all(model.promises_speed for model in self.models[1:]) else (1 / (1 + AS_FAST),)

    @property
    def evaluation(self) -> Evaluation | None:
        """What the report keeps of the metric; None where none was measured."""
        return self.measured.evaluation() if self.measured else None

    def gates(self) -> list[Gate]:
        """The limits of ``measuring``, and what the figures say of them."""
        broken = self.measured.broken if self.measured else {}
        slower = {
            m.name: math.inf if m.may_slow else AS_FAST for m in self.models if m.may_slow or not m.promises_speed
        }
        larger = {model.name for model in self.models if not model.promises_size}
        return gates(
            self.entries, self.evaluation, self.figures, self.measuring.limits, broken=broken, slower=slower,
            larger=larger,
        )  # fmt: skip

    def report(
        self,
        judged: Sequence[Gate] | None,
        *,
        history: Sequence[Applied],
        notes: Sequence[str],
        last_notes: Sequence[str] = (),
        **more: Any,
    ) -> Report:
        """The report of all that was found.

        Args:
            judged: Its gates; None where nothing was held to a limit, so that the figures prove nothing.
            history: What was done to the last model.
            notes: Those that come before what the measurements say.
            last_notes: Those that come after it.
            more: Other fields of the report.
        """
        evaluation = self.evaluation
        verified = evaluation is not None
        return Report(
            verdict=unjudged(self.timed.measurements) if judged is None else judge(list(judged), verified=verified),
            models=self.entries,
            measurements=self.figures,
            latencies=self.timed.latencies,
            profile=self.timed.profile,
            evaluation=evaluation,
            timed_on=self.timed.timed_on,
            gates=list(judged or ()),
            notes=[
                *notes,
                *(self.measured.notes if self.measured else []),
                *self.int8_notes,
                *self._shorter,
                *self.timed.notes,
                *last_notes,
            ],
            environment=environment(self.measuring.threads, self.measuring.device),
            history=[asdict(applied) for applied in history],
            **more,
        )


def unjudged(timed: Sequence[Measurement]) -> Verdict:
    """Figures that are held to no limit prove nothing; noise that hides which model is faster is told all the same."""
    noisy = any(m.name == "speedup" and unclear(m) for m in timed)
    return Verdict.INCONCLUSIVE if noisy else Verdict.UNVERIFIED


@dataclass(frozen=True)
class RunLog:
    """What a run leaves for its report, besides the model.

    Attributes:
        data: Calibration or training data that the stages were given.
        notes: What was found out on the way.
        steps: What each step of a recipe did.
        gates: Those that were judged already.
        known: Figures of the original and the result that were measured already.
    """

    data: Source | None = None
    notes: Sequence[str] = ()
    steps: Sequence[StepEntry] = ()
    gates: Sequence[Gate] = ()
    known: Measured | None = None


def report_on(
    before: Ready,
    after: Ready,
    output: Path,
    measuring: Measuring,
    log: RunLog,
    *,
    command: str = "",
    progress: Progress = silent,
) -> Report:
    """Measure a result and judge it.

    Args:
        before: The original.
        after: The result.
        output: Where the result will be found.
        measuring: What it is measured with.
        log: What the run left for the report.
        command: How the user asked for this.
        progress: Called from time to time as ``progress(what, done, total)``.
    """
    origin = before.model.source
    baseline = before.candidate(origin.name or str(origin), portable(origin), measuring)
    shown = portable(output / (after.shipped.path if after.shipped else after.place).name)
    history = after.model.card.history
    new = after.candidate(
        output.name if output.name != baseline.name else shown, shown, measuring,
        promises_speed=promises_speed(history, before.model.card.history),
        may_slow=may_slow(history, before.model.card.history),
        promises_size=promises_size(history, before.model.card.history),
    )  # fmt: skip
    builder = ReportBuilder([baseline, new], measuring, progress, log.known)
    facts, skipped = (history[-1].facts, history[-1].skipped) if history else ({}, {})
    about: list[str] = []
    if after.shipped is not None:
        likeness = None
        if measuring.source is None:
            likeness = samples_of(log.data, since(history, before.model.card.history))
        builder.measure_quality(measuring.source, [new], likeness)
        if measuring.bench:
            builder.measure_speed([after.model.source, origin], samples=measuring.source or log.data)
        about = after.shipped.notes
    else:
        rounded, about = _rounding(facts, new.name)
        if isinstance(after.model.body, Path):
            about.append("no model.onnx was written: give `arch` and `input_shape`")
        builder.figures += rounded
    return builder.report(
        [*_proofs(before, after), *log.gates, *_fair(builder.gates(), facts)],
        history=history,
        notes=[
            *(before.shipped.doubts if before.shipped else ()),
            *before.model.notes,
            *_seen(log.data, measuring.source),
            *(note for note in notes_of(log.data) if note not in notes_of(measuring.source)),
            *log.notes,
            *_unused(log.data, history),
            *facts.get("notes", []),
            *about,
        ],
        command=command,
        layers=[*layers_of(baseline.name, baseline.path), *layers_of(new.name, new.path, history)],
        coverage=coverage(facts, skipped, bytes_left(after.place, history, skipped)),
        steps=list(log.steps),
    )


def _proofs(before: Ready, after: Ready) -> list[Gate]:
    """The proof of the export. An ONNX stage starts from the export of the original: then there is only that one's."""
    return [part.proof for part in (after.shipped, before.shipped) if part is not None and part.proof is not None][:1]


def _fair(found: list[Gate], facts: dict[str, Any]) -> list[Gate]:
    """The gates without default ones that a merged model can't pass: dense layers were asked for, which are larger."""
    if not facts.get("merged"):
        return found
    return [gate for gate in found if gate.asked or gate.name not in ("size", "speed")]


def _seen(data: Source | None, evaluated: Source | None) -> list[str]:
    """What is to be said where a model is judged by samples that it was fitted to."""
    if (
        data is None
        or evaluated is None
        or len(data) != len(evaluated)
        or data.fingerprint() != evaluated.fingerprint()
    ):
        return []
    return [
        "the evaluation data is the same as `data`: the quality is measured on samples that the result was fitted to"
    ]


def _unused(data: Source | None, history: Sequence[Applied]) -> list[str]:
    """Data that no method had a use for."""
    used = any(not applied.facts.keys().isdisjoint({"calibration", "training"}) for applied in history)
    if data is None or not history or used:
        return []
    return [f"{portable(data.name)} was not used: {history[-1].name.partition('.')[2]} needs no data here"]


def _rounding(facts: dict[str, Any], name: str) -> tuple[list[Measurement], list[str]]:
    """What is known of weights that nothing ran: how loud they are over their rounding error, layer by layer."""
    known = {layer: fact["sqnr"] for layer, fact in facts.get("layers", {}).items() if "sqnr" in fact}
    if not known:
        return [], []
    worst = min(known, key=lambda layer: known[layer])
    middle = median(known.values())
    note = (
        f"SQNR of the weights: median of {len(known)} layers {middle:.1f} dB, lowest {known[worst]:.1f} dB in {worst}"
    )
    return [Measurement(model=name, name="weight_sqnr", value=middle, unit="dB", n=len(known))], [note]
