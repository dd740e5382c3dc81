"""What the library refuses to compare is what the command line refuses."""

from __future__ import annotations

from typing import Any

import pytest

import compresskit
from compresskit.benchmark.target import here
from compresskit.errors import UsageError

ELSEWHERE = "x86-vnni" if here().saturates else "x86-avx2"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": ELSEWHERE, "runtime": "openvino"}, "can be emulated for onnxruntime only"),
        ({"metric": "accuracy"}, "`metric` needs data"),
        ({"max_drop": "1%"}, "`max_drop` needs evaluation data\ngive `data`"),
        ({"min_speedup": 1.2, "bench": False}, "`min_speedup` needs the speed measured"),
        ({"min_speedup": 1.2}, "needs a second model"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_read(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as error:
        compresskit.compare(["nothing.onnx"], **options)
    assert words in str(error.value)
