"""How long the GPU itself works on a call under onnxruntime, by CUDA events."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


class CudaCalls:
    """A session on a stream of torch's, with its inputs and outputs on the GPU, so that events see the kernels alone.

    onnxruntime has no events of its own: those of torch stand on the stream that it is given, before and behind a call
    that doesn't wait. The stream is a new one, since 0, torch's default, means no stream to onnxruntime.

    Args:
        open_on: Opens the session with the provider options that it is given.
        feeds: One array for each input.
        number: Of the GPU.
    """

    def __init__(self, open_on: Callable[[dict[str, str]], Any], feeds: dict[str, np.ndarray], number: int) -> None:
        import onnxruntime
        import torch

        cuda: Any = torch.cuda
        with cuda.device(number):
            self._stream = cuda.Stream()
            self._start, self._end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        self._session = open_on({"user_compute_stream": str(self._stream.cuda_stream)})
        self._binding = self._session.io_binding()
        for name, array in feeds.items():
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", number)
            self._binding.bind_ortvalue_input(name, value)
        for output in self._session.get_outputs():
            self._binding.bind_output(output.name, "cuda", number)
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self.ms()  # the first call allocates, and chooses kernels

    def ms(self) -> float:
        """Milliseconds of one call."""
        self._stream.synchronize()
        self._start.record(self._stream)
        self._session.run_with_iobinding(self._binding, self._options)
        self._end.record(self._stream)
        self._end.synchronize()
        return float(self._start.elapsed_time(self._end))


def available() -> bool:
    """True where torch is installed and can reach a GPU of NVIDIA's."""
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())
