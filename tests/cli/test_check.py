"""``compresskit check``: limits, their exit codes, and reports that can't be trusted."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from check_material import alone, entry, report, save
from cli_material import Cli

from compresskit.report import Gate, Measurement, Report, Verdict

MISSED = Gate(name="size", limit="≤ 100 kB", value=290_000, unit="bytes", passed=False, asked=True)
UNPROVEN = Gate(name="speed", limit="≥ 3×", value=2.0, unit="×", passed=None, asked=True)
NOISY = Gate(name="speed", limit="not slower", value=1.0, unit="×", passed=None)
THREE = [*report().models, entry("int4", 150_000, "2")]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    return tmp_path


def judged(cli: Cli, *words: object) -> tuple[int, Report]:
    found = cli("check", *words, "--format", "json")
    assert found.err == "" and found.out, found
    return found.code, Report.model_validate_json(found.out)


OWN = {
    "passed": ([Gate(name="size", limit="", value=1, passed=True)], {}, 0, Verdict.PASS),
    "missed": ([MISSED], {}, 1, Verdict.FAIL),
    "asked and unproven": ([UNPROVEN], {}, 1, Verdict.INCONCLUSIVE),
    "default and unproven": ([NOISY], {}, 0, Verdict.INCONCLUSIVE),
    "unverified": ([Gate(name="size", limit="", value=1, passed=True)], {"accuracy": None}, 0, Verdict.UNVERIFIED),
}  # fmt: skip


@pytest.mark.parametrize("case", OWN)
def test_without_limits_the_reports_own_gates_decide(cli: Cli, case: str) -> None:
    gates, changes, code, verdict = OWN[case]
    before = report(gates=gates, **changes)
    save(before)
    found, after = judged(cli, "report.json")
    assert (found, after.verdict) == (code, verdict)
    assert after == before


LIMITS = {
    "drop kept": (("--max-drop", "0.5pt"), {}, 0, "accuracy drop", True),
    "drop missed": (("--max-drop", "0.4pt"), {}, 1, "accuracy drop", False),
    "relative drop kept": (("--max-drop", "1%"), {}, 0, "accuracy drop", True),
    "perplexity may fall": (("--max-drop", "0pt"), {"metric": "perplexity"}, 0, "perplexity drop", True),
    "perplexity may not rise": (("--max-drop", "1pt"), {"metric": "perplexity", "accuracy": 94.0}, 1,
                                "perplexity drop", False),
    "drop unknown": (("--max-drop", "1%"), {"accuracy": None}, 1, "quality drop", None),
    "size kept": (("--max-size", "290KB"), {}, 0, "size", True),
    "size missed": (("--max-size", "289KB"), {}, 1, "size", False),
    "speed kept": (("--min-speedup", "1.9"), {}, 0, "speed", True),
    "speed missed": (("--min-speedup", "2.2"), {}, 1, "speed", False),
    "speed unproven": (("--min-speedup", "2.0"), {}, 1, "speed", None),
    "speed unknown": (("--min-speedup", "1.0"), {"speed": None}, 1, "speed", None),
    "a laxer limit than the run's": (("--max-size", "300KB"), {"gates": [MISSED]}, 0, "size", True),
}  # fmt: skip


@pytest.mark.parametrize("case", LIMITS)
def test_a_limit_is_judged_from_the_figures(cli: Cli, case: str) -> None:
    words, changes, code, name, passed = LIMITS[case]
    save(report(**changes))
    found, after = judged(cli, "report.json", *words)
    gate = next(gate for gate in after.gates if gate.name == name)
    assert (found, gate.passed, gate.asked) == (code, passed, True), gate
    assert [g.name for g in after.gates].count(name) == 1


def test_check_judges_as_the_run_did(cli: Cli) -> None:
    """The same figures and limits through the gates of a run."""
    from compresskit.recipe.limits import Limits
    from compresskit.runner.gates import gates

    found = report()
    limits = Limits("1%", "300KB", 1.5)
    save(found)
    _, after = judged(cli, "report.json", "--max-drop", "1%", "--max-size", "300KB", "--min-speedup", "1.5")
    expected = gates(found.models, found.evaluation, found.measurements, limits)
    assert sorted((g for g in after.gates if g.asked), key=str) == sorted(expected, key=str) and len(expected) == 3


def test_gates_that_no_limit_replaces_still_count(cli: Cli) -> None:
    parity = Gate(name="ONNX parity", limit="≤ 1e-05", value=1.0, passed=False)
    save(report(gates=[parity]))
    code, after = judged(cli, "report.json", "--max-size", "20MB", "--max-drop", "1%")
    assert (code, after.verdict) == (1, Verdict.FAIL) and parity in after.gates


def test_each_of_several_models_is_held_to_the_limits(cli: Cli) -> None:
    save(report(models=THREE))
    code, after = judged(cli, "report.json", "--max-size", "200KB", "--max-drop", "1%")
    asked = {gate.name: gate.passed for gate in after.gates if gate.asked}
    assert code == 1
    assert asked == {"int8: size": False, "int8: accuracy drop": True, "int4: size": True, "int4: accuracy drop": None}


@pytest.mark.parametrize(
    ("words", "code"),
    [(("--max-size", "1MB"), 0), (("--max-size", "1KB"), 1), (("--max-drop", "1%"), 1), (("--min-speedup", "1"), 1)],
)
def test_a_model_alone_has_a_size_and_no_drop(cli: Cli, words: tuple[str, str], code: int) -> None:
    save(alone())
    assert judged(cli, "report.json", *words)[0] == code


@pytest.mark.parametrize("found", [alone(), report(models=[], measurements=[], gates=[], verdict=Verdict.UNVERIFIED)])
def test_a_check_of_nothing_is_refused(cli: Cli, found: Report) -> None:
    save(found)
    cli("check", "report.json").refused(2, "there is nothing to check", "--max-drop")


def test_what_came_out_can_be_checked_again(cli: Cli) -> None:
    save(report())
    first = cli("check", "report.json", "--max-size", "1KB", "--format", "json", "-o", "out.json")
    again = cli("check", "out.json")
    assert (first.code, again.code) == (1, 1) and again.out.startswith("FAIL")


WRONG = {
    "drop": (("report.json", "--max-drop", "3"), ("--max-drop", "0.5pt")),
    "size": (("report.json", "--max-size", "big"), ("big", "MB")),
    "speed": (("report.json", "--min-speedup", "-1"), ("--min-speedup", "-1")),
    "speed nan": (("report.json", "--min-speedup", "nan"), ("--min-speedup",)),
    "growth": (("report.json", "--baseline", "report.json", "--max-growth", "lots%"), ("--max-growth", "5%")),
    "growth size": (("report.json", "--baseline", "report.json", "--max-growth", "-1KB"), ("size",)),
    "growth of nothing": (("report.json", "--max-growth", "1%"), ("--max-growth", "--baseline")),
    "other machine of nothing": (("report.json", "--allow-other-machine"), ("--allow-other-machine", "--baseline")),
    "format": (("report.json", "--format", "xml"), ("--format", "xml", "junit")),
    "both from stdin": (("-", "--baseline", "-"), ("stdin",)),
    "no report": ((), ("REPORT",)),
    "output is the report": (("report.json", "-o", "report.json"), ("--output", "report.json")),
    "output is the baseline": (("-", "--baseline", "report.json", "-o", "report.json"), ("--output",)),
    "output nowhere": (("report.json", "-o", "nope/out.xml"), ("--output", "nope/out.xml")),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_command_is_a_usage_error(cli: Cli, case: str) -> None:
    save(report())
    before = Path("report.json").read_bytes()
    words, said = WRONG[case]
    cli("check", *words).refused(2, *said)
    assert Path("report.json").read_bytes() == before


def changed(**parts: Any) -> str:
    return json.dumps({**json.loads(report().to_json()), **parts})


def figure(**parts: Any) -> list[dict[str, Any]]:
    found = json.loads(report().to_json())["measurements"]
    return [{**m, **parts} if m["name"] == "speedup" else m for m in found]


HOSTILE = {
    "empty": "",
    "no JSON": "model.onnx",
    "a list": "[1, 2]",
    "cut off": report().to_json()[:300],
    "not UTF-8": b'{"command": "\xff"}',
    "a lone surrogate": changed(command="X").replace('"X"', '"\\ud800"'),
    "other schema": changed(schema=2),
    "unknown key": changed(extra=1),
    "\x1b[31mkey\n": changed(**{"\x1b[31mkey\n": 1}),
    "verdict unknown": changed(verdict="\x1b[31mGOOD\nerror: x"),
    "nested": '{"environment": ' + '{"a":' * 100_000 + "1" + "}" * 100_000 + "}",
    "NaN": changed().replace("91.5", "NaN"),
    "NaN in the environment": changed(environment={"cpu": float("nan")}),
    "infinity": changed(measurements=figure(value=float("inf"))),
    "1e999": changed().replace("91.5", "1e999"),
    "negative size": changed().replace("290000", "-1"),
    "endless size": changed().replace("290000", "9" * 400),
    "digits": changed().replace("290000", "9" * 10_000),
    "speed-up of 0": changed(measurements=figure(value=0)),
    "speed-up below 0": changed(measurements=figure(value=-2.0, low=-3.0, high=-1.0)),
    "interval upside down": changed(measurements=figure(low=3.0)),
    "two speed-ups": changed(measurements=[*figure(), *figure(value=9.0, high=10.0)]),
    "two models of a name": changed(models=[m.model_dump() for m in [*THREE, THREE[-1]]]),
    "two gates of a name": changed(gates=[MISSED.model_dump(), {**MISSED.model_dump(), "passed": True}]),
    "a verdict that hides a failure": changed(gates=[MISSED.model_dump()]),
    "a failure of nothing": changed(verdict="FAIL"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_report_is_one_line(cli: Cli, case: str) -> None:
    text = HOSTILE[case]
    Path("r.json").write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    for words in (("r.json", "--max-size", "1MB"), ("r.json",)):
        found = cli("check", *words)
        found.refused(3, "r.json")
        assert len(found.err.splitlines()) == 1
    save(report())
    cli("check", "report.json", "--baseline", "r.json").refused(3, "r.json")


def test_a_file_without_end_is_refused(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from compresskit import report as module

    monkeypatch.setattr(module, "_MOST", 1000)
    save(report())
    cli("check", "report.json").refused(3, "report.json", "larger")


@pytest.mark.parametrize("value", [1e300, -1e300, 0.0])
def test_extreme_figures_are_judged(cli: Cli, value: float) -> None:
    found = report(accuracy=value, speed=(1e-300, 1e-301, 1e-299))
    save(found)
    save(report(), "old.json")
    code, _ = judged(cli, "report.json", "--max-drop", "1%", "--min-speedup", "1", "--baseline", "old.json")
    assert code == 1
    for kind in ("text", "junit", "github", "markdown"):
        assert cli("check", "report.json", "--baseline", "old.json", "--format", kind).code == 1


@pytest.mark.parametrize("name", ["nope.json", "nope", "\x1b[31m\nerror: x"])
def test_a_missing_report_is_named(cli: Cli, name: str) -> None:
    cli("check", name).refused(2, "cannot read the report")


def test_a_folder_is_a_bundle_with_a_report(cli: Cli) -> None:
    Path("out").mkdir()
    cli("check", "out").refused(3, "report.json")
    save(report(), "out/report.json")
    assert cli("check", "out", "--max-size", "1MB").code == 0


def test_stdin(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"\xef\xbb\xbf" + report().to_json().encode()  # with a mark, as some shells pipe
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    assert cli("check", "-", "--max-size", "1KB").code == 1
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"{")))
    cli("check", "-").refused(3, "standard input")


def test_what_a_bundle_holds_must_be_what_was_measured(cli: Cli, material: Path) -> None:
    """A real bundle, and the same after someone replaced its model."""
    import shutil

    shutil.copytree(material / "bundle", "bundle")
    assert cli("check", "bundle").code == 0
    with Path("bundle/model.onnx").open("ab") as stream:
        stream.write(b"\0")
    for words in (("bundle",), ("bundle/report.json",)):
        cli("check", *words).refused(3, "model.onnx", "measured")


def test_a_run_keeps_what_a_check_needs(cli: Cli, material: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What compare measured, held to the same limits again: the same gates, figures and words."""
    monkeypatch.chdir(material)
    words = ("--max-drop", "1pt", "--max-size", "1MB")
    run = cli("compare", "m.onnx", "bundle", "--data", "d.npz", "--no-bench", *words, "--json", "-")
    assert run.code == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(run.out.encode())))
    code, after = judged(cli, "-", *words)
    assert code == 0 and after == Report.model_validate_json(run.out)
    assert after.evaluation is not None and len(after.evaluation.data) == 64
    assert "95 % interval of the drop" in after.gates[0].reason


def test_a_measurement_of_another_metric_proves_nothing(cli: Cli) -> None:
    found = report(accuracy=None)
    more = [Measurement(model=m.name, name="cosine", value=1.0, n=64) for m in found.models]
    save(found.model_copy(update={"measurements": [*found.measurements, *more]}))
    code, after = judged(cli, "report.json", "--max-drop", "1%")
    assert (code, after.verdict) == (1, Verdict.UNVERIFIED)
