"""CUDA events around a call of onnxruntime, on a made-up GPU: no machine of ours has one."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from test_onnxruntime import weight_only

from compresskit.errors import UsageError
from compresskit.runtimes.onnxruntime import OnnxRuntime, OnnxSession

FEEDS = {"x": np.ones((1, 24), np.float32)}


class Gpu:
    """What torch and onnxruntime are asked to do, in order; the calls run on the CPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.opened: list[Any] = []
        cuda = torch.cuda
        monkeypatch.setattr(cuda, "is_available", lambda: True)
        monkeypatch.setattr(cuda, "device", lambda number: nullcontext(self.log.append(f"device {number}")))
        stream = SimpleNamespace(cuda_stream=4711, synchronize=lambda: self.log.append("wait"))
        monkeypatch.setattr(cuda, "Stream", lambda: stream)
        names = iter(("start", "end"))
        monkeypatch.setattr(cuda, "Event", lambda enable_timing: self.event(next(names), stream))
        real = onnxruntime.OrtValue.ortvalue_from_numpy
        monkeypatch.setattr(
            onnxruntime.OrtValue, "ortvalue_from_numpy",
            staticmethod(lambda array, device, number: self.log.append(f"{device} {number}") or real(array)),
        )  # fmt: skip
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
        session = onnxruntime.InferenceSession
        monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *a, providers: self.open(session, a, providers))
        monkeypatch.setattr(OnnxSession, "providers", lambda self: ["CUDAExecutionProvider"])

    def event(self, name: str, stream: Any) -> Any:
        def record(on: Any) -> None:
            assert on is stream
            self.log.append(name)

        return SimpleNamespace(
            record=record, synchronize=lambda: self.log.append(f"{name} reached"), elapsed_time=lambda end: 1.5
        )

    def open(self, session: Any, arguments: tuple[Any, ...], providers: Any) -> Any:
        self.opened.append(providers)
        return Session(session(*arguments, providers=["CPUExecutionProvider"]), self.log)


class Session:
    """A real session of the CPU whose bindings believe in a GPU."""

    def __init__(self, real: Any, log: list[str]) -> None:
        self.real, self.log = real, log

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def io_binding(self) -> Any:
        binding = self.real.io_binding()
        real = binding.bind_output
        binding.bind_output = lambda name, device, number: self.log.append(f"{name} {device} {number}") or real(name)
        return binding

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        self.log.append("run")
        self.real.run_with_iobinding(binding, options)


def test_events_stand_around_a_call_that_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = weight_only(tmp_path / "m.onnx", "MatMul")
    gpu = Gpu(monkeypatch)
    session = OnnxRuntime().open(path, device="cuda:1")
    assert session.device_ms(FEEDS) == session.device_ms(FEEDS) == 1.5
    once = ["wait", "start", "run", "end", "end reached"]
    assert gpu.log == ["device 1", "cuda 1", f"{session.outputs[0]} cuda 1", *3 * once]
    plain, timed = gpu.opened
    assert plain == [("CUDAExecutionProvider", {"device_id": "1"}), "CPUExecutionProvider"]
    assert timed[0] == ("CUDAExecutionProvider", {"device_id": "1", "user_compute_stream": "4711"})


def test_a_gpu_that_fails_beside_the_latency_costs_only_its_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = weight_only(tmp_path / "m.onnx", "MatMul")
    gpu = Gpu(monkeypatch)
    session = OnnxRuntime().open(path, device="cuda")
    monkeypatch.setattr(torch.cuda, "Stream", lambda: (_ for _ in ()).throw(RuntimeError("out of memory")))
    assert session.device_ms(FEEDS) is None and session.device_ms(FEEDS) is None
    assert gpu.log.count("device 0") == 1
    assert session.run(FEEDS)


def test_a_torch_that_does_not_load_costs_only_its_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its libraries of CUDA may clash with onnxruntime's."""
    path, _ = weight_only(tmp_path / "m.onnx", "MatMul")
    Gpu(monkeypatch)
    session = OnnxRuntime().open(path, device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: (_ for _ in ()).throw(OSError("undefined symbol")))
    assert session.device_ms(FEEDS) is None


def test_a_cpu_has_no_events(tmp_path: Path) -> None:
    path, _ = weight_only(tmp_path / "m.onnx", "MatMul")
    assert OnnxRuntime().open(path).device_ms(FEEDS) is None


def test_a_gpu_without_a_number_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = weight_only(tmp_path / "m.onnx", "MatMul")
    Gpu(monkeypatch)
    with pytest.raises(UsageError, match="cuda:x"):
        OnnxRuntime().open(path, device="cuda:x")
