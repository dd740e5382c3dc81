"""The figures of a report for a tracker of experiments: MLflow, or a file of JSON lines."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from compresskit.errors import MachineError, UsageError, missing_extra
from compresskit.report import Measurement, Report

_MLFLOW = "mlflow"


def check_tracker(where: str) -> None:
    """Refuse a tracker that can't be reached, before the work is done.

    Args:
        where: ``mlflow``, or a file that ends in ``.jsonl``.

    Raises:
        MachineError: MLflow isn't installed.
        UsageError: It is neither, or the file's folder doesn't exist.
    """
    if where == _MLFLOW:
        _mlflow()
    elif not where.endswith(".jsonl"):
        raise UsageError(f"expected mlflow or a file that ends in .jsonl, found {where}")
    elif Path(where).is_dir() or not Path(where).absolute().parent.is_dir():
        raise UsageError(f"{where}: expected a file in a folder that exists")


def log(report: Report, where: str) -> None:
    """Add a report to a tracker: one run, or one line, for each model that was compared with the first.

    Args:
        report: A report of one model is logged as that model.
        where: See :func:`check_tracker`; a file is appended to.

    Raises:
        MachineError: MLflow isn't installed.
        UsageError: See :func:`check_tracker`.
    """
    check_tracker(where)
    records = [_record(report, index) for index in range(min(1, len(report.models) - 1), len(report.models))]
    if where == _MLFLOW:
        try:
            for record in records:
                _run(report, record)
        except Exception as error:  # the client raises many kinds: of the network, of the server, its own
            raise MachineError(f"MLflow: {str(error).strip().splitlines()[0]}", "see MLFLOW_TRACKING_URI") from error
        return
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    lines = "".join(f"{json.dumps({'time': now, **record}, allow_nan=False)}\n" for record in records)
    with Path(where).open("a", encoding="utf-8", newline="\n") as stream:
        stream.write(lines)


def _record(report: Report, index: int) -> dict[str, Any]:
    model, first = report.models[index], report.models[0]
    metrics: dict[str, float] = {"bytes": model.bytes}
    if index:
        metrics["smaller"] = first.bytes / max(1, model.bytes)
    for found in report.measurements:
        if found.model == model.name:
            bounds = {"": found.value, "_low": found.low, "_high": found.high}
            metrics |= {f"{_key(found)}{end}": value for end, value in bounds.items() if value is not None}
    return {
        "command": report.command,
        "model": model.name,
        "baseline": first.name if index else None,
        "verdict": report.verdict.value,
        "steps": [str(applied.get("name")) for applied in report.history],
        "sha256": model.sha256,
        "metrics": metrics,
    }


def _key(found: Measurement) -> str:
    """``latency_p50``, or ``latency_p50/openvino/batch8`` where engine or point say more."""
    point = zip(("batch", "threads", "sequence"), found.point, strict=True)
    parts = [found.runtime, *(f"{name}{value}" for name, value in point if value is not None)]
    return "/".join([found.name, *(part for part in parts if part)])


def _mlflow() -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        import mlflow
    except ImportError as error:
        raise missing_extra("mlflow", _MLFLOW) from error
    return mlflow


def _run(report: Report, record: dict[str, Any]) -> None:
    mlflow = _mlflow()
    with mlflow.start_run(run_name=record["model"]):
        mlflow.set_tags(
            {"verdict": record["verdict"], "baseline": record["baseline"] or "", "sha256": record["sha256"]}
        )
        mlflow.log_params({"command": record["command"][:6000], "steps": ", ".join(record["steps"])})
        mlflow.log_metrics(record["metrics"])
        mlflow.log_text(report.to_json(), "report.json")
