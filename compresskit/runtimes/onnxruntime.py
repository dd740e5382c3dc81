"""onnxruntime: the engine that most exported models meet."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from compresskit.errors import InputError, MachineError, UsageError
from compresskit.model import InputSpec
from compresskit.runtimes.base import require
from compresskit.runtimes.onnxfile import folds_weights, index_limits, scan

if TYPE_CHECKING:
    import numpy as np

    from compresskit.runtimes.cuda_events import CudaCalls

_DTYPES = {"float": "float32", "double": "float64"}  # the other names are numpy's own
PROVIDERS = {
    "cuda": ("CUDAExecutionProvider", "pip install onnxruntime-gpu in its place (NVIDIA)"),
    "tensorrt": ("TensorrtExecutionProvider", "pip install onnxruntime-gpu in its place, and TensorRT (NVIDIA)"),
    "openvino": ("OpenVINOExecutionProvider", "pip install onnxruntime-openvino in its place (Intel)"),
    "coreml": ("CoreMLExecutionProvider", "onnxruntime for macOS has it"),
    "xnnpack": ("XnnpackExecutionProvider", "an onnxruntime built with XNNPACK has it"),
    "qnn": ("QNNExecutionProvider", "pip install onnxruntime-qnn in its place (Qualcomm)"),
}
"""Of a runtime's name behind ``onnxruntime-``: the provider, and how to get it."""


Providers: TypeAlias = "Sequence[str | tuple[str, dict[str, str]]]"
"""As onnxruntime takes them: the first choice first, each with its settings where it has some."""
_CUDA = "CUDAExecutionProvider"


class OnnxRuntime:
    """Runs ``.onnx`` files.

    Waiting threads sleep, they don't spin. Measured with two threads: a spinning pool keeps a core busy for 30 ms after
    each run, which slows down whatever is timed next, and on a busy machine a run takes up to four times as long. On an
    idle one spinning gains 10-20 % for layers of a tenth of a millisecond, float and int8 alike, so ratios stay.

    Args:
        exact: Apply only the graph rewrites that keep the arithmetic, so that the outputs are those of the file's
            operators as written. Without it onnxruntime may round activations to int8, for instance where it makes
            MatMulNBits of a ``DequantizeLinear`` and a MatMul.
        provider: Execution provider, a key of ``PROVIDERS``; empty is the CPU's own. What a provider doesn't take is
            run by the CPU's, as onnxruntime always does.
    """

    name = "onnxruntime"

    def __init__(self, exact: bool = False, provider: str = "") -> None:
        self.exact = exact
        self.provider = provider
        if provider:
            self.name = f"onnxruntime-{provider}"
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when the library loads; on by default since 1.29

    def missing(self) -> str | None:
        """None when onnxruntime is installed, and has the provider."""
        if importlib.util.find_spec("onnxruntime") is None:
            return "onnxruntime is not installed: pip install onnxruntime"
        if self.provider:
            import onnxruntime

            title, way = PROVIDERS[self.provider]
            if title not in onnxruntime.get_available_providers():
                return f"this onnxruntime has no {title.removesuffix('ExecutionProvider')} provider: {way}"
        return None

    def prepare(self) -> Any:
        """Import the library.

        Raises:
            MachineError: It isn't installed.
        """
        require(self)
        import onnxruntime

        return onnxruntime

    def open(self, path: Path, threads: int = 0, device: str = "cpu") -> OnnxSession:
        """Load a model.

        Args:
            path: The ``.onnx`` file; external data is found beside it.
            threads: Threads of one operator; 0 is one for each physical core.
            device: ``cpu``, or ``cuda`` or ``cuda:1`` where the GPU build is installed.

        Raises:
            InputError: onnxruntime refuses the file.
            MachineError: onnxruntime isn't installed, lacks the device, or runs out of memory.
            UsageError: The device has no known name.
        """
        return self._opened(path, threads, device)

    def profiled(self, path: Path, threads: int, device: str, file: Path) -> OnnxSession:
        """As :meth:`open`, each node timed into a file whose name begins so: see :meth:`OnnxSession.end_profiling`."""
        return self._opened(path, threads, device, file)

    def _opened(self, path: Path, threads: int, device: str, profile: Path | None = None) -> OnnxSession:
        ort = self.prepare()
        if not path.is_file():
            raise InputError(f"{path} is not a file", "give the path of an .onnx file")
        providers = self.providers() if self.provider else _providers(ort, device)
        graph = scan(path)
        options = self.options(ort, threads)
        if not self.exact and folds_weights(graph):
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        load = partial(self.load, ort, str(path), options, name=path.name, limits=index_limits(graph))
        session = load(_settled(providers, device))
        if providers[0] not in (found := session.providers()):
            lack = f"{providers[0]} did not start here, onnxruntime would use {', '.join(found)}"
            raise MachineError(lack, "its libraries or its device are missing: see onnxruntime's page on this provider")
        if providers[0] == _CUDA:
            session.reopen = lambda more: load(_settled(providers, device, more))
            session.number = _number(device)
        return session

    def providers(self) -> list[str]:
        """What a session is opened with on a CPU, or for this runtime's own provider."""
        own = [PROVIDERS[self.provider][0]] if self.provider else []
        return [*own, "CPUExecutionProvider"]

    @staticmethod
    def load(
        ort: Any, model: str | bytes, options: Any, providers: Providers, name: str, limits: dict[str, int]
    ) -> OnnxSession:
        """A session of a file or of a serialized model, named ``name`` in errors; raises as :meth:`open`."""
        try:
            engine = ort.InferenceSession(model, options, providers=providers)
        except Exception as error:  # onnxruntime has one class of error for each status, none with a base of its own
            raise _wrapped(error, f"onnxruntime cannot load {name}") from error
        return OnnxSession(engine, name, limits)

    def options(self, ort: Any, threads: int) -> Any:
        """How a session is to run: see the class."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what goes wrong is raised; it would be printed too, in colours
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_BASIC if self.exact else level.ORT_ENABLE_ALL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return options


class OnnxSession:
    """A loaded ONNX model; ``high`` of an integer input is read off the table that it indexes."""

    def __init__(self, engine: Any, name: str, limits: dict[str, int]) -> None:
        self._engine = engine
        self._name = name
        self.reopen: Callable[[dict[str, str]], OnnxSession] | None = None  # on a GPU, with more settings
        self.number = 0  # of the GPU
        self._calls: CudaCalls | None = None
        self.inputs = tuple(input_spec(value, limits) for value in engine.get_inputs())
        self.outputs = tuple(value.name for value in engine.get_outputs())
        self.output_shapes = {value.name: tuple(value.shape) for value in engine.get_outputs()}

    def providers(self) -> list[str]:
        """The execution providers that take part, the first choice first."""
        return list(self._engine.get_providers())

    def end_profiling(self) -> str:
        """Where the profiler wrote what it saw of a session that was opened with profiling."""
        return str(self._engine.end_profiling())

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One forward pass.

        Raises:
            InputError: A feed is missing, unknown or of the wrong type or shape, or an operator fails.
            MachineError: Out of memory.
        """
        try:
            values = self._engine.run(None, feeds)
        except Exception as error:
            raise _wrapped(error, f"onnxruntime cannot run {self._name}") from error
        return dict(zip(self.outputs, values, strict=True))

    def device_ms(self, feeds: dict[str, np.ndarray]) -> float | None:
        """Time of one call on a CUDA device by its own events, inputs and outputs there; None on others, without a
        torch that reaches the GPU, and where a second session of the model doesn't run.
        """
        from compresskit.runtimes.cuda_events import CudaCalls, available

        again = self.reopen
        if again is None:
            return None
        try:
            if self._calls is None and available():
                self._calls = CudaCalls(lambda more: again(more)._engine, feeds, self.number)
            return None if self._calls is None else self._calls.ms()
        except Exception:  # a figure beside the latency, which was measured already: no reason to lose that
            self.reopen = None
            return None


def _settled(providers: list[str], device: str, more: dict[str, str] | None = None) -> Providers:
    """The providers, those of NVIDIA's GPUs with the number of theirs."""
    settings = {"device_id": str(_number(device)), **(more or {})}
    return [(name, settings) if name in (_CUDA, "TensorrtExecutionProvider") else name for name in providers]


def _number(device: str) -> int:
    """That of ``cuda:1``; 0 where none is named."""
    kind, colon, number = device.partition(":")
    if kind == "cuda" and colon and not number.isdecimal():
        raise UsageError(f"there is no device '{device}'", "cuda and cuda:1 are names of GPUs")
    return int(number) if kind == "cuda" and number else 0


def _providers(ort: Any, device: str) -> list[str]:
    if device == "cpu":
        return ["CPUExecutionProvider"]
    if device.partition(":")[0] != "cuda":
        raise UsageError(f"onnxruntime has no device '{device}'", "use cpu or cuda")
    if _CUDA not in ort.get_available_providers():
        raise MachineError("this onnxruntime has no CUDA support", "pip install onnxruntime-gpu, or use `device` cpu")
    return [_CUDA, "CPUExecutionProvider"]


def input_spec(value: Any, limits: dict[str, int]) -> InputSpec:
    """An input as onnxruntime tells it; ``limits`` are those of indices by name."""
    dtype = str(value.type).removeprefix("tensor(").removesuffix(")")
    dtype = _DTYPES.get(dtype, dtype)
    shape = tuple(
        size if isinstance(size, int) and size >= 0 else str(size or f"{value.name}_{axis}")
        for axis, size in enumerate(value.shape)
    )
    return InputSpec(value.name, dtype, shape, limits.get(value.name) if "int" in dtype else None)


def _wrapped(error: Exception, what: str) -> InputError | MachineError:
    """The engine's error as one of ours, its first line kept."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = f"{what}: {lines[0].removeprefix('[ONNXRuntimeError] : ')}"
    if isinstance(error, MemoryError) or "bad_alloc" in text or "Failed to allocate memory" in text:
        return MachineError(text, "close other programs, or use a smaller batch")
    return InputError(text)
