"""``compresskit check --baseline``: what counts as worse, and which reports can't be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from check_material import ENVIRONMENT, alone, entry, report, save
from cli_material import Cli

from compresskit.report import Gate, Report, Verdict

REPORTS = ("check", "report.json", "--baseline", "old.json")
INT4 = entry("int4", 150_000, "2")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def since(cli: Cli, *words: object) -> tuple[int, Report, dict[str, Gate]]:
    found = cli(*REPORTS, *words, "--format", "json")
    assert found.err == "" and found.out, found
    after = Report.model_validate_json(found.out)
    return found.code, after, {g.name.removesuffix(" since baseline"): g for g in after.gates if "since" in g.name}


def size(count: int) -> Any:
    return {"size": count}


CASES = {
    "the same": ({}, {}, (), 0, {"accuracy": True, "size": True, "speed": True}),
    "better in all": ({}, {"accuracy": 91.9, "size": 200_000, "speed": (3.0, 2.9, 3.1)}, (), 0,
                      {"accuracy": True, "size": True, "speed": True}),
    "within the default drop": ({}, {"accuracy": 90.6}, (), 0, {"accuracy": True}),
    "beyond the default drop": ({}, {"accuracy": 90.5}, (), 1, {"accuracy": False}),
    "no drop allowed": ({}, {"accuracy": 91.4}, ("--max-drop", "0pt"), 1, {"accuracy": False}),
    "more drop allowed": ({}, {"accuracy": 89.5}, ("--max-drop", "3pt"), 0, {"accuracy": True}),
    "perplexity rose": ({"metric": "perplexity"}, {"metric": "perplexity", "accuracy": 93.0}, (), 1,
                        {"perplexity": False}),
    "perplexity fell": ({"metric": "perplexity"}, {"metric": "perplexity", "accuracy": 90.0}, (), 0,
                        {"perplexity": True}),
    "larger by nothing that counts": (size(290_000), size(290_200), (), 0, {"size": True}),
    "larger": (size(290_000), size(291_000), (), 1, {"size": False}),
    "no growth at all": (size(290_000), size(290_001), ("--max-growth", "0"), 1, {"size": False}),
    "growth in percent": (size(290_000), size(304_500), ("--max-growth", "5%"), 0, {"size": True}),
    "too much in percent": (size(290_000), size(304_501), ("--max-growth", "5%"), 1, {"size": False}),
    "growth in bytes": (size(290_000), size(291_000), ("--max-growth", "1KB"), 0, {"size": True}),
    "too much in bytes": (size(290_000), size(291_001), ("--max-growth", "1KB"), 1, {"size": False}),
    "slower": ({}, {"speed": (1.5, 1.45, 1.55)}, (), 1, {"speed": False}),
    "hardly slower": ({"speed": (2.0, 1.99, 2.01)}, {"speed": (1.97, 1.96, 1.98)}, (), 0, {"speed": True}),
    "intervals overlap": ({"speed": (2.0, 1.7, 2.35)}, {"speed": (1.8, 1.5, 2.16)}, (), 0, {"speed": None}),
    "no interval": ({}, {"speed": (2.0, None, None)}, (), 0, {"speed": None}),
    "quality is gone": ({}, {"accuracy": None}, (), 1, {"accuracy": None}),
    "speed is gone": ({}, {"speed": None}, (), 1, {"speed": None}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_nothing_may_be_worse_than_before(cli: Cli, case: str) -> None:
    before, now, words, code, expected = CASES[case]
    save(report(**before), "old.json")
    save(report(**now))
    found, after, gates = since(cli, *words)
    assert found == code, after.gates
    assert {name: gates[name].passed for name in expected} == expected
    if code == 0 and None in expected.values():
        assert after.verdict is Verdict.INCONCLUSIVE


def test_the_interval_of_two_speed_ups_holds_both_errors(cli: Cli) -> None:
    """Worked by hand: half-widths of 10 % and 20 % in logarithms give sqrt(.01 + .04) = .2236 around 1.5 / 2.0."""
    from math import exp

    save(report(speed=(2.0, 2.0 * exp(-0.1), 2.0 * exp(0.1))), "old.json")
    save(report(speed=(1.5, 1.5 * exp(-0.2), 1.5 * exp(0.2))))
    _, _, gates = since(cli)
    assert gates["speed"].value == pytest.approx(0.75)
    assert f"95 % interval {0.75 * exp(-0.22361):.2f} to {0.75 * exp(0.22361):.2f}" in gates["speed"].reason


@pytest.mark.parametrize("lacks", ["accuracy", "speed"])
def test_what_the_baseline_lacks_is_told_and_not_compared(cli: Cli, lacks: str) -> None:
    save(report(**{lacks: None}), "old.json")
    save(report())
    code, after, gates = since(cli)
    assert code == 0 and lacks not in gates and any("it is not compared" in note for note in after.notes)


def test_limits_and_baseline_are_both_held(cli: Cli) -> None:
    save(report(), "old.json")
    save(report())
    code, after, _ = since(cli, "--max-size", "1KB")
    assert code == 1
    assert {g.name for g in after.gates if g.asked} == {"size", "accuracy since baseline", "size since baseline"}


def test_evaluated_models_are_compared_by_quality_and_size(cli: Cli) -> None:
    save(alone(accuracy=91.5), "old.json")
    save(alone(accuracy=80.0, name="new"))
    code, _, gates = since(cli)
    assert code == 1 and gates["accuracy"].passed is False and gates["size"].passed is True


@pytest.mark.parametrize(("now", "passed", "said"), [
    ((1.0, 0.98, 1.02), True, "latency 1 → 1 ms"),
    ((0.5, 0.49, 0.51), True, "latency 1 → 0.5 ms"),
    ((1.3, 1.28, 1.32), None, "run bench with both files"),
    ((1.1, 0.8, 1.5), None, "too noisy to decide"),
])  # fmt: skip
def test_the_latency_of_a_model_alone_proves_no_regression(
    cli: Cli, now: tuple[float, float, float], passed: bool | None, said: str
) -> None:
    """Two runs of one machine on two days: what it was busy with doesn't cancel."""
    save(alone((1.0, 0.98, 1.02)), "old.json")
    save(alone(now))
    code, after, gates = since(cli)
    assert code == 0 and gates["speed"].passed is passed and said in gates["speed"].reason
    assert gates["speed"].value == pytest.approx(1.0 / now[0])
    assert (after.verdict is Verdict.INCONCLUSIVE) == (passed is None)


def test_the_threads_of_a_sweep_are_not_mixed_up(cli: Cli) -> None:
    """Two threads in the baseline, one now: nothing says how fast two would be."""
    then, now = alone((1.0, 0.98, 1.02)), alone((2.0, 1.98, 2.02))
    (figure,) = (m for m in then.measurements if m.name == "latency_p50")
    both = [figure.model_copy(update={"threads": count, "value": 3.0 / count}) for count in (1, 2)]
    save(
        then.model_copy(update={"measurements": [m.model_copy(update={"low": None, "high": None}) for m in both]}),
        "old.json",
    )
    one = [m.model_copy(update={"threads": 1}) for m in now.measurements if m.name == "latency_p50"]
    save(now.model_copy(update={"measurements": one}))
    cli(*REPORTS).refused(2, "threads 2")


def test_a_cpu_is_no_baseline_of_a_gpu(cli: Cli) -> None:
    save(alone((10.0, 9.8, 10.2)), "old.json")
    save(alone((1.0, 0.98, 1.02), environment={**ENVIRONMENT, "device": "cuda"}))
    cli(*REPORTS).refused(2, "device cpu → cuda")


@pytest.mark.parametrize("latency", [(0.0, 0.0, 1.0), (1.0, -1.0, 2.0), (1.0, 1.5, 2.0), (1.0, 0.5, 0.9)])
def test_a_latency_that_cannot_be_is_a_damaged_report(cli: Cli, latency: tuple[float, float, float]) -> None:
    save(alone(latency), "old.json")
    save(alone((1.0, 0.98, 1.02)))
    cli(*REPORTS).refused(3, "old.json contradicts itself", "latency of int8")


def test_a_long_latency_is_readable(cli: Cli) -> None:
    save(alone((1234.0, 1230.0, 1240.0)), "old.json")
    save(alone((1300.0, 1290.0, 1310.0)))
    assert "latency 1234 → 1300 ms" in since(cli)[2]["speed"].reason


def test_a_latency_that_is_gone_fails(cli: Cli) -> None:
    save(alone((1.0, 0.98, 1.02)), "old.json")
    save(alone())
    code, _, gates = since(cli)
    assert code == 1 and gates["speed"].passed is None and "measure again" in gates["speed"].reason


def test_several_models_are_paired_by_name(cli: Cli) -> None:
    save(report(models=[*report().models, INT4]), "old.json")
    save(report(models=[report().models[0], INT4.model_copy(update={"bytes": 200_000}), report().models[1]]))
    code, _, gates = since(cli)
    assert code == 1 and gates["int4: size"].passed is False and gates["int8: size"].passed is True


def machine(**changes: Any) -> dict[str, Any]:
    return {"environment": {**ENVIRONMENT, **changes}}


OTHERS = {
    "cpu": (machine(cpu="Intel Xeon 8370C"), ("cpu AMD EPYC 7B13 → Intel Xeon 8370C",)),
    "threads": (machine(threads=8, cores=8), ("threads 2 → 8", "cores 2 → 8")),
    "flags": (machine(flags=["avx2", "amx_int8"]), ("flags -avx512f +amx_int8",)),
    "system": (machine(os="Windows", machine="arm64"), ("os Linux → Windows", "machine x86_64 → arm64")),
    "python": (machine(python="3.13.0"), ("python 3.12 → 3.13",)),
    "versions": (
        machine(packages={"compresskit": "0.2.0", "torch": "2.14.0", "onnxruntime": "1.31.0", "openvino": "2026.4"}),
        ("compresskit 0.1.0 → 0.2.0", "torch 2.13.0 → 2.14.0", "openvino unknown → 2026.4")),
    "nothing on record": ({"environment": {}}, ("cpu AMD EPYC 7B13 → unknown", "torch 2.13.0 → unknown")),
    "nonsense on record": (machine(cpu=["\x1b[31m"], packages=3, flags=7), ("flags -avx2", "torch 2.13.0 → unknown")),
    "a long list": (
        machine(cpu="x" * 70, packages={f"package-{n}": "1.2.3" for n in range(30)}), ("package-0 ", "package-29 ")),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_another_machine_is_refused_unless_it_is_allowed(cli: Cli, case: str) -> None:
    changes, said = OTHERS[case]
    save(report(), "old.json")
    save(report(**changes))
    cli(*REPORTS).refused(2, *said, "--allow-other-machine")
    code, after, gates = since(cli, "--allow-other-machine")
    assert code == 0 and {gate.passed for gate in gates.values()} == {True}
    assert any("baseline → report" in note for note in after.notes)


def test_an_unknown_machine_is_not_the_same_machine(cli: Cli) -> None:
    for name in ("old.json", "report.json"):
        save(report(environment={}), name)
    cli(*REPORTS).refused(2, "cpu unknown in both", "packages unknown in both")


@pytest.mark.parametrize("changes", [{}, machine(python="3.12.9")])
def test_the_same_machine_is_accepted(cli: Cli, changes: dict[str, Any]) -> None:
    save(report(), "old.json")
    save(report(**changes))
    assert since(cli)[0] == 0


RUNTIME = [m.model_copy(update={"runtime": "openvino", "batch": 8}) for m in report().measurements]
MEANINGLESS = {
    "data": ({"data": "e" * 64}, ("data " + "d" * 64, "e" * 64)),
    "metric": ({"metric": "top5"}, ("metric accuracy → top5",)),
    "number of samples": ({"n": 500}, ("n of accuracy 1000 → 500",)),
    "engine": ({"measurements": RUNTIME}, ("runtime of speed-up onnxruntime → openvino", "batch of speed-up 1 → 8")),
    "another original": ({"original": entry("fp32", 2_000_000, "3")},
                         ("bytes of the original 1000000 → 2000000", "0" * 64, "3" * 64)),
    "other models": ({"models": [*report().models, INT4]}, ("int8 → int8, int4",)),
    "no original": ({"models": report().models[:1]}, ("2 models", "1 model")),
    "no models": ({"models": []}, ("no model",)),
}  # fmt: skip


@pytest.mark.parametrize("case", MEANINGLESS)
@pytest.mark.parametrize("words", [(), ("--allow-other-machine",)])
def test_reports_of_different_things_are_refused(cli: Cli, case: str, words: tuple[str, ...]) -> None:
    changes, said = MEANINGLESS[case]
    save(report(), "old.json")
    save(report(**changes))
    cli(*REPORTS, *words).refused(2, *said)


def test_an_original_that_was_trained_anew_is_accepted_and_told(cli: Cli) -> None:
    save(report(), "old.json")
    save(report(original=entry("fp32", 1_000_000, "5")))
    code, after, gates = since(cli)
    assert code == 0 and len(gates) == 3 and any("another original" in note for note in after.notes)
