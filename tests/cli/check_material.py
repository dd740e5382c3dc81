"""Reports as a run writes them, for the tests of ``check``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compresskit.report import Evaluation, Gate, Measurement, ModelEntry, Report, Verdict, judge

ENVIRONMENT = {
    "cpu": "AMD EPYC 7B13", "machine": "x86_64", "cores": 2, "threads": 2, "flags": ["avx2", "avx512f"], "os": "Linux",
    "python": "3.12.3", "packages": {"compresskit": "0.1.0", "torch": "2.13.0", "onnxruntime": "1.31.0"},
}  # fmt: skip
RUN = {"runtime": "onnxruntime", "batch": 1}


def entry(name: str, size: int, sha: str) -> ModelEntry:
    return ModelEntry(name=name, path=f"{name}/model.onnx", bytes=size, parameters=272_474, sha256=sha * 64)


def report(
    *,
    size: int = 290_000,
    accuracy: float | None = 91.5,
    speed: tuple[float, float, float] | None = (2.0, 1.97, 2.03),
    name: str = "int8",
    original: ModelEntry | None = None,
    gates: list[Gate] | None = None,
    data: str = "d" * 64,
    n: int = 1000,
    metric: str = "accuracy",
    **changes: Any,
) -> Report:
    """An original of 1 MB and 92 % beside a result of 290 kB and 91.5 %, twice as fast."""
    original = original or entry("fp32", 1_000_000, "0")
    figures = []
    if accuracy is not None:
        scored = {"name": metric, "unit": "%", "n": n, "runtime": "onnxruntime"}
        figures.append(Measurement(model=original.name, value=92.0, **scored))
        figures.append(Measurement(model=name, value=accuracy, low=accuracy - 2, high=accuracy + 2, **scored))
    if speed is not None:
        value, low, high = speed
        figures.append(Measurement(model=name, name="speedup", value=value, low=low, high=high, n=7, unit="×", **RUN))
    evaluation = None
    if accuracy is not None:
        evaluation = Evaluation(metric=metric, higher_is_better=metric != "perplexity", data=data)
    if gates is None:
        gates = [
            Gate(name="ONNX parity", limit="≤ 1e-05 relative", value=1e-6, passed=True),
            Gate(name="size", limit="≤ the original", value=size, unit="bytes", passed=size <= 1_000_000),
        ]
    parts: dict[str, Any] = {
        "command": "compresskit quantize m.pt --bits 8", "models": [original, entry(name, size, "1")],
        "measurements": figures, "evaluation": evaluation, "gates": gates, "environment": ENVIRONMENT,
        "verdict": judge(gates, verified=evaluation is not None),
    }  # fmt: skip
    return Report(**{**parts, **changes})


def alone(latency: tuple[float, float, float] | None = None, **changes: Any) -> Report:
    """What ``evaluate`` writes, or ``bench`` with a ``latency`` and its interval in ms: one model, no gates."""
    full = report(**changes)
    model = full.models[-1]
    figures = [m for m in full.measurements if m.model == model.name and m.name != "speedup"]
    if latency is not None:
        value, low, high = latency
        run = {"name": "latency_p50", "model": model.name, "unit": "ms", "n": 7, **RUN}
        figures.append(Measurement(value=value, low=low, high=high, **run))
    update = {"models": [model], "measurements": figures, "gates": [], "verdict": Verdict.UNVERIFIED}
    return full.model_copy(update=update)


def save(found: Report, path: Path | str = "report.json") -> Path:
    Path(path).write_text(found.to_json(), encoding="utf-8")
    return Path(path)
