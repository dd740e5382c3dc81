"""What NVML tells of an NVIDIA GPU: the energy that it took, and the memory that this process holds on it."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from compresskit.benchmark.energy import Counters


class Gpu:
    """A GPU by its name in torch and onnxruntime: ``cuda`` or ``cuda:1``, among those that are visible here.

    Without NVIDIA's driver, or without the package ``nvidia-ml-py``, it knows nothing and says so with empty answers.
    """

    def __init__(self, device: str) -> None:
        self._nvml: Any = None
        if device.partition(":")[0] != "cuda":
            return
        with suppress(ImportError):
            import pynvml

            with suppress(pynvml.NVMLError, ValueError, IndexError):
                pynvml.nvmlInit()
                self._handle = _handle(pynvml, int(device.partition(":")[2] or 0))
                self._nvml = pynvml

    def counters(self) -> Counters:
        """As :func:`compresskit.benchmark.energy.read`; empty where the GPU has no counter (older than Volta)."""
        if self._nvml is not None:
            with suppress(self._nvml.NVMLError):
                return {"gpu": (1000 * int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)), 0)}
        return {}

    def memory(self) -> int | None:
        """Bytes that this process holds; None where it isn't known, as in containers of their own process numbers."""
        if self._nvml is not None:
            with suppress(self._nvml.NVMLError):
                for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle):
                    if process.pid == os.getpid() and process.usedGpuMemory is not None:
                        return int(process.usedGpuMemory)
        return None


def _handle(nvml: Any, number: int) -> Any:
    """NVML counts all GPUs, CUDA those that ``CUDA_VISIBLE_DEVICES`` names, by number or by UUID.

    Raises:
        ValueError: Numbers may mean another GPU there: CUDA begins with the fastest, unless it is told otherwise.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    name = visible.split(",")[number].strip() if visible else str(number)
    if not name.isdigit():
        return nvml.nvmlDeviceGetHandleByUUID(name)
    if os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID" and nvml.nvmlDeviceGetCount() > 1:
        raise ValueError("the order of CUDA's numbers isn't known")
    return nvml.nvmlDeviceGetHandleByIndex(int(name))
