"""Settings of onnxruntime that matter on a small device: latency, time to load, and memory on top.

Each setting runs in processes of its own, all settings in turn and the whole five times; ratios are of the same turn.
The memory is what the process grows by from the import of onnxruntime on, to its peak.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from harness import Bench, workplace
from small_models import FEEDS, images, texts

ROUNDS, SECONDS = 5, 0.5
RUN = (
    FEEDS
    + """
import json, sys, time
import onnxruntime as ort
path, settings, seconds = sys.argv[1], json.loads(sys.argv[2]), float(sys.argv[3])

def resident(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(key))

options = ort.SessionOptions()
options.log_severity_level = 4
options.inter_op_num_threads = 1
options.intra_op_num_threads = settings.pop("threads", 1)
options.enable_cpu_mem_arena = settings.pop("arena", True)
settings = {"session.intra_op.allow_spinning": "0", **settings}
if "write" in settings:
    options.optimized_model_filepath = settings.pop("write")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    if options.optimized_model_filepath.endswith(".ort"):
        settings["session.save_model_format"] = "ORT"
for key, value in settings.items():
    options.add_session_config_entry(key, value)
before, start = resident("VmRSS"), time.perf_counter()
session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
load = time.perf_counter() - start
given, calls = feeds(session), []
session.run(None, given)
end = time.perf_counter() + seconds
while time.perf_counter() < end:
    start = time.perf_counter()
    session.run(None, given)
    calls.append(time.perf_counter() - start)
print(json.dumps([1e3 * float(np.median(calls or [0])), 1e3 * load, resident("VmHWM") - before]))
"""
)
AS_IS = "as compresskit runs it, one thread"
SETTINGS: dict[str, dict[str, object]] = {
    AS_IS: {},
    "optimized beforehand, .onnx": {"file": ".onnx"},
    "optimized beforehand, .ort": {"file": ".ort"},
    "no arena": {"arena": False},
    "weights not packed for the kernels": {"session.disable_prepacking": "1"},
    "two threads": {"threads": 2},
    "two threads, spinning": {"threads": 2, "session.intra_op.allow_spinning": "1"},
}


def main() -> None:
    bench = Bench("small devices", __doc__ or "", data=True)
    if not Path("/proc/self/status").exists():
        sys.exit("memory is measured on Linux only")
    with workplace() as folder:
        for name, path in {**images(bench, folder), **texts(bench, folder)}.items():
            if bench.wants(name):
                compared(bench, name, path)
    bench.end()


def compared(bench: Bench, name: str, path: Path) -> None:
    """One row a setting, held against the first."""
    for kind in (".onnx", ".ort"):
        run(path, {"write": str(path.with_suffix(f".beforehand{kind}"))}, 0.0)
    found: dict[str, list[list[float]]] = {setting: [] for setting in SETTINGS}
    for turn in range(1 if bench.quick else ROUNDS):
        for setting in sorted(SETTINGS, reverse=bool(turn % 2)):
            options = dict(SETTINGS[setting])
            kind = options.pop("file", None)
            found[setting].append(run(path.with_suffix(f".beforehand{kind}") if kind else path, options, SECONDS))
    first = np.array(found[AS_IS])
    for setting, values in found.items():
        each = np.array(values)
        latency, load, memory = np.median(each, axis=0)
        times, loads, more = np.median(each / first, axis=0)
        bench.row(
            f"{name}, {setting}", "", f"{latency:.2f} ms", len(values),
            f"{times:.2f}× the first's; load {load:.0f} ms ({loads:.2f}×), memory {memory:.0f} MB ({more:.2f}×)",
        )  # fmt: skip


def run(path: Path, options: dict[str, object], seconds: float) -> list[float]:
    """Latency and time to load in ms, and memory in MB, of a process of its own."""
    words = [sys.executable, "-c", RUN, str(path), json.dumps(options), str(seconds)]
    done = subprocess.run(words, stdout=subprocess.PIPE, check=True, text=True)
    return [float(value) for value in json.loads(done.stdout)]


if __name__ == "__main__":
    main()
