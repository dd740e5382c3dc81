"""The tour, on a folder that is there already; its whole way is slow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_material import Cli, picture

from compresskit.report import Report

pytest.importorskip("sklearn")


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A tour that trains and measures nothing."""
    from compresskit.cli import demo
    from compresskit.report import Verdict

    def results(*_: object) -> Report:
        report = Report(command="compresskit demo", verdict=Verdict.PASS, models=[])
        Path("report.json").write_text(report.to_json(), encoding="utf-8")
        return report

    monkeypatch.setattr(demo, "_results", results)
    monkeypatch.setattr(demo, "_train", lambda *_: None)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("stub")
def test_it_is_replaced_only_when_that_is_asked_for(cli: Cli) -> None:
    assert cli("demo").code == 0
    before = picture(Path())
    cli("demo", "-q").refused(2, "compresskit-demo", "exists already", "--force")
    assert picture(Path()) == before
    assert cli("demo", "--force").code == 0


@pytest.mark.usefixtures("stub")
@pytest.mark.parametrize("content", ["years of work", "{}", json.dumps({"command": "compresskit demo"})])
def test_a_folder_of_the_users_is_never_replaced(cli: Cli, content: str) -> None:
    Path("mine").mkdir()
    Path("mine/report.json").write_text(content, encoding="utf-8")
    cli("demo", "-o", "mine", "--force", "-q").refused(2, "mine", "did not write")
    assert Path("mine/report.json").read_text(encoding="utf-8") == content


@pytest.mark.slow
def test_the_whole_tour(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = cli("demo", "--json", "-")
    report = Report.model_validate_json(found.out)
    assert found.code in (0, 1) and [m.name for m in report.models] == ["digits.pt", "int8", "int4", "best"]
    assert report.values("accuracy")["int8"].value > 95
    written = {p.name for p in Path("compresskit-demo").iterdir()}
    assert written >= {"net.py", "digits.pt", "int8", "int4", "best", "report.json"}
