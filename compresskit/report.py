"""The report: what was measured, against what, and the verdict. Schema 1; every table and picture is drawn from it."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import Iterable, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compresskit.errors import ExitCode, InputError, PathError
from compresskit.searched import Search

SCHEMA = 1
NAME = "report.json"
"""What a report is called in a bundle."""
PAGE = "report.html"
"""What its pictures are called there."""
_MOST = 64_000_000
"""Bytes of the largest document that is read; those of real models take some hundred thousand."""

_UNSEEN = re.compile("[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")
"""What JSON lets stand in a text, and a terminal would act on or not show."""

Count = Annotated[int, Field(ge=0, lt=2**63)]
Point = tuple[int | None, int | None, int | None]
"""Batch size, threads and tokens of a timed call."""


class Verdict(str, Enum):
    """PASS, FAIL: all gates were decided; INCONCLUSIVE: too noisy to decide; UNVERIFIED: without evaluation data."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    UNVERIFIED = "UNVERIFIED"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelEntry(_Part):
    """One model of the report; the first is the baseline.

    ``path`` is as typed, or relative to the bundle; never absolute unless the user typed it so. ``bytes`` is what
    ships: the ONNX file with its external data, or the weights where there is no ONNX.
    """

    name: str
    path: str
    bytes: Count
    parameters: Count | None = None
    macs: Count | None = None
    sha256: str


class Measurement(_Part):
    """One figure. ``low`` and ``high`` bound it at 95 % where that is known; ``n`` counts what it was taken from.

    Names in use: ``accuracy``, ``top5``, ``perplexity``, ``spearman``, ``cosine``, ``sqnr``, ``agreement`` (quality);
    ``choice_accuracy`` and ``choice_accuracy_norm`` (%), ``greedy_agreement`` (%) and ``first_difference`` (tokens) of
    a language model;
    ``weight_sqnr`` (dB, median over layers, where nothing ran); ``latency_p50``, ``latency_p95``, ``latency_p99`` (ms),
    ``throughput`` (1/s), ``speedup`` (×, against the baseline at the same point), ``load`` and ``first_call`` (ms),
    ``peak_memory`` (bytes), ``energy`` (J a call), ``device_time`` (ms) and ``device_memory`` (bytes) of a GPU;
    ``first_token`` (ms), ``prefill`` and ``decode`` (tokens/s) of a language model that writes, ``decode_speedup`` (×,
    against the baseline);
    ``traffic`` (bytes a call), ``operations`` (a call), ``limit`` (ms) and ``of_limit`` (the share of it that is
    reached, 0 to 1).
    ``batch``, ``threads`` and ``sequence`` (tokens) tell the points of a sweep apart; None where it doesn't apply.
    """

    model: str
    name: str
    value: float
    unit: str = ""
    n: Count = 1
    low: float | None = None
    high: float | None = None
    runtime: str = ""
    batch: Count | None = None
    threads: Count | None = None
    sequence: Count | None = None

    @property
    def point(self) -> Point:
        """Where it was measured."""
        return self.batch, self.threads, self.sequence


class Distribution(_Part):
    """All latencies of one model at one point of a sweep: ``quantiles`` in ms, evenly spaced from 0 to 100 %."""

    model: str
    quantiles: list[float]
    n: Count
    runtime: str = ""
    batch: Count | None = None
    threads: Count | None = None
    sequence: Count | None = None


class LayerEntry(_Part):
    """One layer with weights of one model, as it ships.

    ``bytes`` is what its weights take, ``bits`` the mean width of a stored number without scales, ``sparsity`` the
    share of zeros, ``rank`` that of a factorized layer or of an adapter, ``sqnr`` how near its weights are to the
    original's (dB). What isn't known is None.
    """

    model: str
    name: str
    kind: str
    parameters: Count
    bytes: Count
    bits: float | None = None
    sparsity: float | None = None
    rank: Count | None = None
    sqnr: float | None = None


class NodeTime(_Part):
    """What one node of a graph takes of a call, by the runtime's own profiler: median ms, and its share of all nodes.

    ``batch``, ``threads`` and ``sequence`` are those of a :class:`Measurement`.
    """

    model: str
    name: str
    op: str
    ms: float
    share: float
    runtime: str = ""
    batch: Count | None = None
    threads: Count | None = None
    sequence: Count | None = None

    @property
    def point(self) -> Point:
        """Where it was measured."""
        return self.batch, self.threads, self.sequence


class Evaluation(_Part):
    """What the quality was measured with, so that it can be judged again and compared with another report's.

    ``data`` is the fingerprint of the samples as they were prepared. ``drops`` has, by model, the 95 % interval of how
    much worse it is than the baseline in the metric's points, where that is known.
    """

    metric: str
    higher_is_better: bool
    data: str
    drops: dict[str, tuple[float, float]] = {}


class TimedOn(_Part):
    """The samples that models were timed on: a name, the fingerprint as they were prepared, and how many."""

    data: str
    sha256: str
    samples: Count


class Coverage(_Part):
    """Which layers a stage changed (name to what it got), and which it left alone (name to the reason).

    ``left`` is what those take, in bytes, where a quantized model's weights tell.
    """

    done: dict[str, str] = {}
    skipped: dict[str, str] = {}
    left: dict[str, Count] = {}


class Gate(_Part):
    """One limit. ``passed`` is None when the machine was too noisy or the data missing to tell; ``asked`` is True when
    the user set the limit, False for a default one; ``unit`` is ``bytes``, ``×``, ``pt`` or empty."""

    name: str
    limit: str
    value: float | None
    unit: str = ""
    passed: bool | None
    asked: bool = False
    reason: str = ""

    @property
    def fails(self) -> bool:
        """True when it ends with exit code 1: missed, or asked for and not proven."""
        return self.passed is False or (self.asked and self.passed is None)


class StepEntry(_Part):
    """One step of a recipe: what it did to size and quality, against the model before it.

    ``state`` is ``done``, ``cached`` (taken from an earlier run) or ``undone`` (it missed its limit and was rolled
    back). ``bytes`` is what would ship after it; ``value`` the metric then; ``drop`` how much worse it is than before
    the step, in the metric's own points, None where nothing was measured.
    """

    name: str
    state: Literal["done", "cached", "undone"]
    bytes: int | None = None
    metric: str = ""
    value: float | None = None
    drop: float | None = None
    reason: str = ""


class Report(_Part):
    """Everything that one command found out."""

    schema_version: int = Field(default=SCHEMA, alias="schema")
    command: str
    verdict: Verdict
    models: list[ModelEntry]
    measurements: list[Measurement] = []
    latencies: list[Distribution] = []
    layers: list[LayerEntry] = []
    profile: list[NodeTime] = []
    evaluation: Evaluation | None = None
    timed_on: TimedOn | None = None
    coverage: Coverage = Coverage()
    gates: list[Gate] = []
    steps: list[StepEntry] = []
    notes: list[str] = []
    environment: dict[str, Any] = {}
    history: list[dict[str, Any]] = []
    search: Search | None = None

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    def to_json(self) -> str:
        """The report as a JSON document, keys in the order of the schema, floats finite or null.

        What UTF-8 can't hold (a byte of a file name that was no UTF-8) is a question mark; control codes, also those
        of the direction of text, are JSON's escapes.
        """
        data = self.model_dump(mode="python", by_alias=True)
        text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        text = _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
        return text.encode("utf-8", "replace").decode("utf-8")

    def values(self, name: str) -> dict[str, Measurement]:
        """The measurements of one name, by model; of a sweep those at its first point."""
        found: dict[str, Measurement] = {}
        for measured in self.measurements:
            if measured.name == name:
                found.setdefault(measured.model, measured)
        return found

    def exit_code(self) -> ExitCode:
        """GATE when a gate failed, or when one that the user asked for could not be proven."""
        failed = self.verdict is Verdict.FAIL or any(gate.fails for gate in self.gates)
        return ExitCode.GATE if failed else ExitCode.OK


def read_report(path: str | Path) -> Report:
    """Read a report: a report.json, the bundle that holds one, or with ``-`` what comes from standard input.

    Raises:
        InputError: Missing, too large, not JSON, not finite, or of another schema.
    """
    name, text = _content(Path(path))
    try:
        report = Report.model_validate_json(text)
        report.to_json()
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(p) for p in first["loc"]) or "the document"
        raise InputError(f"{name} is not a report of schema {SCHEMA}: {where}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not a report of schema {SCHEMA}: it holds NaN or infinity") from error
    if report.schema_version != SCHEMA:
        raise InputError(f"{name} is not a report of schema {SCHEMA}, but of schema {report.schema_version}")
    return report


def _content(path: Path) -> tuple[str, bytes]:
    """What to call a report, and its bytes."""
    if str(path) == "-":
        name, text = "standard input", sys.stdin.buffer.read(_MOST + 1)
    else:
        given, path = path, path / NAME if path.is_dir() else path
        name = str(path)
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # opening a FIFO would wait for who writes it
                raise InputError(f"{name} is not a report: it is not a regular file", "- is standard input")
            with path.open("rb") as stream:
                text = stream.read(_MOST + 1)
        except (OSError, ValueError) as error:
            kind = InputError if os.path.lexists(given) else PathError
            raise kind(f"cannot read the report {name}: {getattr(error, 'strerror', error)}") from error
    if len(text) > _MOST:
        raise InputError(f"{name} is not a report: it is larger than {_MOST // 10**6} MB")
    return name, text.removeprefix(b"\xef\xbb\xbf")


AXES = ("batch", "threads", "tokens")
"""What the parts of a point are called."""


def points_of(measurements: Iterable[Measurement], name: str = "latency_p50") -> list[Point]:
    """The points at which something was measured, in the order of the report."""
    return list(dict.fromkeys(m.point for m in measurements if m.name == name))


def point_name(point: Point, among: Sequence[Point]) -> str:
    """What sets a point apart from the others: ``batch 8, 1 thread``; empty where there are no others."""
    batch, threads, sequence = (
        own if len({other[axis] for other in among}) > 1 else None for axis, own in enumerate(point)
    )
    parts = [
        f"batch {batch}" if batch is not None else "",
        f"{threads} thread{'' if threads == 1 else 's'}" if threads is not None else "",
        f"{sequence} tokens" if sequence is not None else "",
    ]
    return ", ".join(part for part in parts if part)


def judge(gates: list[Gate], *, verified: bool) -> Verdict:
    """The verdict that follows from the gates.

    Args:
        gates: All gates, default and asked.
        verified: True when quality was measured on data that the user gave.
    """
    if any(g.passed is False for g in gates):
        return Verdict.FAIL
    if not verified:
        return Verdict.UNVERIFIED
    if any(g.passed is None for g in gates):
        return Verdict.INCONCLUSIVE
    return Verdict.PASS
