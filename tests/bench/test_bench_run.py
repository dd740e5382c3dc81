"""The bench of models: tests that use ``forked_workers`` find its warm parents started."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from ending import with_us
from onnx import TensorProto, helper, numpy_helper

from compresskit.benchmark.pool import Worker
from compresskit.benchmark.run import Plan, Spec, bench, change, measure
from compresskit.benchmark.stats import Look
from compresskit.errors import InputError, MachineError, UsageError
from compresskit.model import InputSpec
from compresskit.report import Measurement

SHORT = Plan(rounds=3, processes=2, more=0, turn_s=0.002, warmup_s=0.05)
X = (InputSpec("x", "float32", ("batch", 4)),)
HERE = str(Path(__file__).parent)


def model(path, width, batch="batch"):
    weight = numpy_helper.from_array(np.ones((8, width), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, width])],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture
def importable(monkeypatch):
    monkeypatch.setattr(sys, "path", [HERE, *sys.path])


def torch_spec(loader, path="-", **args):
    return Spec(loader, Path(path), "torch", 1, inputs=X, loader=f"models_for_bench:{loader}", loader_args=args)


def gone(pid):
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_measurements_of_two_models(tmp_path):
    small, large = model(tmp_path / "s.onnx", 8), model(tmp_path / "l.onnx", 400_000)
    seen = []
    found = bench(
        [Spec("large", large), Spec("small", small)],
        batch=4,
        plan=SHORT,
        progress=lambda what, done, total: seen.append((what, done, total)),
    )
    figures = {(m.model, m.name): m for m in found}
    own = {"latency_p50", "latency_p95", "latency_p99", "throughput", "load", "first_call", "peak_memory"}
    assert {name for owner, name in figures if owner == "large"} - {"energy"} == own
    assert {name for owner, name in figures if owner == "small"} - {"energy"} == own | {"speedup"}
    assert all((m.runtime, m.batch) == ("onnxruntime", 4) for m in found)
    assert figures["large", "latency_p50"].value > figures["small", "latency_p50"].value
    assert figures["small", "throughput"].value == pytest.approx(4000 / figures["small", "latency_p50"].value)
    assert figures["large", "peak_memory"].value > figures["small", "peak_memory"].value + 10e6
    speedup = figures["small", "speedup"]
    assert speedup.n == SHORT.processes
    assert speedup.low < speedup.value < speedup.high
    assert seen == [("bench", 0, 2), ("bench", 1, 2), ("bench", 2, 2)]


@pytest.mark.usefixtures("forked_workers")
def test_rounds_and_processes_are_as_asked(tmp_path):
    path = model(tmp_path / "m.onnx", 8, batch=2)
    timings = measure([Spec("a", path), Spec("b", path)], SHORT, batch=16)
    for timing in timings:
        assert [len(process) for process in timing.rounds] == [3, 3]
        assert len(timing.load_ms) == 2
        assert timing.rows == 2  # fixed in the file, whatever was asked
        assert all(turn.min() > 0 for process in timing.rounds for turn in process)


@pytest.mark.usefixtures("forked_workers")
def test_one_process_gives_no_interval(tmp_path):
    path = model(tmp_path / "m.onnx", 8)
    found = bench(
        [Spec("a", path), Spec("b", path)], plan=Plan(rounds=2, processes=1, more=0, turn_s=0.001, warmup_s=0)
    )
    speedup = next(m for m in found if m.name == "speedup")
    assert (speedup.low, speedup.high) == (None, None)
    assert change(speedup) == "inconclusive"


@pytest.mark.parametrize(
    ("value", "low", "high", "answer"),
    [
        (2.0, 1.9, 2.1, "faster"),
        (0.8, 0.79, 0.81, "slower"),
        (1.0, 0.99, 1.01, "same"),
        (1.0, 0.8, 1.25, "inconclusive"),
    ],
)
def test_a_measured_speedup_is_judged(value, low, high, answer):
    assert change(Measurement(model="m", name="speedup", value=value, n=5, low=low, high=high)) == answer


@pytest.mark.usefixtures("forked_workers")
def test_torch_modules_are_timed_and_what_they_print_does_no_harm(importable):
    plan = Plan(rounds=2, processes=1, more=0, turn_s=0.002, warmup_s=0.05)
    timings = measure([torch_spec("linear", width=4), torch_spec("chatty")], plan)
    assert all(turn.min() > 0 for timing in timings for process in timing.rounds for turn in process)


@pytest.mark.parametrize(
    ("loader", "args", "kind", "message"),
    [
        ("wrong", {}, InputError, "wrong: .*no such layer"),
        ("absent", {}, InputError, "absent"),
        ("linear", {"width": 5}, InputError, "linear: torch cannot run"),
        ("die", {"how": "exit"}, InputError, "die: .*code 3: the last words"),
        pytest.param(
            "die",
            {"how": "SIGSEGV"},
            InputError,
            "die: .*SIGSEGV",
            marks=pytest.mark.skipif(os.name == "nt", reason="posix signals"),
        ),
        pytest.param(
            "die",
            {"how": "SIGKILL"},
            MachineError,
            "die: .*killed",
            marks=pytest.mark.skipif(os.name == "nt", reason="posix signals"),
        ),
    ],
)
def test_failures_name_the_model(request, importable, loader, args, kind, message):
    if loader != "die":
        request.getfixturevalue("forked_workers")
    with pytest.raises(kind, match=message):
        measure([torch_spec(loader, **args)], SHORT)


def test_a_model_that_cannot_be_opened(tmp_path):
    good, bad = model(tmp_path / "good.onnx", 8), tmp_path / "bad.onnx"
    bad.write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"broken: .*bad\.onnx"):
        bench([Spec("fine", good), Spec("broken", bad)], plan=SHORT)


def test_a_hanging_model_is_given_up_and_its_process_ended(importable, tmp_path):
    note = tmp_path / "pid"
    with pytest.raises(MachineError, match="hang: no answer"):
        measure([torch_spec("hang", note)], Plan(processes=1, more=0, timeout_s=4))
    worker, parent = map(int, note.read_text().split())
    assert gone(worker)
    assert parent == os.getpid() or gone(parent)


@pytest.mark.skipif(os.name == "nt", reason="posix signals")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_parent(importable, tmp_path, how):
    """Ctrl-C and a hard kill in the middle of a run that never ends."""
    note = tmp_path / "pid"
    code = (
        "from pathlib import Path; from compresskit.benchmark.run import *; from compresskit.model import InputSpec\n"
        "x = InputSpec('x', 'float32', (1,))\n"
        "measure([Spec('m', Path(NOTE), 'torch', inputs=(x,), loader='models_for_bench:hang')], Plan())"
    ).replace("NOTE", json.dumps(str(note)))
    parent = subprocess.Popen(
        [*with_us(), sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": HERE}, stderr=subprocess.DEVNULL
    )
    for _ in range(400):
        if note.exists() and note.read_text().endswith("\n"):
            break
        time.sleep(0.05)
    started = map(int, note.read_text().split())  # the worker, and what it was forked from
    os.kill(parent.pid, how)
    assert parent.wait(timeout=20) != 0
    assert all(map(gone, started))


def test_workers_are_closed_when_the_parent_is_interrupted(tmp_path, monkeypatch):
    closed = []
    close = Worker.close
    monkeypatch.setattr(Worker, "close", lambda self: (closed.append(self.name), close(self)))

    def interrupt(what, done, total):
        if done:
            raise KeyboardInterrupt

    path = model(tmp_path / "m.onnx", 8)
    with pytest.raises(KeyboardInterrupt):
        measure([Spec("a", path), Spec("b", path)], SHORT, progress=interrupt)
    assert sorted(closed) == ["a", "b"]
    assert threading.active_count() < 10


def test_modules_of_the_current_folder_are_not_imported(tmp_path, monkeypatch):
    path = model(tmp_path / "m.onnx", 8)
    for name in ("json", "numpy", "queue", "onnxruntime"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('ran the user\\'s file')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    assert measure([Spec("m", path)], SHORT)[0].rounds


@pytest.mark.parametrize(("count", "plan"), [(0, Plan()), (1, Plan(rounds=0)), (1, Plan(processes=0, more=0))])
def test_nothing_to_time(tmp_path, count, plan):
    with pytest.raises(UsageError, match="cannot time"):
        measure([Spec("m", tmp_path)] * count, plan)


def test_a_runtime_that_does_not_exist(tmp_path):
    with pytest.raises(UsageError, match="abacus"):
        measure([Spec("m", tmp_path, "abacus")], SHORT)


@pytest.mark.usefixtures("forked_workers")
def test_slow_models_get_fewer_rounds_but_never_less_than_three(tmp_path):
    path = model(tmp_path / "m.onnx", 8)
    plan = Plan(rounds=50, processes=1, more=0, turn_s=0.02, warmup_s=0, budget_s=0.1)
    assert 3 <= len(measure([Spec("m", path)], plan)[0].rounds[0]) <= 5


@pytest.mark.usefixtures("forked_workers")
def test_inputs_that_nobody_knows(importable):
    spec = Spec("m", Path("-"), "torch", loader="models_for_bench:chatty")
    with pytest.raises(UsageError, match="m: the inputs"):
        measure([spec], SHORT)


def talk(*commands):
    code = [sys.executable, "-m", "compresskit.benchmark.worker", "onnxruntime"]
    with subprocess.Popen(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        worker.stdin.write("".join(json.dumps(command) + "\n" for command in commands))
        worker.stdin.flush()
        if not commands:
            worker.stdin.close()
        answers = [json.loads(line) for line in worker.stdout]
        assert worker.wait(timeout=30) == 0
    return answers


def test_the_worker_answers_each_command_and_ends_when_told(tmp_path):
    opening = {"do": "open", "path": str(model(tmp_path / "m.onnx", 8)), "runtime": "onnxruntime", "threads": 1}
    opening |= {"device": "cpu", "inputs": [], "sizes": {"batch": 3}, "seed": 0, "loader": "", "loader_args": {}}
    ready, early, opened, turn, peak = talk(
        {"do": "peak"},
        opening,
        {"do": "round", "min_time_s": 0, "min_calls": 4},
        {"do": "peak"},
        {"do": "close"},
        {"do": "peak"},
    )
    assert ready == {"ok": "ready"}
    assert early["error"] == "UsageError"
    assert opened["ok"]["rows"] == 3
    assert len(turn["ok"]) == 4
    assert peak["ok"] is None or peak["ok"] > 1e7


def test_the_worker_ends_with_its_stdin():
    assert len(talk()) <= 1


def test_importing_the_bench_needs_no_torch():
    code = "import sys, compresskit.benchmark.run, compresskit.benchmark.worker; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize(("known_after", "n"), [(1, 2), (2, 2), (3, 4), (4, 4), (5, 6), (9, 6)])
def test_processes_are_started_until_a_look_answers_the_question(tmp_path, monkeypatch, known_after, n):
    from compresskit.benchmark import run

    path = model(tmp_path / "m.onnx", 8)
    asked = []

    def settled(base, other, look, bars):
        asked.append((look.error, bars))
        return len(base) >= known_after

    monkeypatch.setattr(run.stats, "settled", settled)
    plan = Plan(rounds=1, processes=4, more=2, early=((2, Look(0.001)),), bars=(1.5,), turn_s=0.001, warmup_s=0)
    found = bench([Spec("a", path), Spec("b", path)], plan=plan)
    assert next(m for m in found if m.name == "speedup").n == n
    assert asked == [(0.001, (1.5,)), (0.003, (1.5,))][: 1 if n == 2 else 2]


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize(("count", "plan", "n"), [(1, Plan(processes=2, more=1, early=((1, Look()),)), 2),
                                                  (2, Plan().exactly(4), 4)])  # fmt: skip
def test_nothing_ends_early_where_nothing_is_compared_or_a_number_was_given(tmp_path, monkeypatch, count, plan, n):
    from compresskit.benchmark import run

    monkeypatch.setattr(run.stats, "settled", lambda *_: True)
    path = model(tmp_path / "m.onnx", 8)
    quick = replace(plan, rounds=1, turn_s=0.001, warmup_s=0)
    found = bench([Spec(name, path) for name in "ab"[:count]], plan=quick)
    assert found[0].n == n
