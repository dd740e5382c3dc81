from __future__ import annotations

from typing import Any

import pytest

from compresskit.report import Coverage, Gate, Measurement, ModelEntry, Report, Verdict

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


@pytest.fixture
def report() -> Report:
    return make_report()
