"""What each node of a graph takes of a call, by the runtime's own profiler."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from compresskit.errors import UsageError
from compresskit.runtimes.onnxruntime import OnnxRuntime
from compresskit.runtimes.openvino import OpenVino

if TYPE_CHECKING:
    import numpy as np

    from compresskit.runtimes.base import Runtime

Row = tuple[str, str, float]
"""A node's name, its operator, and its ms a call."""
_WARM = 3


def profile(
    runtime: Runtime, path: Path, threads: int, device: str, feeds: dict[str, np.ndarray], calls: int
) -> list[Row]:
    """Median time of each node, the slowest first.

    Nodes are those of the graph as the engine rewrote it: fused, and some without a name in the file.

    Args:
        runtime: onnxruntime, with any provider, or OpenVINO.
        path: An ``.onnx`` file.
        threads: Of one operator.
        device: Device, as the runtime names it.
        feeds: Arrays by input name.
        calls: That count; three more go before.

    Raises:
        InputError: The engine refuses the file.
        MachineError: The engine isn't installed.
        UsageError: This runtime has no profiler of nodes.
    """
    if isinstance(runtime, OnnxRuntime):
        rows = _onnxruntime(runtime, path, threads, device, feeds, calls)
    elif isinstance(runtime, OpenVino):
        rows = _openvino(runtime, path, threads, device, feeds, calls)
    else:
        raise UsageError(f"{runtime.name} has no profile by node", "use `runtime` onnxruntime or openvino")
    return sorted(rows, key=lambda row: -row[2])


def _onnxruntime(
    runtime: OnnxRuntime, path: Path, threads: int, device: str, feeds: dict[str, np.ndarray], calls: int
) -> list[Row]:
    times: dict[str, list[float]] = defaultdict(list)
    kinds: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="compresskit-") as folder:
        session = runtime.profiled(path, threads, device, Path(folder) / "profile")
        for _ in range(_WARM + calls):
            session.run(feeds)
        file = Path(session.end_profiling())
        events = json.loads(file.read_text(encoding="utf-8", errors="replace"))
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            name = name.removesuffix("_kernel_time")
            times[name].append(float(event["dur"]) / 1e3)
            kinds[name] = str(event.get("args", {}).get("op_name", ""))
    return [(name, kinds[name], median(found[_WARM:] or found)) for name, found in times.items()]


def _openvino(
    runtime: OpenVino, path: Path, threads: int, device: str, feeds: dict[str, np.ndarray], calls: int
) -> list[Row]:
    session = runtime.open(path, threads, device, profiling=True)
    times: dict[str, list[float]] = defaultdict(list)
    kinds: dict[str, str] = {}
    for call in range(_WARM + calls):
        session.run(feeds)
        for name, kind, ms in session.node_times() if call >= _WARM else ():
            times[name].append(ms)
            kinds[name] = kind
    return [(name, kinds[name], median(found)) for name, found in times.items()]
