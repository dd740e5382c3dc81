"""What a GPU tells through NVML, which is made up here: no machine that runs these tests need have one."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest

from compresskit.benchmark import energy
from compresskit.benchmark.gpu import Gpu


class Refused(Exception):
    """As pynvml.NVMLError."""


def nvml(**changes: object) -> SimpleNamespace:
    processes = [SimpleNamespace(pid=1, usedGpuMemory=7), SimpleNamespace(pid=os.getpid(), usedGpuMemory=3 << 20)]
    return SimpleNamespace(**{
        "NVMLError": Refused,
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: f"index {index}",
        "nvmlDeviceGetHandleByUUID": lambda name: f"uuid {name}",
        "nvmlDeviceGetTotalEnergyConsumption": lambda handle: {"index 0": 5_000, "index 3": 9_000}.get(handle, 1),
        "nvmlDeviceGetComputeRunningProcesses": lambda _: processes,
        **changes,
    })  # fmt: skip


def refuse(*_: object) -> None:
    raise Refused


@pytest.fixture(autouse=True)
def visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)


def test_energy_and_memory_are_those_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    gpu = Gpu("cuda")
    before = gpu.counters()
    assert gpu.memory() == 3 << 20
    later = {name: (value + 2_500_000, top) for name, (value, top) in before.items()}
    assert energy.joules(before, later) == 2.5
    assert before == {"gpu": (5_000_000, 0)}, "mJ to uJ"


@pytest.mark.parametrize(
    ("names", "device", "expected"), [("3,0", "cuda", 9_000), ("3,0", "cuda:1", 5_000), ("GPU-a", "cuda", 1)]
)
def test_numbers_are_those_of_cuda(monkeypatch: pytest.MonkeyPatch, names: str, device: str, expected: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.setitem(sys.modules, "pynvml", nvml(nvmlDeviceGetCount=lambda: 4))
    assert Gpu(device).counters() == {"gpu": (1000 * expected, 0)}


def test_another_gpu_is_never_taken_for_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's numbers begin with the fastest GPU, NVML's with the first on the bus."""
    monkeypatch.setitem(sys.modules, "pynvml", nvml(nvmlDeviceGetCount=lambda: 2))
    assert Gpu("cuda").counters() == {}
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert Gpu("cuda").counters() == {"gpu": (5_000_000, 0)}


@pytest.mark.parametrize("device", ["cpu", "mps", "cuda", "cuda:9", "cuda:x"])
def test_what_is_not_known_is_left_out(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0" if device != "cuda" else "")
    monkeypatch.setitem(sys.modules, "pynvml", nvml(nvmlInit=refuse) if device == "cuda" else nvml())
    gpu = Gpu(device)
    assert gpu.counters() == {} and gpu.memory() is None


def test_an_old_gpu_and_a_container_tell_what_they_can(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [SimpleNamespace(pid=1, usedGpuMemory=7)]
    made = nvml(
        nvmlDeviceGetTotalEnergyConsumption=refuse, nvmlDeviceGetComputeRunningProcesses=lambda _: others
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", made)
    assert Gpu("cuda").counters() == {} and Gpu("cuda").memory() is None


def test_without_the_package_or_the_driver_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (None, nvml(nvmlInit=refuse)):
        monkeypatch.setitem(sys.modules, "pynvml", module)
        assert Gpu("cuda").counters() == {} and Gpu("cuda").memory() is None
