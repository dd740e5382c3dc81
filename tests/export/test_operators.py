"""The exporter's operators are read once, and what comes out is the same."""

from __future__ import annotations

import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.onnx._internal.exporter import _registration

from compresskit.exporter import operators
from compresskit.exporter.onnx_export import export_onnx
from compresskit.model import InputSpec

pytestmark = pytest.mark.usefixtures("translated_anew")
INPUTS = (InputSpec("x", "float32", ("batch", 1, 8, 8)),)


def net() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(1, 4, 3), torch.nn.GELU(), torch.nn.Flatten(), torch.nn.Linear(144, 3)
    return torch.nn.Sequential(*layers).eval()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """One entry for each time that the operators are read."""
    real, found = vars(_registration.ONNXRegistry)["from_torchlib"], []

    def from_torchlib(kind: Any, *args: Any, **kwargs: Any) -> Any:
        found.append(kwargs)
        return real.__func__(kind, *args, **kwargs)

    monkeypatch.setattr(operators, "_read", {})
    monkeypatch.setattr(_registration.ONNXRegistry, "from_torchlib", classmethod(from_torchlib))
    return found


def test_a_second_export_reads_nothing_anew_and_writes_the_same(tmp_path: Path, reads: list[Any]) -> None:
    before = vars(_registration.ONNXRegistry)["from_torchlib"]
    for name in ("a", "b"):
        export_onnx(net(), INPUTS, tmp_path / f"{name}.onnx")
    assert len(reads) == 1
    assert vars(_registration.ONNXRegistry)["from_torchlib"] is before
    operators._read.clear()
    export_onnx(net(), INPUTS, tmp_path / "c.onnx")
    assert len(reads) == 2
    assert len({(tmp_path / f"{name}.onnx").read_bytes() for name in "abc"}) == 1


def test_a_torch_that_keeps_them_elsewhere_still_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere:
        def __init__(self, real: Any) -> None:
            self.real = real

        def __get__(self, *_: Any) -> Any:
            return self.real

    real = _registration.ONNXRegistry.from_torchlib
    monkeypatch.setattr(operators, "_read", {})
    monkeypatch.setattr(_registration.ONNXRegistry, "from_torchlib", Elsewhere(real))
    export_onnx(net(), INPUTS, tmp_path / "a.onnx")
    assert operators._read == {}


def test_what_torchvision_brings_is_not_missed(
    tmp_path: Path, reads: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch lists its operators only once it is imported."""
    export_onnx(net(), INPUTS, tmp_path / "a.onnx")
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    export_onnx(net(), INPUTS, tmp_path / "b.onnx")
    assert len(reads) == 2


def test_two_threads_leave_torch_as_it_was() -> None:
    before = vars(_registration.ONNXRegistry)["from_torchlib"]
    second = threading.Event()

    def inside() -> None:
        with operators.read_once():
            second.set()

    with operators.read_once():
        other = threading.Thread(target=inside)
        other.start()
        assert not second.wait(0.2)
    other.join(20)
    assert second.is_set() and vars(_registration.ONNXRegistry)["from_torchlib"] is before
