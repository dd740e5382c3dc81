"""Small models to serve, and a server to ask."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from ending import with_us
from onnx import TensorProto, helper, numpy_helper

COLUMNS = 8


def save(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], stored: dict[str, np.ndarray]) -> Path:
    tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, str(path))
    return path


def tiny_model(path: Path) -> Path:
    """``y = 2 x`` and ``top``, the column of the largest."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["y"]),
        helper.make_node("ArgMax", ["x"], ["top"], axis=1, keepdims=0),
    ]
    return save(
        path, nodes,
        [value("x", TensorProto.FLOAT, ["batch", COLUMNS])],
        [value("y", TensorProto.FLOAT, ["batch", COLUMNS]), value("top", TensorProto.INT64, ["batch"])],
        {"two": np.float32([2])},
    )  # fmt: skip


def tensor(rows: int = 1, **changes: Any) -> dict[str, Any]:
    data = [float(n) for n in range(rows * COLUMNS)]
    return {"name": "x", "shape": [rows, COLUMNS], "datatype": "FP32", "data": data, **changes}


def body(*tensors: Any, **more: Any) -> bytes:
    return json.dumps({"inputs": list(tensors), **more}).encode()


class Server:
    """``compresskit serve`` in a process of its own."""

    def __init__(self, model: Path, *options: object) -> None:
        words = [sys.executable, "-m", "compresskit", "serve", str(model), "--port", "0", *map(str, options)]
        self.process = subprocess.Popen([*with_us(), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        if not self.line:
            raise AssertionError(self.process.communicate()[1])
        self.port = int(self.line.split(":")[3].partition("/")[0])
        self.path = "/v2/models/" + self.line.rstrip().rpartition("/")[2]

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, method: str, path: str, content: bytes | None = None, **headers: str) -> tuple[int, Any, Any]:
        """Status, JSON (or text), headers of one request on a connection of its own."""
        connection = self.connect()
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, content, named)
            return self.read(connection)
        finally:
            connection.close()

    def infer(self, content: bytes, **headers: str) -> tuple[int, Any, Any]:
        return self.ask("POST", f"{self.path}/infer", content, **headers)

    @staticmethod
    def read(connection: http.client.HTTPConnection) -> tuple[int, Any, Any]:
        answer = connection.getresponse()
        text = answer.read()
        kind = answer.getheader("content-type", "")
        return answer.status, json.loads(text) if kind == "application/json" else text, answer.headers

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Exit code, and all that it said on stderr."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def until(condition: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)
