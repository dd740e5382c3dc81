"""Workers that are forked from a warm parent, and when they are not."""

import os
import signal
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compresskit.benchmark.forks import Parents, warm_parents
from compresskit.benchmark.plan import Spec, Timing
from compresskit.benchmark.pool import Worker
from compresskit.benchmark.run import open_spec

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere each worker is an interpreter of its own")


@pytest.fixture
def product(tmp_path: Path) -> Path:
    """A file of one product of 8 MB."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [value("x", TensorProto.FLOAT, [1, 1024])],
        [value("y", TensorProto.FLOAT, [1, 2048])], [numpy_helper.from_array(np.ones((1024, 2048), np.float32), "w")],
    )  # fmt: skip
    path = tmp_path / "product.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def parent_of(worker: Worker) -> int:
    return int(Path(f"/proc/{worker._process.pid}/stat").read_text().rpartition(")")[2].split()[1])


def gone(pid: int) -> bool:
    end = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        time.sleep(0.01)
    return not Path(f"/proc/{pid}").exists()


def start(stack: ExitStack, **how: bool) -> Worker:
    worker = Worker("m", "onnxruntime", 60, stack, **how)
    assert worker.answer() == "ready"
    return worker


def test_a_worker_runs_in_the_folder_of_who_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with warm_parents(), ExitStack() as stack:
        for name in "ab":
            (tmp_path / name).mkdir()
            monkeypatch.chdir(tmp_path / name)
            worker = start(stack)
            assert Path(f"/proc/{worker._process.pid}/cwd").resolve() == tmp_path / name


def test_workers_of_an_engine_share_a_parent_that_ends_after_them() -> None:
    with warm_parents(), warm_parents(), ExitStack() as stack:
        one, two, own = start(stack), start(stack), start(stack, fresh=True)
        parent = parent_of(one)
        assert (parent_of(two), parent_of(own)) == (parent, os.getpid())
        assert parent != os.getpid()
        assert one._process.pid != two._process.pid
    assert gone(parent)
    with ExitStack() as stack:
        assert parent_of(start(stack)) == os.getpid()


def test_a_worker_that_is_left_behind_ends_with_its_parent() -> None:
    with ExitStack() as kept:
        with warm_parents():
            worker = start(kept)
        assert gone(worker._process.pid)
        worker.close()


def test_a_parent_that_was_killed_is_done_without() -> None:
    with warm_parents(), ExitStack() as stack:
        os.kill(parent_of(start(stack)), signal.SIGKILL)
        assert parent_of(start(stack)) == os.getpid()
        assert parent_of(start(stack)) == os.getpid()


def test_figures_have_the_meaning_of_those_of_a_fresh_process(product: Path) -> None:
    peaks = {}
    with warm_parents():
        for fresh in (False, True):
            with ExitStack() as stack:
                worker, timing = start(stack, fresh=fresh), Timing()
                open_spec(Spec("m", product, threads=1), worker, timing, 1, 0)
                peaks[fresh] = worker.ask(do="peak")
    assert peaks[False] == pytest.approx(peaks[True], rel=0.05)  # what it has of the parent is half of it


@pytest.mark.parametrize("threads", [False, True])
def test_only_a_parent_with_one_thread_forks(tmp_path: Path, threads: bool) -> None:
    code = "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()" if threads else ""
    (tmp_path / "onnxruntime.py").write_text(code)
    path = [str(tmp_path), *(part for part in sys.path if part)]
    with tempfile.TemporaryFile() as log, ExitStack() as stack:
        forked = Parents(stack).fork("onnxruntime", path, os.environ, 60, log)
        assert (forked is None) == threads
        if forked is not None:
            with closing(forked.stdin), closing(forked.stdout):
                assert forked.stdout.readline() == '{"ok": "ready"}\n'
                forked.kill()
                assert forked.wait() == forked.wait() == -signal.SIGKILL


def test_an_engine_that_has_not_been_tried_is_not_forked() -> None:
    with tempfile.TemporaryFile() as log, ExitStack() as stack:
        assert Parents(stack).fork("onnxruntime-cuda", sys.path, os.environ, 60, log) is None
