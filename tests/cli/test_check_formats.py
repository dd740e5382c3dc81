"""``compresskit check --format``: each document is read by a parser of its own kind."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest
from check_material import entry, report, save
from cli_material import Cli

from compresskit.report import Gate, Report

NASTY = "a,b:c%25\x1b[31m\x00\ud800\ufffe\u202e\r\n::error::owned ##[error]x <&\"'> ]]> |x| `y`"
GATES = [
    Gate(name="ONNX parity", limit="≤ 1e-05", value=1e-6, passed=True),
    Gate(name="accuracy drop", limit="≤ 0.1pt", value=0.5, unit="pt", passed=False, asked=True),
    Gate(name="speed", limit="not slower", value=1.0, unit="×", passed=None, reason="too noisy"),
    Gate(name="size", limit="≤ 1%, or so", value=None, passed=None, asked=True, reason="100 % unknown"),
]
KINDS = ["text", "json", "junit", "github", "markdown"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    return tmp_path


def nasty() -> Report:
    """Text of every kind that a report holds, hostile; written without the escapes of to_json."""
    text = NASTY.replace("\ud800", "").replace("\x00", "\x01")
    gate = GATES[1].model_copy(update={"name": text, "limit": text, "reason": text})
    models = [entry("fp32", 10, "0"), entry(text, 9, "1")]
    return report(gates=[gate], models=models, notes=[text], command=text, accuracy=None, speed=None)


def shown(cli: Cli, kind: str, found: Report, code: int = 1) -> str:
    save(found)
    done = cli("check", "report.json", "--format", kind)
    assert (done.code, done.err) == (code, ""), done
    return done.out


def test_junit_has_a_case_for_each_gate(cli: Cli) -> None:
    root = Xml.fromstring(shown(cli, "junit", report(gates=GATES)).encode())
    suite = root.find("testsuite")
    assert root.tag == "testsuites" and suite is not None
    counts = {"tests": "4", "failures": "2", "errors": "0", "skipped": "1"}
    assert counts.items() <= suite.attrib.items() and counts.items() <= root.attrib.items()
    cases = {case.get("name"): {child.tag: child for child in case} for case in suite.iter("testcase")}
    assert list(cases) == [gate.name for gate in GATES]
    assert {name: set(parts) & {"failure", "skipped"} for name, parts in cases.items()} == {
        "ONNX parity": set(), "accuracy drop": {"failure"}, "speed": {"skipped"}, "size": {"failure"},
    }  # fmt: skip
    assert cases["accuracy drop"]["failure"].get("type") == "missed"
    assert cases["size"]["failure"].get("type") == "unproven"
    assert "limit ≤ 0.1pt" in (cases["accuracy drop"]["failure"].get("message") or "")
    verdict = {p.get("name"): p.get("value") for p in suite.iter("property")}
    assert verdict == {"verdict": "FAIL", "command": "compresskit quantize m.pt --bits 8"}


def unescaped(text: str) -> str:
    for code, char in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        text = text.replace(code, char)
    return text


def test_github_annotates_what_is_not_passed(cli: Cli) -> None:
    lines = shown(cli, "github", report(gates=GATES)).splitlines()
    found = [m.groups() for line in lines if (m := re.fullmatch(r"::(\w+) title=([^:,]*)::(.*)", line))]
    assert [(kind, unescaped(title)) for kind, title, _ in found] == [
        ("error", "failed: accuracy drop"), ("warning", "inconclusive: speed"), ("error", "inconclusive: size")
    ]  # fmt: skip
    assert unescaped(found[2][2]) == "size: not known, limit ≤ 1%, or so: 100 % unknown"
    assert lines[0].startswith("FAIL  ") and lines[1].startswith("passed  ONNX parity")


@pytest.mark.parametrize("kind", KINDS)
def test_text_from_the_report_has_no_effect(cli: Cli, kind: str) -> None:
    out = shown(cli, kind, nasty())
    if kind == "json":
        assert Report.model_validate_json(out) == nasty()
        return
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", out)
    if kind == "junit":
        cases = list(Xml.fromstring(out.encode()).iter("testcase"))
        assert len(cases) == 1 and "<&\"'> ]]>" in (cases[0].get("name") or "")
    if kind == "github":
        lines = out.splitlines()
        commands = [line for line in lines if line.lstrip().startswith("::")]
        assert len(lines) == 3 and len(commands) == 1
        assert re.fullmatch(r"::error title=[^:,\r\n]*::[^\r\n]*", commands[0])
        assert all("##[" not in line for line in lines if line not in commands)
    if kind == "markdown":
        rows = [line for line in out.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1 and len(rows) == 4


def test_markdown_is_a_table_and_a_list(cli: Cli) -> None:
    out = shown(cli, "markdown", report(gates=GATES))
    assert out.startswith("### ❌ FAIL\n") and out.endswith("\n") and not out.endswith("\n\n")
    rows = [line for line in out.splitlines() if line.startswith("|")]
    assert len(rows) == 4 and {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {7}
    assert len([line for line in out.splitlines() if re.match(r"- (passed|\*\*)", line)]) == len(GATES)


def test_text_says_the_verdict_first(cli: Cli) -> None:
    assert shown(cli, "text", report(), 0).startswith("PASS  fp32/model.onnx → int8/model.onnx")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_gets_the_document_and_stdout_the_text(cli: Cli, kind: str) -> None:
    out = shown(cli, kind, report(gates=GATES))
    for words in ((), ("--quiet",)):
        Path("out").write_text("old")
        found = cli("check", "report.json", "--format", kind, "-o", "out", *words)
        assert found.code == 1 and found.err == ""
        assert found.out.startswith("FAIL") if not words else found.out == ""
        written = Path("out").read_text(encoding="utf-8")
        assert written == out or (kind == "text" and written.startswith("FAIL"))
    assert [p.name for p in sorted(Path().iterdir())] == ["out", "report.json"]


def test_stdout_may_be_named(cli: Cli) -> None:
    out = shown(cli, "junit", report(), 0)
    assert cli("check", "report.json", "--format", "junit", "-o", "-").out == out


@pytest.mark.parametrize("kind", KINDS)
def test_quiet_keeps_the_document_and_drops_the_text(cli: Cli, kind: str) -> None:
    out = shown(cli, kind, report(), 0)
    assert cli("check", "report.json", "--format", kind, "--quiet").out == ("" if kind == "text" else out)


def test_the_summary_of_a_job_is_added_to(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    Path("summary.md").write_text("before\n")
    shown(cli, "junit", report(), 0)
    assert Path("summary.md").read_text() == "before\n"
    shown(cli, "github", report(gates=GATES))
    found = Path("summary.md").read_text(encoding="utf-8")
    assert found == "before\n" + shown(cli, "markdown", report(gates=GATES))


def test_a_summary_that_can_not_be_written_changes_no_verdict(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "nope/summary.md")
    save(report(gates=GATES))
    found = cli("check", "report.json", "--format", "github")
    assert found.code == 1 and "nope/summary.md" in found.err and len(found.err.splitlines()) == 1
