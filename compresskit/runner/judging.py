"""What came out, held against what went in: measured, judged, and told in a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from compresskit.bench.machine import environment
from compresskit.bench.sweep import Point
from compresskit.kinds import Kind
from compresskit.model import Applied, Model, portable
from compresskit.recipe.limits import Limits
from compresskit.report import Coverage, Gate, Measurement, Report, StepEntry, judge
from compresskit.runner.candidate import Candidate
from compresskit.runner.gates import gates
from compresskit.runner.int8_saturation import int8_arithmetic_on, saturation_notes
from compresskit.runner.layers import layers_of
from compresskit.runner.measure import quality
from compresskit.runner.prepare import Prepared
from compresskit.runner.timing import SEQUENCE, Speed, fitting, speed
from compresskit.stage import Progress, silent

if TYPE_CHECKING:
    from compresskit.data.source import Source


@dataclass(frozen=True)
class Measuring:
    """What the verdict is measured with.

    Attributes:
        source: Evaluation data; None leaves the verdict UNVERIFIED.
        metric: Name or ``FILE.py:NAME``; None picks one by data and task.
        limits: The gates.
        export: Export to ONNX; without it nothing runs, so neither quality nor speed is measured.
        bench: Measure the speed.
        sequence: Tokens of a sample in the bench.
        threads: Of one operator; 0 is the runtime's choice.
        device: As the runtime names it.
        seed: Of made-up inputs.
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

    def of(self, kinds: Sequence[Kind], target: str | None) -> Measuring:
        """As it is for what stages made.

        Args:
            kinds: Of all of them.
            target: What they were told to aim at; a target of its own counts more.
        """
        # Fine-tuning makes nothing smaller or faster.
        tuned = all(kind.only_tunes for kind in kinds)
        limits = replace(self.limits, may_grow=True) if tuned else self.limits
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

    def candidate(self, name: str, shown: str, measuring: Measuring) -> Candidate:
        """This model under a name and a path for the reader."""
        card = self.model.card
        path = self.shipped.path if self.shipped else self.place
        common: dict[str, Any] = {"inputs": card.inputs, "task": card.task, "threads": measuring.threads}
        return Candidate(
            name,
            path,
            shown,
            device=measuring.device,
            int8_arithmetic=int8_arithmetic_on(measuring.target),
            **common,
            **self.counts,
        )


def report_on(
    before: Ready,
    after: Ready,
    output: Path,
    measuring: Measuring,
    *,
    data: Source | None = None,
    notes: Sequence[str] = (),
    steps: Sequence[StepEntry] = (),
    more: Sequence[Gate] = (),
    command: str = "",
    progress: Progress = silent,
) -> Report:
    """Measure a result and judge it.

    Args:
        before: The original.
        after: The result.
        output: Where the result will be found.
        measuring: What it is measured with.
        data: Calibration or training data that the stages were given.
        notes: What was found out on the way.
        steps: What each step of a recipe did.
        more: Gates that were judged already.
        command: How the user asked for this.
        progress: Called now and then.
    """
    origin = before.model.source
    baseline = before.candidate(origin.name or str(origin), portable(origin), measuring)
    shown = portable(output / (after.shipped.path if after.shipped else after.place).name)
    new = after.candidate(output.name if output.name != baseline.name else shown, shown, measuring)
    entries = [baseline.entry(), new.entry()]
    measured, timed = None, Speed()
    shorter: list[str] = []
    if after.shipped is not None:
        measured = quality([baseline, new], measuring.source, measuring.metric, seed=measuring.seed, progress=progress)
        if measuring.bench:
            sequence, shorter = fitting([after.model.source, origin], measuring.sequence)
            where = [Point(1, measuring.threads, sequence)]
            timed = speed([baseline, new], where, seed=measuring.seed, progress=progress)
    about_int8 = saturation_notes([new], measured, measuring.source, progress=progress) if after.shipped else []
    history = after.model.card.history
    last = history[-1] if history else None
    facts = last.facts if last else {}
    rounded, about = _rounding(facts if measured is None else {}, new.name)
    figures = [*(measured.measurements if measured else []), *timed.measurements]
    evaluation = measured.evaluation() if measured else None
    found = gates(entries, evaluation, figures, measuring.limits, broken=measured.broken if measured else {})
    if facts.get("merged"):  # dense layers were asked for: larger is what they are
        found = [gate for gate in found if gate.asked or gate.name not in ("size", "speed")]
    # An ONNX stage starts from the export of the original: then that export's proof is the one there is.
    proofs = [part.proof for part in (after.shipped, before.shipped) if part is not None and part.proof is not None]
    found = [*proofs[:1], *more, *found]
    return Report(
        command=command,
        verdict=judge(found, verified=evaluation is not None),
        models=entries,
        measurements=[*figures, *rounded],
        layers=[*layers_of(baseline.name, baseline.path), *layers_of(new.name, new.path, history)],
        latencies=timed.latencies,
        evaluation=evaluation,
        coverage=coverage(facts, last.skipped if last else {}),
        gates=found,
        steps=list(steps),
        notes=[
            *_seen(data, measuring.source),
            *notes,
            *_unused(data, history),
            *facts.get("notes", []),
            *about,
            *(after.shipped.notes if after.shipped else []),
            *(measured.notes if measured else []),
            *about_int8,
            *shorter,
            *timed.notes,
        ],
        environment=environment(measuring.threads, measuring.device),
        history=[asdict(applied) for applied in history],
    )


def _seen(data: Source | None, evaluated: Source | None) -> list[str]:
    """What is to be said where a model is judged by samples that it was fitted to."""
    if (
        data is None
        or evaluated is None
        or len(data) != len(evaluated)
        or data.fingerprint() != evaluated.fingerprint()
    ):
        return []
    return ["the evaluation data are those of --data: the quality is of samples that the result was fitted to"]


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


def coverage(facts: dict[str, Any], skipped: dict[str, str]) -> Coverage:
    """The layers that a stage changed, in words, and those it left alone."""
    done = {name: _described(layer) for name, layer in facts.get("layers", {}).items()}
    return Coverage(done=done, skipped=skipped)


def _described(layer: dict[str, Any]) -> str:
    group = layer.get("group_size")
    scope = f"group {group}" if group else "per tensor" if layer.get("scales") == 1 else "per channel"
    kind = f"{layer['kind']} " if layer.get("kind") else ""
    repair = f", repair {layer['repair']}" if layer.get("repair") else ""
    return f"{kind}{layer['bits']} bit, {scope}{repair}" if "bits" in layer else str(layer.get("about", layer))
