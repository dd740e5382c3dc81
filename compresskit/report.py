"""The report: what was measured, against what, and the verdict. Schema 1; every table and picture is drawn from it."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compresskit.errors import ExitCode, InputError

SCHEMA = 1


class Verdict(str, Enum):
    """PASS and FAIL are proven; INCONCLUSIVE: too noisy to tell; UNVERIFIED: no evaluation data was given."""

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
    bytes: int = Field(ge=0)
    parameters: int | None = None
    macs: int | None = None
    sha256: str


class Measurement(_Part):
    """One figure. ``low`` and ``high`` bound it at 95 % where that is known; ``n`` counts what it was taken from.

    Names in use: ``accuracy``, ``top5``, ``perplexity``, ``spearman``, ``cosine``, ``sqnr``, ``agreement`` (quality);
    ``weight_sqnr`` (dB, median over layers, where nothing ran); ``latency_p50``, ``latency_p95``, ``latency_p99`` (ms),
    ``throughput`` (1/s), ``speedup`` (×, against the baseline), ``load`` (ms), ``peak_memory`` (bytes).
    """

    model: str
    name: str
    value: float
    unit: str = ""
    n: int = 1
    low: float | None = None
    high: float | None = None
    runtime: str = ""
    batch: int | None = None


class Coverage(_Part):
    """Which layers a stage changed (name to what it got), and which it left alone (name to the reason)."""

    done: dict[str, str] = {}
    skipped: dict[str, str] = {}


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
    coverage: Coverage = Coverage()
    gates: list[Gate] = []
    steps: list[StepEntry] = []
    notes: list[str] = []
    environment: dict[str, Any] = {}
    history: list[dict[str, Any]] = []

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    def to_json(self) -> str:
        """The report as a JSON document, keys in the order of the schema, floats finite or null.

        What UTF-8 can't hold (a byte of a file name that was no UTF-8) is a question mark.
        """
        data = self.model_dump(mode="python", by_alias=True)
        text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        return text.encode("utf-8", "replace").decode("utf-8")

    def values(self, name: str) -> dict[str, Measurement]:
        """The measurements of one name, by model."""
        return {m.model: m for m in self.measurements if m.name == name}

    def exit_code(self) -> ExitCode:
        """GATE when a gate failed, or when one that the user asked for could not be proven."""
        unproven = any(g.asked and g.passed is None for g in self.gates)
        return ExitCode.GATE if self.verdict is Verdict.FAIL or unproven else ExitCode.OK


def read_report(path: Path) -> Report:
    """Read a report.json.

    Raises:
        InputError: Missing, not JSON, or of another schema.
    """
    try:
        return Report.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read the report {path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"]) or "the document"
        raise InputError(f"{path} is not a report of schema {SCHEMA}: {where}: {first['msg']}") from error


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
