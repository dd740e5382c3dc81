"""``compresskit serve`` under 100,000 requests, one in a hundred malformed: answers, log and memory."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from harness import ROOT, Bench, absent, command, workplace
from onnx import TensorProto, helper, numpy_helper

REQUESTS, CLIENTS, EVERY = 100_000, 32, 100
COLUMNS, WIDTH, ROWS = 64, 64, 2


def model(path: Path) -> Path:
    """A perceptron of two layers."""
    rng = np.random.default_rng(0)
    stored = {"a": rng.normal(size=(COLUMNS, WIDTH)), "b": rng.normal(size=(WIDTH, 10))}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "perceptron",
        [value("x", TensorProto.FLOAT, ["batch", COLUMNS])], [value("y", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in stored.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), str(path))
    return path


def bodies() -> tuple[bytes, list[bytes]]:
    """One that is right, and ways to be wrong."""
    data = [float(n) for n in np.random.default_rng(1).normal(size=ROWS * COLUMNS).round(3)]
    tensor = {"name": "x", "shape": [ROWS, COLUMNS], "datatype": "FP32", "data": data}

    def made(**changes: object) -> bytes:
        return json.dumps({"inputs": [{**tensor, **changes}]}).encode()

    good = made()
    bad = [
        b"", b"{", b"[" * 20_000, b"\xff\xfe", b"[]", good[:-20], made(data=data[1:]), made(data=["1"] * len(data)),
        made(data=[float("nan")] * len(data)), made(data=[1e300] * len(data)), made(data=[10**400] * len(data)),
        made(datatype="INT8"), made(shape=[1, 9]), made(shape=[1 << 65, COLUMNS]), made(shape=[10_000, COLUMNS]),
        made(name="y"), made(typo=1),
    ]  # fmt: skip
    return good, bad


def resident(pid: int) -> int:
    """Bytes that a process holds in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Hammer:
    """Clients that share a count of requests."""

    def __init__(self, port: int, total: int) -> None:
        self.port, self.total, self.done = port, total, 0
        self.codes: Counter[tuple[bool, int]] = Counter()
        self.lost = 0
        self._lock = threading.Lock()
        self._good, self._bad = bodies()

    def client(self, seed: int) -> None:
        """Ask until the count is reached, on one connection."""
        chance = random.Random(seed)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        while True:
            with self._lock:
                if self.done >= self.total:
                    return
                self.done += 1
                malformed = self.done % EVERY == 0
            content = chance.choice(self._bad) if malformed else self._good
            try:
                connection.request("POST", "/v2/models/m/infer", content)
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                self.lost += 1
                continue
            with self._lock:
                self.codes[malformed, answer.status] += 1


def main() -> None:
    bench = Bench("serve", __doc__ or "")
    if not Path("/proc/self/statm").is_file():
        absent("/proc, which tells the memory of a process", "run this on Linux")
    total = REQUESTS // 50 if bench.quick else REQUESTS
    with workplace() as folder, (folder / "log").open("w+", encoding="utf-8") as log:
        words = command("serve", model(folder / "m.onnx"), "--port", 0, "--threads", 1)
        server = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
        assert server.stdout is not None
        line = server.stdout.readline()
        if not line:
            sys.exit("the server did not start")
        hammer = Hammer(int(line.split(":")[3].partition("/")[0]), total)
        threads = [threading.Thread(target=hammer.client, args=(seed,)) for seed in range(CLIENTS)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        memory: dict[int, int] = {}  # by tenth of the requests, at its end
        while any(thread.is_alive() for thread in threads):
            memory[min(10, 10 * hammer.done // total)] = resident(server.pid)
            time.sleep(0.05)
        took = time.perf_counter() - start
        server.send_signal(signal.SIGTERM)
        code = server.wait(60)
        log.seek(0)
        said = log.read()
    good = sum(n for (malformed, _), n in hammer.codes.items() if not malformed)
    bad = sum(n for (malformed, _), n in hammer.codes.items() if malformed)
    refused = sum(n for (malformed, status), n in hammer.codes.items() if malformed and 400 <= status < 500)
    right = hammer.codes[False, 200]
    before, after = memory.get(2, memory[min(memory)]), memory[max(memory)]
    growth = (after / before - 1) * 100
    bench.row("whole requests answered 200", "all", f"{right}", good + hammer.lost, "", right == good + hammer.lost)
    bench.row("malformed requests answered 4xx", "all", f"{refused}", bad, f"{hammer.lost} lost", refused == bad > 0)
    bench.row("tracebacks in the log", "0", f"{said.count('Traceback')}", total, "", "Traceback" not in said)
    bench.row("memory, from the second to the last tenth", "≤ +5 %", f"{growth:+.1f} %", total,
              f"{before / 1e6:.1f} to {after / 1e6:.1f} MB", growth <= 5)  # fmt: skip
    bench.row("exit code after SIGTERM", "0", f"{code}", 1, "", code == 0)
    bench.row(
        "requests a second, client and server on the same cores", "", f"{total / took:.0f}", total, f"{CLIENTS} clients"
    )
    bench.end()


if __name__ == "__main__":
    main()
