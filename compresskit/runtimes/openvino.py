"""OpenVINO: the engine that is often the fastest on x86."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compresskit.errors import InputError, MachineError, UsageError
from compresskit.runtimes.base import require
from compresskit.runtimes.onnxfile import Graph, index_limits, scan

if TYPE_CHECKING:
    import numpy as np

_TELEMETRY = "openvino_telemetry"
_PACKED = {"MatMulNBits", "GatherBlockQuantized"}
_GROUP = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
_GROUPS = range(32, 129)
"""Activation groups that its kernels take; larger ones were as slow as float32."""
_ABSENT = object()


class OpenVino:
    """Runs ``.onnx`` files.

    OpenVINO computes float models in bfloat16 where the CPU has it. ``f32`` keeps single precision, so that its figures
    and those of other engines are of the same arithmetic; ``bf16`` is what it would do by itself, under its own name.
    Threads aren't bound to cores: bound ones wait where anything else runs.

    Args:
        precision: Of float operators; int8 and packed ones are not changed by it.
    """

    def __init__(self, precision: Literal["f32", "bf16"] = "f32") -> None:
        self.precision = precision
        self.name = "openvino" if precision == "f32" else f"openvino-{precision}"

    def missing(self) -> str | None:
        """None when OpenVINO is installed."""
        if importlib.util.find_spec("openvino") is not None:
            return None
        return "openvino is not installed: pip install 'compresskit[openvino]'"

    def prepare(self) -> Any:
        """Import the library with its telemetry left out, which would write and send at the import already.

        Raises:
            MachineError: It isn't installed, or doesn't load here.
        """
        require(self)
        before = sys.modules.get(_TELEMETRY, _ABSENT)
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # its import then fails, and OpenVINO takes a stub
        try:
            import openvino
        except ImportError as error:
            raise MachineError(f"openvino does not load here: {error}", "pip install `upgrade` openvino") from error
        finally:
            if before is _ABSENT:
                sys.modules.pop(_TELEMETRY, None)
            else:
                sys.modules[_TELEMETRY] = before  # type: ignore[assignment]
        return openvino

    def open(self, path: Path, threads: int = 0, device: str = "cpu", *, profiling: bool = False) -> OpenVinoSession:
        """Load a model.

        Args:
            path: The ``.onnx`` file; external data is found beside it.
            threads: Threads of one operator; 0 is one for each physical core.
            device: ``cpu``, or ``gpu`` or ``npu`` where OpenVINO finds one.
            profiling: Time each node, see :meth:`OpenVinoSession.node_times`.

        Raises:
            InputError: OpenVINO refuses the file, or lacks one of its operators.
            MachineError: OpenVINO isn't installed, lacks the device or the precision, or runs out of memory.
            UsageError: The device has no known name.
        """
        library = self.prepare()
        if not path.is_file():
            raise InputError(f"{path} is not a file", "give the path of an .onnx file")
        core = library.Core()
        where = self._device(core, device)
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": self.precision, "PERFORMANCE_HINT": "LATENCY"}
        settings |= {"PERF_COUNT": True} if profiling else {}
        if where == "CPU":
            settings |= {"NUM_STREAMS": "1", "ENABLE_CPU_PINNING": False}
            settings |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
        graph = scan(path)
        if where == "CPU" and (group := _activation_group(graph)):
            settings[_GROUP] = str(group)
        if not graph.outputs:
            raise InputError(f"openvino cannot load {path.name}: it is not an ONNX file, or is cut off")
        try:
            # Only the ONNX reader: read_model would try the readers of all formats, and each prints its complaints.
            reader = library.frontend.FrontEndManager().load_by_framework("onnx")
            compiled = core.compile_model(reader.convert(reader.load(str(path))), where, settings)
            return OpenVinoSession(compiled, path.name, graph)
        except Exception as error:  # OpenVINO raises RuntimeError and kinds of pybind11
            raise _wrapped(error, f"openvino cannot load {path.name}") from error

    def _device(self, core: Any, device: str) -> str:
        kind = device.partition(":")[0]
        if kind not in ("cpu", "gpu", "npu"):
            raise UsageError(f"openvino has no device '{device}'", "use cpu, gpu or npu")
        where = device.upper().replace(":", ".")
        if not any(found.split(".")[0] == kind.upper() for found in core.available_devices):
            raise MachineError(f"openvino finds no {kind} here", "use `device` cpu")
        if self.precision == "bf16" and "BF16" not in core.get_property(where, "OPTIMIZATION_CAPABILITIES"):
            raise MachineError("this processor has no bfloat16", "use `runtime` openvino")
        return where


class OpenVinoSession:
    """A loaded ONNX model; ``notes`` says what the engine does to the arithmetic of its own accord."""

    def __init__(self, compiled: Any, name: str, graph: Graph) -> None:
        self._request = compiled.create_infer_request()
        self._name = name
        limits = index_limits(graph)
        # The engine keeps neither the names of free axes nor the order of what it found unused: the file says both.
        self.inputs = tuple(
            replace(spec, high=limits.get(spec.name)) if "int" in spec.dtype else spec for spec in graph.inputs
        )
        self.outputs = tuple(graph.outputs)
        known = {name for port in compiled.inputs for name in port.names}
        self._used = {spec.name for spec in self.inputs if spec.name in known}
        self._ports = [compiled.output(name) for name in self.outputs]
        self._checked: dict[str, tuple[Any, tuple[int, ...]]] | None = None
        self.notes = _notes(compiled, graph)

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One forward pass.

        Raises:
            InputError: A feed is missing, unknown or of the wrong type or shape, or an operator fails.
            MachineError: Out of memory.
        """
        shapes = {name: (array.dtype, array.shape) for name, array in feeds.items()}
        if shapes != self._checked:  # the engine itself converts types, and takes a feed of any shape
            self._check(feeds)
            self._checked = shapes
        try:
            found = self._request.infer({n: a for n, a in feeds.items() if n in self._used}, share_inputs=True)
            return {name: found[port] for name, port in zip(self.outputs, self._ports, strict=True)}
        except Exception as error:
            raise _wrapped(error, f"openvino cannot run {self._name}") from error

    def node_times(self) -> list[tuple[str, str, float]]:
        """Name, operator and ms of each node that the last run executed; empty without profiling."""
        return [
            (str(node.node_name), str(node.node_type), node.real_time.total_seconds() * 1e3)
            for node in self._request.profiling_info
            if "EXECUTED" in str(node.status)
        ]

    def _check(self, feeds: dict[str, np.ndarray]) -> None:
        names = [spec.name for spec in self.inputs]
        if set(feeds) != set(names):
            raise InputError(f"{self._name} takes the inputs {', '.join(names)}; given: {', '.join(feeds) or 'none'}")
        for spec in self.inputs:
            array = feeds[spec.name]
            fits = len(array.shape) == len(spec.shape) and all(
                isinstance(size, str) or size == given for size, given in zip(spec.shape, array.shape, strict=True)
            )
            if str(array.dtype) != spec.dtype or not fits:
                given, wanted = (f"{a.dtype} ({', '.join(map(str, a.shape))})" for a in (array, spec))
                raise InputError(f"{self._name}: input '{spec.name}' is {given}, expected {wanted}")


def _activation_group(graph: Graph) -> int:
    """Columns of activations that share a scale: as many as those of the weights, where one number fits all; else 0.

    The engine's own choice of 32 costs 10 to 20 % with weights in groups of 64 or 128; a larger group than that of the
    weights sends a product back to float32.
    """
    sizes = {node.ints.get("block_size", 0) for node in graph.nodes if node.op == "MatMulNBits"}
    least = min(sizes, default=0)
    return least if least in _GROUPS and all(size % least == 0 for size in sizes) else 0


def _notes(compiled: Any, graph: Graph) -> tuple[str, ...]:
    """What the engine does beyond the file: with packed weights it may round activations to 8 bit, in groups."""
    kinds = {node.op for node in graph.nodes}
    packed = bool(kinds & _PACKED) or ("DequantizeLinear" in kinds and "QuantizeLinear" not in kinds)
    try:
        group = int(compiled.get_property(_GROUP)) if packed else 0
    except (RuntimeError, TypeError, ValueError):  # a device without this property
        return ()
    return (f"openvino may round activations to 8 bit in groups of {group} before packed weights",) if group else ()


def _wrapped(error: Exception, what: str) -> InputError | MachineError:
    """The engine's error as one of ours: what it complains of, without its chain of source files."""
    lines = [line.strip() for line in str(error).splitlines()]
    noise = ("Exception from ", "Check '", "FrontEnd API failed", "Model wasn't fully", "Summary:", "Loading input")
    said = [line.removeprefix("-- ") for line in lines if line and not line.startswith(noise)]
    text = f"{what}: {(said or [line for line in lines if line] or [type(error).__name__])[0]}"
    if isinstance(error, MemoryError) or "bad_alloc" in text or "Cannot allocate memory" in text:
        return MachineError(text, "close other programs, or use a smaller batch")
    return InputError(text)
