"""Limits: how they are read, and what measurements make of them."""

from __future__ import annotations

import math

import pytest

from compresskit.errors import ExitCode, UsageError
from compresskit.model import Applied
from compresskit.recipe.limits import Limits, parse_size
from compresskit.report import Gate, Measurement, ModelEntry, Report, Verdict, judge
from compresskit.runner.gates import AS_FAST, gates
from compresskit.runner.judging import unjudged
from compresskit.runner.promises import may_slow, promises_size, promises_speed


@pytest.mark.parametrize(
    ("text", "size"),
    [("20MB", 20_000_000), ("1.5 GB", 1_500_000_000), ("900KiB", 921_600), ("12", 12), ("3 b", 3), (" 2mib ", 2 << 20)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "20 PB", "-3MB", "0", "nanMB", "1,5MB", "infMB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


def entry(name: str, size: int) -> ModelEntry:
    return ModelEntry(name=name, path=name, bytes=size, sha256="0")


def speedup(value: float, low: float | None, high: float | None) -> Measurement:
    return Measurement(model="b", name="speedup", value=value, low=low, high=high, n=7, unit="×")


def only(found: list[Gate], name: str) -> Gate:
    return next(g for g in found if g.name == name)


@pytest.mark.parametrize(
    ("size", "limit", "passed"),
    [(90, None, True), (100, None, True), (101, None, False), (90, "80B", False), (120, "200B", True)],
)
def test_the_size_gate(size: int, limit: str | None, passed: bool) -> None:
    found = gates([entry("a", 100), entry("b", size)], None, [], Limits(max_size=limit))
    assert only(found, "size").passed is passed
    assert only(found, "size").asked is (limit is not None)


@pytest.mark.parametrize(
    ("measured", "limit", "passed"),
    [
        ((2.0, 1.8, 2.2), None, True),
        ((1.0, 0.97, 1.03), None, True),
        ((0.5, 0.45, 0.55), None, False),
        ((0.95, 0.5, 1.8), None, None),
        ((1.3, 1.22, 1.4), 1.2, True),
        ((1.3, 1.2, 1.4), 1.2, True),
        ((1.2, 1.2, 1.2), 1.2, True),
        ((1.1, 1.0, 1.2), 1.2, None),
        ((1.3, 1.1, 1.5), 1.2, None),
        ((1.0, 0.9, 1.1), 1.2, False),
    ],
)
def test_the_speed_gate(measured: tuple[float, float, float], limit: float | None, passed: bool | None) -> None:
    found = gates([entry("a", 100), entry("b", 50)], None, [speedup(*measured)], Limits(min_speedup=limit))
    assert only(found, "speed").passed is passed


@pytest.mark.parametrize(
    ("measured", "promised", "unpromised"),
    [
        ((1.02, 1.01, 1.07), (True, "interval"), (True, "interval")),
        ((0.99, 0.96, 1.08), (True, "interval"), (True, "interval")),
        ((0.97, 0.94, 0.99), (None, "slower by an uncertain amount, 95 %"), (True, "interval")),
        ((0.97, 0.92, 1.02), (None, "too noisy to decide, 95 %"), (True, "interval")),
        ((0.93, 0.92, 0.94), (False, "interval"), (True, "interval")),
        ((0.95, 0.85, 1.05), (None, "too noisy to decide"), (None, "too noisy to decide")),
        ((0.8, 0.78, 0.82), (False, "interval"), (False, "interval")),
    ],
)
def test_what_promises_no_speed_is_held_to_a_margin(
    measured: tuple[float, float, float], promised: tuple[bool | None, str], unpromised: tuple[bool | None, str]
) -> None:
    for slower, (passed, said), limit in (
        ({}, promised, "not slower"),
        ({"b": AS_FAST}, unpromised, "as fast within 10 %"),
    ):
        found = gates([entry("a", 100), entry("b", 50)], None, [speedup(*measured)], Limits(), slower=slower)
        gate = only(found, "speed")
        assert (gate.passed, gate.limit) == (passed, limit) and said in gate.reason
        assert ("too noisy" in gate.reason) == ("too noisy" in said)


def test_what_may_be_slower_has_a_limit_of_speed_only_where_one_is_asked_for() -> None:
    models, measured, slower = [entry("a", 100), entry("b", 50)], [speedup(0.25, 0.24, 0.26)], {"b": math.inf}
    assert not any(gate.name == "speed" for gate in gates(models, None, measured, Limits(), slower=slower))
    asked = gates(models, None, measured, Limits(min_speedup=0.5), slower=slower)
    assert only(asked, "speed").passed is False
    average, tie = (Applied("share.symmetrize", {"form": form}, {}) for form in ("average", "tie"))
    assert may_slow([average]) and not may_slow([tie]) and not may_slow([average], [average])
    assert not may_slow([Applied("absent.plugin", {}, {})])


@pytest.mark.parametrize(
    ("models", "speedups", "limits"),
    [
        ("ab", [], Limits(max_drop="1pt", min_speedup=1.2)),
        ("a", [], Limits(max_drop="1pt", min_speedup=1.2)),
        ("ab", [(1.1, 0.9, 1.3)], Limits(min_speedup=1.2)),
        ("ab", [(0.97, 0.94, 0.99)], Limits()),
        ("ab", [(0.97, None, None)], Limits()),
    ],
)
def test_each_inconclusive_gate_names_what_to_do(
    models: str, speedups: list[tuple[float, float | None, float | None]], limits: Limits
) -> None:
    known = [entry(name, 100) for name in models]
    found = gates(known, None, [speedup(*given) for given in speedups], limits)
    open_ = [gate.reason for gate in found if gate.passed is None]
    assert open_ and all("measure again" in reason for reason in open_)


def test_what_promises_no_smaller_file_has_only_the_size_asked_for() -> None:
    models = [entry("a", 100), entry("b", 130)]
    assert not only(gates(models, None, [], Limits()), "size").passed
    assert not [gate for gate in gates(models, None, [], Limits(), larger=("b",)) if gate.name == "size"]
    assert not only(gates(models, None, [], Limits(max_size="120"), larger=("b",)), "size").passed
    merging = Applied("substitute.tokens", {"tokens": 8}, {}, {})
    assert not promises_size((merging,)) and promises_size((merging, RTN)) and promises_speed((merging,))


RTN = Applied("quantize.rtn", {"bits": 4}, {}, {})


@pytest.mark.parametrize(
    ("history", "before", "promised"),
    [
        ((), (), True),
        ((RTN,), (), False),
        ((RTN,), (RTN,), True),
        ((Applied("prune.structured", {"ratio": 0.5}, {}, {}), RTN), (), True),
        (
            (Applied("prune.structured", {"ratio": 0.5}, {}, {}), RTN),
            (Applied("prune.structured", {"ratio": 0.5}, {}, {}),),
            False,
        ),
        ((Applied("prune.wanda", {}, {}, {}),), (), False),
        ((Applied("quantize.nf4", {}, {}, {}),), (), False),
        ((Applied("quantize.qat", {"bits": 8, "activations": 8}, {}, {}),), (), True),
        ((Applied("quantize.qat", {}, {}, {}),), (), False),
        ((Applied("quantize.int8-static", {}, {}, {}),), (), True),
        ((Applied("made.up", {}, {}, {}),), (), True),
    ],
)
def test_which_methods_promise_speed(history: tuple[Applied, ...], before: tuple[Applied, ...], promised: bool) -> None:
    assert promises_speed(history, before) is promised


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([(1.02, 1.01, 1.04), (0.96, 0.93, 0.98)], Verdict.UNVERIFIED),
        ([(1.02, 1.01, 1.04), (0.97, 0.9, 1.04)], Verdict.INCONCLUSIVE),
    ],
)
def test_figures_are_unclear_only_where_an_interval_holds_1(
    ratios: list[tuple[float, float, float]], verdict: Verdict
) -> None:
    assert unjudged([speedup(*ratio) for ratio in ratios]) is verdict


@pytest.mark.parametrize(
    ("size", "limit", "passed"),
    [(80, "80B", True), (81, "80B", False), (1001, None, True), (1002, None, False)],
)
def test_a_size_that_equals_what_is_allowed_passes(size: int, limit: str | None, passed: bool) -> None:
    found = gates([entry("a", 1000), entry("b", size)], None, [], Limits(max_size=limit))
    assert only(found, "size").passed is passed


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Limits(), {"size": False, "speed": False}),
        (Limits(may_grow=True), {}),
        (Limits(max_size="200B", may_grow=True), {"size": True}),
        (Limits(min_speedup=0.4, may_grow=True), {"speed": True}),
    ],
)
def test_what_may_grow_is_held_only_to_what_was_asked(limits: Limits, expected: dict[str, bool]) -> None:
    """Fine-tuning makes nothing smaller or faster: size and speed have no gate of their own."""
    found = gates([entry("a", 100), entry("b", 150)], None, [speedup(0.5, 0.45, 0.55)], limits)
    assert {gate.name: gate.passed for gate in found} == expected


def test_several_models_have_gates_of_their_own() -> None:
    found = gates([entry("a", 100), entry("b", 50), entry("c", 200)], None, [], Limits())
    assert [(g.name, g.passed) for g in found] == [("b: size", True), ("c: size", False)]


@pytest.mark.parametrize(
    ("limits", "evaluated", "benched", "said"),
    [
        (Limits(max_drop="3"), True, True, "`max_drop`"),
        (Limits(max_drop="1%"), False, True, "`eval_data`"),
        (Limits(min_speedup=1.2), True, False, "`no_bench`"),
        (Limits(min_speedup=-1), True, True, "above 0"),
        (Limits(max_size="big"), True, True, "20MB"),
    ],
)
def test_limits_that_nothing_would_be_measured_for_are_refused(
    limits: Limits, evaluated: bool, benched: bool, said: str
) -> None:
    with pytest.raises(UsageError) as found:
        limits.check(evaluated=evaluated, benched=benched)
    assert said in str(found.value)


def gate(passed: bool | None, asked: bool = False) -> Gate:
    return Gate(name="g", limit="", value=1.0, passed=passed, asked=asked)


@pytest.mark.parametrize(
    ("found", "verified", "verdict", "code"),
    [
        ([gate(True)], True, Verdict.PASS, ExitCode.OK),
        ([gate(True), gate(False)], True, Verdict.FAIL, ExitCode.GATE),
        ([gate(False)], False, Verdict.FAIL, ExitCode.GATE),
        ([gate(True)], False, Verdict.UNVERIFIED, ExitCode.OK),
        ([gate(True), gate(None)], True, Verdict.INCONCLUSIVE, ExitCode.OK),
        ([gate(True), gate(None, asked=True)], True, Verdict.INCONCLUSIVE, ExitCode.GATE),
        ([gate(None, asked=True)], False, Verdict.UNVERIFIED, ExitCode.GATE),
    ],
)
def test_the_verdict_and_the_exit_code_follow_from_the_gates(
    found: list[Gate], verified: bool, verdict: Verdict, code: ExitCode
) -> None:
    assert judge(found, verified=verified) is verdict
    report = Report(command="", verdict=judge(found, verified=verified), models=[entry("a", 1)], gates=found)
    assert report.exit_code() is code
