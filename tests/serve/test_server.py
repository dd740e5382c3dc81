"""The server as a user has it: a process, sockets, signals."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from serve_material import COLUMNS, Server, body, save, tensor, tiny_model, until

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without asking it")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model = tiny_model(tmp_path_factory.mktemp("serve") / "tiny.onnx")
    running = Server(model, "--max-batch", 4, "--max-body", 0.1)
    yield running
    code, err = running.stop()
    assert (code, err) == (0, "")  # no test here made it say anything


def test_health_and_metadata(server: Server) -> None:
    assert server.ask("GET", "/v2/health/live")[:2] == (200, {"live": True})
    assert server.ask("GET", "/v2/health/ready")[:2] == (200, {"ready": True})
    assert server.ask("GET", f"{server.path}/ready")[0] == 200
    assert server.ask("GET", "/v2")[1]["name"] == "compresskit"
    found = server.ask("GET", server.path)[1]
    assert (found["name"], found["platform"]) == ("tiny", "onnxruntime_onnx")
    assert found["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, COLUMNS]}]
    assert found["outputs"] == [
        {"name": "y", "datatype": "FP32", "shape": [-1, COLUMNS]}, {"name": "top", "datatype": "INT64", "shape": [-1]}
    ]  # fmt: skip


def test_an_answer_is_what_the_model_computes(server: Server) -> None:
    status, found, _ = server.infer(body(tensor(2), id="seven"))
    assert status == 200 and found["id"] == "seven"
    y, top = found["outputs"]
    assert (y["shape"], y["data"]) == ([2, COLUMNS], [2.0 * n for n in range(16)])
    assert (top["datatype"], top["data"]) == ("INT64", [7, 7])
    assert [o["name"] for o in server.infer(body(tensor(), outputs=[{"name": "top"}]))[1]["outputs"]] == ["top"]


def test_bytes_in_and_out(server: Server) -> None:
    values = np.arange(COLUMNS, dtype="<f4")
    given = {k: v for k, v in tensor(parameters={"binary_data_size": 32}).items() if k != "data"}
    head = body(given, outputs=[{"name": "y", "parameters": {"binary_data": True}}])
    status, raw, headers = server.infer(head + values.tobytes(), Inference_Header_Content_Length=str(len(head)))
    assert status == 200 and headers["content-type"] == "application/octet-stream"
    length = int(headers["Inference-Header-Content-Length"])
    assert json.loads(raw[:length])["outputs"][0]["parameters"] == {"binary_data_size": 32}
    assert np.array_equal(np.frombuffer(raw[length:], "<f4"), 2 * values)


@pytest.mark.parametrize(
    ("status", "path", "content"),
    [
        (404, "/v2/models/other/infer", body(tensor())), (404, "/nothing", b""), (405, "/v2", b""),
        (400, None, b"{"), (400, None, body(tensor(5))), (400, None, body(tensor(datatype="INT8"))),
        (400, None, b"[" * 90_000), (413, None, b" " * 100_001),
        (500, None, body(tensor(data=[3e38] * 8))),
    ],
)  # fmt: skip
def test_errors_are_one_line_of_json(server: Server, status: int, path: str | None, content: bytes) -> None:
    found, error, _ = server.ask("POST", path or f"{server.path}/infer", content)
    assert found == status
    assert list(error) == ["error"] and error["error"] and "\n" not in error["error"]


def test_a_body_of_unknown_length_has_the_same_limit(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
        raw.sendall(f"POST {server.path}/infer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(3):
            raw.sendall(b"C350\r\n" + b" " * 50_000 + b"\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("header", ["content_length", "Inference_Header_Content_Length"])
def test_numbers_in_headers_are_checked(server: Server, header: str) -> None:
    if header == "content_length":
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
            raw.sendall(f"POST {server.path}/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n".encode())
            assert raw.recv(100).startswith(b"HTTP/1.1 413 ")
    else:
        for value in ("-1", "1e3", "٣".encode().decode("latin-1"), "9" * 30):
            assert server.infer(body(tensor()), Inference_Header_Content_Length=value)[0] == 400


def test_a_compressed_body_is_refused(server: Server) -> None:
    assert server.infer(body(tensor()), Content_Encoding="gzip")[0] == 415


def test_a_client_that_leaves_harms_nobody(server: Server) -> None:
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
            raw.sendall(f"POST {server.path}/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 900\r\n\r\n{{".encode())
    until(lambda: b"compresskit_queue_depth 0.0" in server.ask("GET", "/metrics")[1])
    assert server.infer(body(tensor()))[0] == 200


def test_many_requests_on_kept_connections(server: Server) -> None:
    """400 requests by four clients, one in fifty malformed: each is answered as it deserves."""
    good = body(tensor(2))
    bad = [b"{", b"[" * 5000, good.replace(b"15.0", b"NaN"), body(tensor(5)), body(tensor(shape=[1, 9])), b"\xff"]
    wrong: list[object] = []

    def client(seed: int) -> None:
        chance = random.Random(seed)
        connection = server.connect()
        for index in range(100):
            malformed = index % 50 == 25
            connection.request("POST", f"{server.path}/infer", chance.choice(bad) if malformed else good)
            status, found, _ = server.read(connection)
            if status != (400 if malformed else 200) or (not malformed and found["outputs"][0]["data"][15] != 30):
                wrong.append((status, found))
        connection.close()

    clients = [threading.Thread(target=client, args=(seed,)) for seed in range(4)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    assert not wrong


def test_metrics_have_few_labels(server: Server) -> None:
    for index in range(30):
        server.ask("GET", f"/made/up/{index}")
        server.ask("POST", f"/v2/models/made-up-{index}/infer", b"")
    text = server.ask("GET", "/metrics")[1].decode()
    rows = re.findall(r'^compresskit_requests_total\{code="(\w+)",route="(\w+)"\} (\S+)', text, re.M)
    assert {route for _, route, _ in rows} <= {"infer", "health", "metadata", "metrics", "other"}
    assert float(next(n for code, route, n in rows if (code, route) == ("404", "infer"))) >= 30
    for name in ("compresskit_infer_seconds_bucket", "compresskit_queue_depth", "compresskit_queue_limit"):
        assert name in text


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs /proc")
def test_no_connection_leaves_the_machine(server: Server) -> None:
    assert server.infer(body(tensor()))[0] == 200
    remote = set()
    for table in ("tcp", "tcp6"):
        sockets = set()
        for link in Path(f"/proc/{server.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since the folder was read
                sockets.add(link.readlink().as_posix())
        for line in Path(f"/proc/{server.process.pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if f"socket:[{words[9]}]" in sockets:
                remote.add(words[2].partition(":")[0])
    assert remote <= {"00000000", "0100007F"}, remote


def gated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *options: object) -> tuple[Server, Path]:
    """A server that computes only while the file is there; made by replacing the session's run at start."""
    gate = tmp_path / "gate"
    gate.touch()
    (tmp_path / "sitecustomize.py").write_text(
        "import time, pathlib\n"
        "from compresskit.runtimes import onnxruntime as engine\n"
        "real = engine.OnnxSession.run\n"
        "def run(self, feeds):\n"
        f"    while not pathlib.Path({str(gate)!r}).exists():\n"
        "        time.sleep(0.01)\n"
        "    return real(self, feeds)\n"
        "engine.OnnxSession.run = run\n",
        encoding="utf-8",
    )
    root = str(Path(__file__).resolve().parents[2])
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{';' if sys.platform == 'win32' else ':'}{root}")
    server = Server(tiny_model(tmp_path / "tiny.onnx"), *options)
    gate.unlink()
    return server, gate


def in_background(server: Server, found: list[object], count: int) -> list[threading.Thread]:
    threads = [threading.Thread(target=lambda: found.append(server.infer(body(tensor())))) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


def depth(server: Server) -> float:
    text = server.ask("GET", "/metrics")[1].decode()
    return float(re.search(r"^compresskit_queue_depth (\S+)", text, re.M)[1])


def test_a_full_queue_says_when_to_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, gate = gated(tmp_path, monkeypatch, "--workers", 1, "--queue", 1)
    try:
        found: list[tuple[int, object, object]] = []
        threads = in_background(server, found, 2)
        until(lambda: depth(server) == 2)
        status, error, headers = server.infer(body(tensor()))
        assert status == 503 and int(headers["retry-after"]) >= 1 and "waiting" in error["error"]
        assert server.ask("GET", "/v2/health/live")[0] == 200
        gate.touch()
        for thread in threads:
            thread.join()
        assert [status for status, _, _ in found] == [200, 200]
        assert server.infer(body(tensor()))[0] == 200
        assert server.stop() == (0, "")
    finally:
        server.close()


def dripped(connection: socket.socket) -> bool:
    """Send a byte more and read what is there; true once the other side has closed."""
    time.sleep(0.2)
    try:
        connection.sendall(b"x")
        connection.setblocking(False)
        return connection.recv(4096) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.setblocking(True)


def test_headers_that_do_not_arrive_are_given_up(tmp_path: Path) -> None:
    """Clients that say nothing, or drip, would otherwise hold their connections for ever."""
    server = Server(tiny_model(tmp_path / "a.onnx"), "--timeout", 1)
    try:
        where = ("127.0.0.1", server.port)
        with socket.create_connection(where, timeout=30) as silent, socket.create_connection(where, timeout=30) as slow:
            slow.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost:")
            assert slow.recv(100) == b"" and silent.recv(100) == b""
        with socket.create_connection(where, timeout=30) as late:  # a body after the answer has nobody who reads it
            late.sendall(b"POST /nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
            until(lambda: dripped(late))
        assert server.ask("GET", "/v2/health/ready")[0] == 200
        kept = server.connect()
        for pause in (0, 1.5):  # longer than headers may take: a connection at rest sends none
            time.sleep(pause)
            kept.request("GET", "/v2/health/ready")
            assert server.read(kept)[0] == 200
        kept.close()
        assert server.stop() == (0, "")
    finally:
        server.close()


def test_a_request_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, gate = gated(tmp_path, monkeypatch, "--workers", 1, "--timeout", 0.5)
    try:
        assert server.infer(body(tensor()))[0] == 504
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
            raw.sendall(f"POST {server.path}/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n".encode())
            assert raw.recv(100).startswith(b"HTTP/1.1 408 ")
        gate.touch()
        until(lambda: depth(server) == 0)  # the place of what ran on is given back
        assert server.infer(body(tensor()))[0] == 200
        assert server.stop() == (0, "")
    finally:
        server.close()


@posix
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_waits_for_what_is_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    server, gate = gated(tmp_path, monkeypatch)
    try:
        found: list[tuple[int, object, object]] = []
        threads = in_background(server, found, 3)
        until(lambda: depth(server) == 3)
        server.process.send_signal(number)
        until(lambda: not answers(server))
        assert server.process.poll() is None and not found
        gate.touch()
        for thread in threads:
            thread.join()
        assert [status for status, _, _ in found] == [200] * 3
        _, err = server.process.communicate(timeout=60)
        assert server.process.returncode == code
        assert "Traceback" not in err
    finally:
        server.close()


def answers(server: Server) -> bool:
    try:
        server.ask("GET", "/v2/health/live")
    except OSError:
        return False
    return True


@posix
def test_what_does_not_finish_in_the_grace_is_cut_off_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, _ = gated(tmp_path, monkeypatch, "--grace", 1)
    try:

        def ask() -> None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                server.infer(body(tensor()))

        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: depth(server) == 1)
        start = time.monotonic()
        code, err = server.stop()
        thread.join()
        assert code == 143 and "aborted: 1" in err and "Traceback" not in err
        assert time.monotonic() - start < 20
    finally:
        server.close()


@pytest.mark.parametrize(
    ("runtime", "workers"), [("onnxruntime", 2), ("openvino", 2)]
)  # fmt: skip
def test_engines_and_workers_give_the_same(tmp_path: Path, runtime: str, workers: int) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    server = Server(tiny_model(tmp_path / "tiny.onnx"), "--runtime", runtime, "--workers", workers, "--name", "m.1")
    try:
        assert server.path.endswith("/m.1")
        found: list[tuple[int, object, object]] = []
        for thread in in_background(server, found, 12):
            thread.join()
        assert all(status == 200 and answer["outputs"][0]["data"][7] == 14 for status, answer, _ in found)
        assert len(found) == 12
    finally:
        server.close()


def test_an_index_that_the_engine_refuses_is_the_clients_error(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Gather", ["x", "n"], ["y"], axis=1)]
    path = save(
        tmp_path / "gather.onnx", nodes,
        [value("x", TensorProto.FLOAT, ["batch", 2]), value("n", TensorProto.INT64, [1])],
        [value("y", TensorProto.FLOAT, ["batch", 1])], {},
    )  # fmt: skip
    server = Server(path)
    try:
        x = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
        n = {"name": "n", "shape": [1], "datatype": "INT64"}
        assert server.infer(body(x, {**n, "data": [1]}))[0] == 200
        status, error, _ = server.infer(body(x, {**n, "data": [3]}))
        assert status == 400 and "refuses" in error["error"]
        assert server.stop() == (0, "")
    finally:
        server.close()


def refused(*words: object) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "compresskit", "serve", *map(str, words)], capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.stdout == "" and 1 <= len(done.stderr.splitlines()) <= 2 and "Traceback" not in done.stderr, done
    return done.returncode, done.stderr


def test_what_cannot_be_served_is_said_before_it_listens(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "tiny.onnx")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, err = refused(model, "--port", taken.getsockname()[1])
        assert code == 4 and "can't listen" in err
    assert refused(tmp_path / "none.onnx", "--port", 0)[0] == 2
    (tmp_path / "cut.onnx").write_bytes(model.read_bytes()[:50])
    assert refused(tmp_path / "cut.onnx", "--port", 0)[0] == 3
    (tmp_path / "m.pt").write_bytes(b"PK")
    code, err = refused(tmp_path / "m.pt")
    assert code == 3 and "export" in err
    assert refused(model, "--runtime", "torch")[0] == 2
    assert refused(model, "--name", "a/b")[0] == 2
    assert refused(model, "--host", "no.such.host.invalid", "--port", 0)[0] == 2


def test_the_probe_tells_ready_from_not(server: Server) -> None:
    def probe(url: str) -> int:
        return subprocess.run(
            [sys.executable, "-m", "compresskit.serve.probe", url], timeout=60, check=False
        ).returncode

    assert probe(f"http://127.0.0.1:{server.port}") == 0
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
    assert probe(f"http://127.0.0.1:{port}") == 1


def raw(server: Server, request: bytes) -> bytes:
    """All that comes back on one connection, until the server closes it."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as stream:
        stream.sendall(request)
        out = b""
        while part := stream.recv(65536):
            out += part
    return out


@pytest.mark.parametrize("path", ["/v2/models/tiny/infer", "/elsewhere"])
def test_a_length_that_is_given_twice_is_refused(server: Server, path: str) -> None:
    smuggled = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {5 + len(smuggled)}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    answer = raw(server, head.encode() + b"0\r\n\r\n" + smuggled)
    assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in answer.lower()
    assert "Transfer-Encoding" in json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


@pytest.mark.parametrize("path", ["/v2/", "/metrics/", "//evil.example/v2/", "/v2/models/tiny/"])
def test_no_redirect_is_made_of_what_a_client_sent(server: Server, path: str) -> None:
    answer = raw(server, f"GET {path} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404 ") and b"location" not in answer.lower()


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
    ],
)
def test_what_is_no_http_is_told_in_json(server: Server, request_: bytes) -> None:
    answer = raw(server, request_)
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 "))
    assert "error" in json.loads(answer.partition(b"\r\n\r\n")[2])


def test_an_upgrade_leaves_no_line_in_the_log(server: Server) -> None:
    upgrade = b"Upgrade: websocket\r\nConnection: Upgrade, close\r\n"
    assert b"HTTP/1.1 200 " in raw(server, b"GET /v2 HTTP/1.1\r\nHost: x\r\n" + upgrade + b"\r\n")
