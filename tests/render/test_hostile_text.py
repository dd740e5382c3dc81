"""Text of a report that would act on a terminal, on GitHub's runner, or as markup: it is shown, and does nothing."""

from __future__ import annotations

import copy
import io
import json
import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree as Xml

import pytest
from pydantic import ValidationError
from report_material import full_report

from compresskit.render.console import make_console
from compresskit.render.github import github
from compresskit.render.html import html
from compresskit.render.junit import junit
from compresskit.render.markdown import markdown
from compresskit.render.terminal import print_report
from compresskit.report import Evaluation, Gate, Report, StepEntry

HOSTILE = (
    "pt\x1b[31m\u202e\r\n::error title=x::y\r\n::stop-commands::z\n##[error]\x01\x9b2J\x7f]]>"
    "<script>alert(1)</script>\u2028\u2066\ud800<img src=x onerror=alert(1)>\ufeff"
)
_ACTS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def whole() -> dict[str, Any]:
    """A report in which every part of the schema has something."""
    report = full_report().model_copy(
        update={
            "evaluation": Evaluation(metric="accuracy", higher_is_better=True, data="d", drops={"int8": (0.1, 0.2)}),
            "gates": [
                Gate(name="a", limit="1", value=2.0, unit="pt", passed=False, asked=True, reason="r"),
                Gate(name="b", limit="1", value=2.0, unit="pt", passed=None, reason="r"),
                Gate(name="c", limit="1", value=0.5, unit="pt", passed=True, asked=True, reason="r"),
            ],
            "steps": [StepEntry(name="s", state="undone", bytes=1, metric="accuracy", value=1.0, drop=0.1, reason="r")],
        }
    )
    return json.loads(report.to_json())  # type: ignore[no-any-return]


def texts(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the texts of a document stand; a key of a free mapping is ``(…, KEY)`` with a mark before it."""
    if isinstance(value, str):
        yield path
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from texts(item, (*path, index))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from texts(item, (*path, key))
            if path and (path[0] in ("environment", "history") or path[-1] in ("done", "skipped", "left", "drops")):
                yield (*path, "key:", key)


def spoiled(document: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    """The document with hostile text at one place."""
    whole = copy.deepcopy(document)
    *above, last = path
    is_key = bool(above) and above[-1] == "key:"
    at: Any = whole
    for part in above[:-1] if is_key else above:
        at = at[part]
    if is_key:
        at[HOSTILE] = at.pop(last)
    else:
        at[last] = HOSTILE
    return whole


def terminal(report: Report) -> str:
    stream = io.StringIO()
    print_report(report, make_console(stream, width=200))
    return stream.getvalue()


def harmless(report: Report) -> None:
    for draw in (terminal, github, junit, markdown, Report.to_json):
        text = draw(report)
        assert not _ACTS.search(text), draw.__name__
    commands = [line for line in github(report).splitlines() if "::" in line[:3]]
    assert all(re.match(r"::(error|warning) title=(failed|inconclusive)%3A [^:,]*::", line) for line in commands)
    assert len(commands) == sum(not gate.passed for gate in report.gates)
    assert "##[" not in github(report)
    Xml.fromstring(junit(report))
    assert not re.search(r"<(script>alert|img)", junit(report))
    assert not re.search(r"(?<!\\)<(script|img)", markdown(report))


PLACES = [path for path in texts(whole()) if path not in (("verdict",),) and path[-1] != "state"]


def test_the_places_cover_the_schema() -> None:
    """A field of text that is added later is in the report that is spoiled."""
    found = {str(part) for path in PLACES for part in path}
    for parts in (Report.model_fields, Gate.model_fields, StepEntry.model_fields):
        fields = {name for name, field in parts.items() if field.annotation is str}
        assert fields <= found


def test_hostile_text_does_nothing_anywhere() -> None:
    document = whole()
    drawn = 0
    for path in PLACES:
        try:
            report = Report.model_validate(spoiled(document, path))
        except ValidationError:
            continue  # not free text
        harmless(report)
        drawn += 1
    assert drawn > 40


@pytest.mark.parametrize("interactive", [False, True])
def test_a_page_of_hostile_text_only_shows_it(interactive: bool) -> None:
    document = whole()
    own = set(_ACTS.findall(html(Report.model_validate(document), interactive=interactive)))  # plotly's
    assert interactive or not own
    for path in [path for path in PLACES if path[-2:-1] != ("key:",)]:
        trial = spoiled(document, path)
        try:
            Report.model_validate(trial)
        except ValidationError:
            continue
        document = trial
    page = html(Report.model_validate(document), interactive=interactive)
    assert "alert(1)" in page
    assert set(_ACTS.findall(page)) <= own
    assert not own & {"\u202e", "\ud800", "\u2066"}
    assert not re.search(r"<(script>alert|img src=x)", page)


@pytest.mark.parametrize("unit", [HOSTILE, "%0A::error::x", "](http://x) @everyone #1"])
def test_a_unit_is_text(unit: str) -> None:
    gate = Gate(name="x", limit="1", value=2.0, unit=unit, passed=False, asked=True)
    harmless(full_report().model_copy(update={"gates": [gate]}))
