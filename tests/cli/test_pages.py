"""Pages with pictures: where they are written, and what they never take the place of. Output for logs."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from cli_material import ARCH, RECIPE, RUN_RECIPE, SHAPE, Cli, picture
from page_reader import Page

from compresskit.cli import console
from compresskit.render.html.page import MARK, is_page

EVAL = ("--data", "d.npz", "--eval-data", "d.npz")
COMMANDS: dict[str, Sequence[str]] = {
    "quantize": ("quantize", "m.pt", *ARCH, *SHAPE, "--bits", "8", "--method", "rtn", "--no-bench", "-o", "out"),
    "export": ("export", "m.pt", *ARCH, *SHAPE, "-o", "out.onnx"),
    "evaluate": ("evaluate", "m.onnx", "--data", "d.npz"),
    "compare": ("compare", "m.onnx", "bundle", "--no-bench", "--data", "d.npz"),
    "run": (*RUN_RECIPE, "--quiet"),
}


@pytest.fixture(autouse=True)
def recipe(here: Path) -> None:
    (here / "r.yaml").write_text(RECIPE, encoding="utf-8")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_writes_the_page_of_its_report(cli: Cli, command: str) -> None:
    done = cli(*COMMANDS[command], "--html", "page.html", "--json", "report.json")
    assert done.code in (0, 1), done
    text = Path("page.html").read_text(encoding="utf-8")
    report = json.loads(Path("report.json").read_text(encoding="utf-8"))
    assert is_page(Path("page.html"))
    assert all(entry["sha256"] in text for entry in report["models"])
    assert not Page(text).loaded()


@pytest.mark.parametrize("command", COMMANDS)
def test_no_other_file_is_taken_for_a_page(cli: Cli, here: Path, command: str) -> None:
    (here / "mine.html").write_text("<p>my own page</p>", encoding="utf-8")
    before = picture(here)
    cli(*COMMANDS[command], "--html", "mine.html").refused(2, "mine.html", "not a page of compresskit")
    cli(*COMMANDS[command], "--html", "-").refused(2, "a page goes to a file")
    cli(*COMMANDS[command], "--html", "none/page.html").refused(2, "folder that exists")
    assert picture(here) == before


def test_an_earlier_page_is_replaced(cli: Cli) -> None:
    for command in ("evaluate", "compare"):
        assert cli(*COMMANDS[command], "--html", "page.html").code in (0, 1)
    assert "compresskit compare" in Path("page.html").read_text(encoding="utf-8")


def test_only_an_interactive_page_needs_plotly(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only an install for the edge is without it; what brings it there must not bring torch."""
    monkeypatch.setattr(console, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "plotly", None)
    for command in (COMMANDS["evaluate"], RUN_RECIPE):
        found = cli(*command, "--html", "page.html", "--interactive")
        found.refused(4, "this needs plotly, which is not installed", "pip install plotly")
    assert not list(Path().rglob("*.html"))
    assert cli(*COMMANDS["evaluate"], "--html", "page.html").code in (0, 1)
    assert cli(*RUN_RECIPE).code in (0, 1)
    assert is_page(Path("page.html")) and is_page(Path("out/report.html"))


@pytest.mark.parametrize("command", [*COMMANDS, "run, no page", "a matrix, no page"])
def test_an_interactive_page_is_one_that_is_written(cli: Cli, here: Path, command: str) -> None:
    name, *more = command.split(", ")
    if name == "a matrix":
        (here / "r.yaml").write_text(RECIPE + "matrix: {steps.2.bits: [4, 8]}\n", encoding="utf-8")
    before = picture(here)
    words = (*COMMANDS["run" if name == "a matrix" else name], *(("--no-html",) if more or name == "run" else ()))
    cli(*words, "--interactive").refused(2, "--interactive is about a page", "give --html FILE")
    assert picture(here) == before


def test_a_run_leaves_an_interactive_page_where_it_is_asked_for(cli: Cli) -> None:
    assert cli(*COMMANDS["run"], "--interactive").code == 0
    drawn = Path("out/report.html").read_text(encoding="utf-8")
    assert "Plotly.newPlot" in drawn and not Page(drawn).loaded()
    assert cli("report", "out").code == 0
    light = Path("out/report.html").read_text(encoding="utf-8")
    assert "<script" not in light and len(light) < 150_000
    assert cli("report", "out", "--interactive").code == 0
    assert "Plotly.newPlot" in Path("out/report.html").read_text(encoding="utf-8")


def test_a_page_is_not_put_into_what_is_written(cli: Cli) -> None:
    cli(*COMMANDS["quantize"], "--html", "out/page.html").refused(2)
    assert not Path("out").exists()


@pytest.mark.parametrize("wanted", [True, False])
def test_a_run_leaves_a_page_beside_its_report(cli: Cli, wanted: bool) -> None:
    assert cli(*COMMANDS["run"], *(() if wanted else ("--no-html",))).code == 0
    assert Path("out/report.json").exists()
    assert Path("out/report.html").exists() is wanted


def test_a_matrix_takes_no_other_file_for_its_page(cli: Cli) -> None:
    Path("r.yaml").write_text(RECIPE + "matrix: {steps.2.bits: [4, 8]}\n", encoding="utf-8")
    Path("out").mkdir()
    Path("out/report.html").write_text("mine", encoding="utf-8")
    cli(*COMMANDS["run"]).refused(2, "report.html", "not a page of compresskit")
    assert sorted(path.name for path in Path("out").iterdir()) == ["report.html"]
    assert Path("out/report.html").read_text(encoding="utf-8") == "mine"


def test_a_report_is_drawn_afterwards(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli(*COMMANDS["quantize"]).code == 0
    done = cli("report", "out")
    assert (done.code, done.out.strip()) == (0, str(Path("out/report.html")))
    beside = cli("report", "out/report.json", "-o", "page.html")
    assert beside.code == 0, beside
    assert Path("page.html").read_bytes() == Path("out/report.html").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path("out/report.json").read_bytes())))
    assert cli("report", "-", "-o", "piped.html", "--quiet").out == ""
    assert Path("piped.html").read_bytes() == Path("page.html").read_bytes()


@pytest.mark.parametrize("given", ["none.json", "m.pt", "d.npz", "half.json", "list.json"])
def test_what_is_no_report_is_not_drawn(cli: Cli, here: Path, given: str) -> None:
    (here / "half.json").write_text('{"verdict": "PASS", "mod', encoding="utf-8")
    (here / "list.json").write_text("[1, 2]", encoding="utf-8")
    before = picture(here)
    cli("report", given).refused(2 if given == "none.json" else 3, given)
    assert picture(here) == before


@pytest.mark.skipif(sys.platform == "win32", reason="such names are refused there")
def test_hostile_names_stay_text(cli: Cli) -> None:
    name = "<script>alert(1)</script>.onnx".replace("/", "")
    Path("m.onnx").rename(name)
    assert cli("evaluate", name, "--data", "d.npz", "--html", "page.html").code in (0, 1)
    text = Path("page.html").read_text(encoding="utf-8")
    assert MARK in text and "<script>alert" not in text


def test_plain_is_for_logs(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    long = f"{'a-long-name-' * 9}.onnx"
    Path("m.onnx").rename(long)
    monkeypatch.setenv("FORCE_COLOR", "1")
    coloured, plain = cli("evaluate", long, "--data", "d.npz"), cli("evaluate", long, "--data", "d.npz", "--plain")
    assert "\x1b[" in coloured.out and "\x1b[" not in plain.out
    assert long in plain.out and long not in coloured.out, "one line however long"
    assert "\x1b[" in cli("evaluate", long, "--data", "d.npz").out, "it holds for one command"
