"""A report held to limits after the fact, from the figures that stand in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from compresskit.checkpoint.bundle import is_bundle
from compresskit.errors import InputError, UsageError
from compresskit.recipe.limits import Limits
from compresskit.report import NAME, Gate, Measurement, Point, Report, judge, read_report
from compresskit.runner.candidate import Candidate
from compresskit.runner.gates import gates
from compresskit.runner.regression import TIMED, regressions


def open_report(path: Path) -> Report:
    """Read a report whose figures can be judged.

    Args:
        path: A report, or the bundle that holds one; ``-`` is standard input. A bundle must hold the model that was
            measured.

    Raises:
        InputError: It can't be read, contradicts itself, or is of another model.
    """
    report = read_report(path)
    _consistent(path, report)
    folder = path if path.is_dir() else path.parent
    if (path.is_dir() or path.name == NAME) and is_bundle(folder):
        _same_model(folder, report)
    return report


def check(
    report: Report,
    limits: Limits,
    *,
    baseline: Report | None = None,
    max_growth: str | None = None,
    allow_other_machine: bool = False,
) -> Report:
    """Judge a report again.

    A limit takes the place of the report's own gate of that name; its other gates stay as they were judged.

    Args:
        report: From :func:`open_report`.
        limits: What the user asked for; those that are None change nothing.
        baseline: Report of an earlier run, from :func:`open_report`.
        max_growth: As in :func:`compresskit.recipe.limits.parse_growth`.
        allow_other_machine: Accept a baseline from another machine or other versions.

    Returns:
        The report with its gates and verdict as they are now.

    Raises:
        UsageError: A limit can't be understood, nothing would be checked, or the two reports can't be compared.
    """
    limits.check(evaluated=True, benched=True)
    asked = [limits.max_drop, limits.max_size, limits.min_speedup]
    if not report.models and (baseline is not None or asked != [None] * 3):
        raise UsageError("the report has no model: there is nothing to check")
    judged = gates(report.models, report.evaluation, report.measurements, limits) if report.models else []
    found = _merged(report.gates, (gate for gate in judged if gate.asked))
    notes: list[str] = []
    if baseline is not None:
        held, notes = regressions(
            report, baseline, limits, max_growth=max_growth, allow_other_machine=allow_other_machine
        )
        found = _merged(found, held)
    if not found:
        raise UsageError(
            "the report has no gates: there is nothing to check",
            "give `max_drop`, `max_size`, `min_speedup` or `baseline`",
        )
    verified = report.evaluation is not None
    verdict = report.verdict if found == report.gates else judge(found, verified=verified)
    return report.model_copy(update={"gates": found, "verdict": verdict, "notes": [*report.notes, *notes]})


def _merged(old: Iterable[Gate], new: Iterable[Gate]) -> list[Gate]:
    return list({gate.name: gate for gate in (*old, *new)}.values())


def _consistent(path: Path, report: Report) -> None:
    """Refuse figures of which it isn't clear, or can't be, what they say."""
    if twice := _named_twice(report):
        raise InputError(f"{path} contradicts itself: {twice}")
    for m in report.measurements:
        if m.name in TIMED and not 0 < (m.low or m.value) <= m.value <= (m.high or m.value):
            shown = f"{m.value:g}, 95 % interval {m.low} to {m.high}"
            raise InputError(f"{path} contradicts itself: the {TIMED[m.name]} of {m.model} is {shown}")
    failed = next((gate.name for gate in report.gates if gate.passed is False), None)
    if (failed is not None) != (report.verdict.value == "FAIL"):
        why = f"its gate '{failed}' failed" if failed else "none of its gates failed"
        raise InputError(f"{path} contradicts itself: its verdict is {report.verdict.value}, but {why}")


def _named_twice(report: Report) -> str:
    """What two parts of a report are called, in words; empty where each has a name of its own."""
    names: Sequence[str | tuple[str, Point]]
    for what, names in (
        ("two models", [entry.name for entry in report.models]),
        ("two gates", [gate.name for gate in report.gates]),
        ("two figures", [(f"{m.name} of {m.model}", m.point) for m in _judged(report)]),
    ):
        for found, count in Counter(names).items():
            if count > 1:
                return f"{what} are called '{found if isinstance(found, str) else found[0]}'"
    return ""


def _judged(report: Report) -> list[Measurement]:
    names = [*TIMED, *([report.evaluation.metric] if report.evaluation else [])]
    return [m for m in report.measurements if m.name in names]


def _is_file(path: Path) -> bool:
    """A name that is longer than any file's is of none."""
    try:
        return path.is_file()
    except OSError:
        return False


def _same_model(folder: Path, report: Report) -> None:
    """Refuse a bundle whose model is another than the one that was measured."""
    if not report.models:
        return
    entry = report.models[-1]
    file = folder / Path(entry.path).name  # nothing outside of the bundle, whatever the report says
    if _is_file(file) and Candidate(entry.name, file, entry.path).entry().sha256 != entry.sha256:
        raise InputError(
            f"{file} is not the file that {folder / NAME} was measured on", "measure it again: compresskit compare"
        )
