"""The table of figures: a rerun replaces its row, and a row always names the machine it was measured on."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "results.py"


@pytest.fixture
def results() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_results", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(path: Path) -> list[list[str]]:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize(("passed", "word"), [(True, "met"), (False, "missed"), (None, "")])
def test_a_row_holds_what_was_measured_and_its_verdict(results, tmp_path, passed, word):
    path = tmp_path / "RESULTS.md"
    results.record("speed", "≥ 2×", "2.10×", 15, "2.0 to 2.2", passed, path=path)
    assert rows(path)[0][:7] == ["speed", "≥ 2×", "2.10×", "15", "2.0 to 2.2", word, "A"]


def test_a_rerun_replaces_its_own_row_and_keeps_the_others(results, tmp_path):
    path = tmp_path / "RESULTS.md"
    for case, value in (("b", "1"), ("a", "2"), ("b", "3")):
        results.record(case, "", value, 1, path=path)
    assert [row[:3] for row in rows(path)] == [["a", "", "2"], ["b", "", "3"]]


def test_rows_of_two_machines_name_theirs_and_an_unused_machine_goes(results, tmp_path, monkeypatch):
    path = tmp_path / "RESULTS.md"
    results.record("a", "", "1", 1, path=path)
    monkeypatch.setattr(results, "_machine", lambda facts: "another machine")
    results.record("b", "", "1", 1, path=path)
    assert [row[6] for row in rows(path)] == ["A", "B"]
    results.record("a", "", "2", 1, path=path)
    assert [row[6] for row in rows(path)] == ["B", "B"]
    listed = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("- **")]
    assert listed == ["- **B**: another machine"]


def test_text_that_would_break_the_table_is_made_harmless(results, tmp_path):
    path = tmp_path / "RESULTS.md"
    results.record("a | b\nc", "", "1", 1, path=path)
    results.record("a | b\nc", "", "2", 1, path=path)
    assert [row[0] for row in rows(path)] == ["a / b c"]
