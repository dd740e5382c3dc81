"""Reports that tests draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compresskit.report import (
    Coverage,
    Distribution,
    Gate,
    LayerEntry,
    Measurement,
    ModelEntry,
    NodeTime,
    Report,
    Verdict,
    read_report,
)

KINDS = ("one", "three", "sweep", "matrix", "search")
"""Reports of the demo's model: one result, three, a sweep over batches, a matrix's points, and a search."""
ONNX = {"runtime": "onnxruntime", "batch": 1}


def make_report(**changes: Any) -> Report:
    """A report of a quantized ResNet-20 with every kind of content."""
    parts: dict[str, Any] = {
        "command": "quantize",
        "verdict": Verdict.PASS,
        "models": [
            ModelEntry(name="fp32", path="resnet20.th", bytes=1_089_000, sha256="0" * 64),
            ModelEntry(name="int8", path="model.onnx", bytes=290_400, sha256="1" * 64),
        ],
        "measurements": [
            Measurement(model="fp32", name="accuracy", value=91.695, unit="%", n=9886),
            Measurement(model="int8", name="accuracy", value=91.715, unit="%", n=9886),
            Measurement(model="int8", name="cosine", value=0.99912, n=64),
            Measurement(model="fp32", name="latency_p50", value=0.41, unit="ms", **ONNX),
            Measurement(model="int8", name="latency_p50", value=0.2, unit="ms", **ONNX),
            Measurement(model="int8", name="speedup", value=2.051, low=1.9, high=2.2, unit="×", **ONNX),
        ],
        "gates": [Gate(name="max-drop", limit="0.5pt", value=-0.02, passed=True, asked=True)],
        "coverage": Coverage(
            done={f"layer{i}": "int8" if i else "int4 group 32" for i in range(20)},
            skipped={"head": "excluded by a pattern", **{f"norm{i}": "has no weight matrix" for i in range(9)}},
        ),
        "notes": ["calibrated with 512 images"],
    }
    return Report(**{**parts, **changes})


def kept(kind: str) -> Report:
    """A report of a real run, one of ``KINDS``."""
    return read_report(Path(__file__).with_name("reports") / f"{kind}.json")


def full_report() -> Report:
    """One with all that a page can draw."""
    models = ("fp32", "int8")
    return make_report(
        environment={"cpu": "x", "packages": {"torch": "2"}},
        layers=[
            LayerEntry(
                model=m, name=f"layer{i}", kind="Conv", parameters=100, bytes=400 if m == "fp32" else 110,
                bits=32 if m == "fp32" else 8, sparsity=0.5, rank=4, sqnr=42.0 if m == "int8" else None,
            )
            for m in models for i in range(3)
        ],
        latencies=[Distribution(model=m, quantiles=[0.1, 0.2, 0.3, 0.9], n=500, runtime="onnxruntime") for m in models],
        profile=[NodeTime(model="int8", name=f"node{i}", op="Conv", ms=0.1, share=0.5) for i in range(2)],
        history=[
            {
                "name": "distill.kd", "options": {}, "skipped": {},
                "facts": {"training": {"kept_epoch": 2, "curve": [
                    {"epoch": 1, "loss": 0.9, "accuracy": 50.0}, {"epoch": 2, "loss": 0.5, "accuracy": 60.0},
                ]}},
            }
        ],
    )  # fmt: skip
