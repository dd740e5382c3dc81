"""Sweeps on the command line: points, tables, gates, bad input, and Ctrl-C."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cli_material import Cli
from onnx import TensorProto, helper, numpy_helper

from compresskit import runtimes
from compresskit.benchmark.feeds import write_feeds
from compresskit.runner import real_samples

SHORT = ("--processes", "2", "--rounds", "1")
QUICK = (*SHORT, "--no-limits")
JSON = (*QUICK, "--json", "-")


def product(path: Path, shape: list[int | str], width: int = 8) -> Path:
    """An ONNX file of one product, whose input is of a given shape."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*shape[:-1], width])],
        [numpy_helper.from_array(np.ones((shape[-1], width), np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """a.onnx and b.onnx with free batch and sequence axes, fixed.onnx with none, in the current folder."""
    monkeypatch.chdir(tmp_path)
    product(tmp_path / "a.onnx", ["batch", "sequence", 8])
    product(tmp_path / "b.onnx", ["batch", "sequence", 8])
    product(tmp_path / "fixed.onnx", [2, 8])
    return tmp_path


def points(report: dict, model: str, name: str) -> list[tuple]:
    found = [m for m in report["measurements"] if (m["model"], m["name"]) == (model, name)]
    return [(m["batch"], m["threads"], m["sequence"]) for m in found]


def test_each_combination_is_a_point_with_all_its_figures(cli: Cli, two: Path) -> None:
    outcome = cli("bench", "a.onnx", "b.onnx", "--batch", "1,3", "--threads", "1,2", "--seq", "4", *JSON)
    assert outcome.code == 0, outcome
    report = json.loads(outcome.out)
    where = [(1, 1, 4), (1, 2, 4), (3, 1, 4), (3, 2, 4)]
    for name in ("latency_p50", "throughput", "load", "first_call"):
        assert points(report, "a.onnx", name) == points(report, "b.onnx", name) == where
    assert points(report, "b.onnx", "speedup") == where and not points(report, "a.onnx", "speedup")
    assert [(d["model"], d["batch"], d["threads"]) for d in report["latencies"]] == [
        (m, b, t) for b, t, _ in where for m in ("a.onnx", "b.onnx")
    ]


def test_latencies_are_quantiles_of_what_was_measured(cli: Cli, two: Path) -> None:
    report = json.loads(cli("bench", "a.onnx", *JSON).out)
    (found,) = report["latencies"]
    assert len(found["quantiles"]) == 41 and found["quantiles"] == sorted(found["quantiles"])
    assert found["quantiles"][0] > 0 and found["n"] > 1
    figures = {m["name"]: m["value"] for m in report["measurements"]}
    assert found["quantiles"][0] <= figures["latency_p50"] <= found["quantiles"][-1]
    assert figures["first_call"] > figures["load"] > 0


@pytest.mark.parametrize("form", [(), ("--markdown",)])
def test_a_row_for_each_model_and_point_in_80_columns(cli: Cli, two: Path, form: tuple[str, ...]) -> None:
    outcome = cli("bench", "a.onnx", "b.onnx", "--batch", "1,3", "--seq", "4,8", *QUICK, *form)
    assert outcome.code == 0, outcome
    rows = [line.replace("|", " ").split() for line in outcome.out.splitlines()]
    rows = [row for row in rows if len(row) > 5 and row[1].isdigit() and row[2].isdigit()]
    assert [(row[0], row[1], row[2]) for row in rows] == [
        (model, batch, tokens) for batch in "13" for tokens in "48" for model in ("a.onnx", "b.onnx")
    ]
    assert form or max(map(len, outcome.out.splitlines())) <= 80


def test_the_least_speedup_holds_at_every_point(cli: Cli, two: Path) -> None:
    outcome = cli("bench", "a.onnx", "b.onnx", "--batch", "1,3", "--min-speedup", "1000", *JSON)
    assert outcome.code == 1
    gates = json.loads(outcome.out)["gates"]
    assert [gate["name"] for gate in gates if gate["name"].startswith("speed")] == [
        "speed (batch 1)",
        "speed (batch 3)",
    ]


def test_a_sweep_is_checked_again_at_every_point(cli: Cli, two: Path) -> None:
    assert cli("bench", "a.onnx", "b.onnx", "--batch", "1,3", *QUICK, "--json", "r.json").code == 0
    outcome = cli("check", "r.json", "--min-speedup", "1000", "--format", "json")
    assert outcome.code == 1
    assert outcome.out.count('"speed (batch') == 2


BAD = {
    "batch of zero": (("--batch", "0"), 2, ("--batch", "from 1", "'0'")),
    "no number": (("--batch", "1,x"), 2, ("--batch", "'1,x'")),
    "negative": (("--threads", "-1"), 2, ("--threads", "'-1'")),
    "nothing": (("--seq", ""), 2, ("--sequence",)),
    "twice": (("--batch", "1,8,1"), 2, ("--batch", "1 twice")),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_numbers_are_refused(cli: Cli, two: Path, case: str) -> None:
    words, code, said = BAD[case]
    outcome = cli("bench", "a.onnx", *words, *QUICK)
    assert outcome.code == code, outcome
    assert all(word in outcome.err for word in said), outcome.err


@pytest.mark.parametrize(("option", "axis"), [("--batch", "batch"), ("--seq", "sequence")])
def test_an_axis_of_fixed_size_has_no_sweep(cli: Cli, two: Path, option: str, axis: str) -> None:
    outcome = cli("bench", "fixed.onnx", option, "1,2", *QUICK)
    assert outcome.code == 3, outcome
    assert "fixed.onnx" in outcome.err and f"{axis} axis" in outcome.err


@pytest.mark.parametrize(("after", "stop"), [(1, KeyboardInterrupt()), (3, KeyboardInterrupt()), (1, SystemExit(143))])
def test_a_stop_keeps_the_whole_generations(
    cli: Cli, two: Path, monkeypatch: pytest.MonkeyPatch, after: int, stop: BaseException
) -> None:
    """Ctrl-C or SIGTERM in the second process of the first point, or in the second point."""
    from compresskit.benchmark import run

    take, count = run._take_turns, []

    def interrupted(*words: object) -> None:
        count.append(1)
        if len(count) > after:
            raise stop
        take(*words)

    monkeypatch.setattr(run, "_take_turns", interrupted)
    outcome = cli("bench", "a.onnx", "b.onnx", "--batch", "1,3", *QUICK, "--json", "r.json")
    assert outcome.code == (130 if isinstance(stop, KeyboardInterrupt) else 143), outcome
    report = json.loads(Path("r.json").read_text())
    assert any(note.startswith("interrupted:") for note in report["notes"])
    medians = [m for m in report["measurements"] if m["name"] == "latency_p50"]
    expected = {1: [(1, 1)] * 2, 3: [(1, 2)] * 2 + [(3, 1)] * 2}[after]
    assert [(m["batch"], m["n"]) for m in medians] == expected


def test_ctrl_c_before_anything_was_measured_leaves_nothing(
    cli: Cli, two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compresskit.benchmark import run

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "_take_turns", interrupted)
    outcome = cli("bench", "a.onnx", *QUICK, "--json", "r.json")
    assert outcome.code == 130 and not Path("r.json").exists()


def test_a_baseline_holds_sizes_and_speedups(cli: Cli, two: Path) -> None:
    sweep = ("bench", "a.onnx", "b.onnx", "--batch", "1,3", *QUICK)
    assert cli(*sweep, "--json", "old.json").code == 0
    outcome = cli(*sweep, "--baseline", "old.json", "--json", "-")
    gates = {gate["name"]: gate["passed"] for gate in json.loads(outcome.out)["gates"]}
    assert set(gates) == {
        "size since baseline", "speed (batch 1) since baseline", "speed (batch 3) since baseline",
    }  # fmt: skip
    product(two / "b.onnx", ["batch", "sequence", 8], width=64)
    outcome = cli(*sweep, "--baseline", "old.json", "--json", "-")
    gates = {gate["name"]: gate["passed"] for gate in json.loads(outcome.out)["gates"]}
    assert outcome.code == 1 and gates["size since baseline"] is False


def test_a_model_alone_is_held_to_its_latency_at_each_point(cli: Cli, two: Path) -> None:
    alone = ("bench", "a.onnx", "--batch", "1,3", *QUICK)
    assert cli(*alone, "--json", "old.json").code == 0
    outcome = cli(*alone, "--baseline", "old.json")
    assert outcome.code == 0 and "use compresskit evaluate" in " ".join(outcome.out.split())
    gates = json.loads(cli(*alone, "--baseline", "old.json", "--json", "-").out)["gates"]
    assert [gate["name"] for gate in gates] == [
        "size since baseline", "speed (batch 1) since baseline", "speed (batch 3) since baseline",
    ]  # fmt: skip
    assert all(gate["passed"] is not False for gate in gates)


def test_a_baseline_of_other_points_is_refused(cli: Cli, two: Path) -> None:
    assert cli("bench", "a.onnx", "b.onnx", "--batch", "1,3", *QUICK, "--json", "old.json").code == 0
    outcome = cli("bench", "a.onnx", "b.onnx", "--batch", "1,4", *QUICK, "--baseline", "old.json")
    assert outcome.code == 2
    assert "batch 3" in outcome.err and "batch 4" in outcome.err


def test_options_about_a_baseline_need_one(cli: Cli, two: Path) -> None:
    outcome = cli("bench", "a.onnx", "--max-growth", "5%", *QUICK)
    assert outcome.code == 2 and "--baseline" in outcome.err
    assert cli("bench", "a.onnx", "--baseline", "missing.json", *QUICK).code == 2


@pytest.mark.parametrize("runtime", [n for n in ("onnxruntime", "openvino") if not runtimes.get(n).missing()])
def test_a_profile_tells_each_node(cli: Cli, two: Path, runtime: str) -> None:
    outcome = cli("bench", "a.onnx", "b.onnx", "--runtime", runtime, "--profile", *JSON)
    assert outcome.code == 0, outcome
    profile = json.loads(outcome.out)["profile"]
    assert {node["model"] for node in profile} == {"a.onnx", "b.onnx"}
    assert all(node["ms"] >= 0 and node["runtime"] == runtime and node["name"] for node in profile)
    for model in ("a.onnx", "b.onnx"):
        assert sum(node["share"] for node in profile if node["model"] == model) == pytest.approx(1)
    assert not [path.name for path in two.iterdir() if path.name.startswith(("onnxruntime_profile", "profile"))]


def test_a_profile_of_a_sweep_is_of_each_point(cli: Cli, two: Path) -> None:
    words = ("bench", "a.onnx", "--batch", "1,3", "--profile", *QUICK)
    profile = json.loads(cli(*words, "--json", "-").out)["profile"]
    assert {node["batch"] for node in profile} == {1, 3} and {node["sequence"] for node in profile} == {128}
    for batch in (1, 3):
        assert sum(node["share"] for node in profile if node["batch"] == batch) == pytest.approx(1)
    shown = cli(*words).out
    assert "a.onnx (batch 1)" in shown and "a.onnx (batch 3)" in shown


def test_the_limit_of_each_model_is_told(cli: Cli, two: Path) -> None:
    report = json.loads(cli("bench", "a.onnx", "b.onnx", "--seq", "4", *SHORT, "--json", "-").out)
    for model in ("a.onnx", "b.onnx"):
        figures = {m["name"]: m["value"] for m in report["measurements"] if m["model"] == model}
        assert figures["of_limit"] == pytest.approx(figures["limit"] / figures["latency_p50"])
        assert figures["operations"] == 2 * 4 * 8 * 8
        assert sum(note.startswith(f"limit: {model} runs at ") for note in report["notes"]) == 1
    report = json.loads(cli("bench", "a.onnx", *JSON).out)
    assert not [m for m in report["measurements"] if m["name"] in ("limit", "traffic")]


@pytest.fixture
def samples(two: Path) -> Path:
    """s.npz: 40 samples of four tokens for x, each of which is recognized."""
    x = np.arange(40, dtype=np.float32).reshape(-1, 1, 1) * np.ones((1, 4, 8), np.float32)
    np.savez(two / "s.npz", x=x)
    return two


def test_samples_take_the_place_of_random_inputs(cli: Cli, samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All models get the same samples in the same order; the report tells which."""
    written: list[list[float]] = []

    def spy(feeds: Any, path: Path) -> int:
        every = list(feeds)
        written.append([float(value) for one in every for value in one["x"][:, 0, 0]])
        return write_feeds(every, path)

    monkeypatch.setattr(real_samples, "write_feeds", spy)
    outcome = cli("bench", "a.onnx", "b.onnx", "--data", "s.npz", "--batch", "1,3", *JSON)
    assert outcome.code == 0, outcome
    assert written == [list(map(float, range(40))), list(map(float, range(39)))]
    report = json.loads(outcome.out)
    assert points(report, "b.onnx", "latency_mean") == points(report, "a.onnx", "latency_mean")
    assert len(points(report, "b.onnx", "speedup")) == 2
    timed_on = report["timed_on"]
    assert (timed_on["data"], timed_on["samples"], len(timed_on["sha256"])) == ("s.npz", 40, 64)
    assert any(note.startswith("timed on 40 samples of s.npz") for note in report["notes"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a.onnx", "--seq", "4,8"), "samples of --data have lengths of their own"),
        (("a.onnx", "--batch", "41"), "s.npz has 40 samples, fewer than a --batch of 41"),
        (("a.onnx", "--generate", "8,8"), "--generate makes its prompts up"),
    ],
)
def test_samples_that_cannot_be_timed_on_are_refused(
    cli: Cli, samples: Path, words: tuple[str, ...], message: str
) -> None:
    outcome = cli("bench", *words, "--data", "s.npz", *QUICK)
    assert outcome.code == 2 and message in outcome.err, outcome


def test_figures_of_other_samples_are_not_compared(cli: Cli, samples: Path) -> None:
    np.savez(samples / "t.npz", x=np.ones((40, 4, 8), np.float32))
    for name, words in (("random", ()), ("s", ("--data", "s.npz"))):
        assert cli("bench", "a.onnx", "b.onnx", *words, *QUICK, "--json", f"{name}.json").code == 0
    for data, baseline, passes in (("s.npz", "s", True), ("t.npz", "s", False), ("s.npz", "random", False)):
        outcome = cli("bench", "a.onnx", "b.onnx", "--data", data, "--baseline", f"{baseline}.json", *QUICK)
        assert ("timed on " in outcome.err) is not passes, outcome
        assert passes or outcome.code == 2
