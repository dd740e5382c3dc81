"""The page: every text is text, nothing is loaded, and all that the report holds is drawn."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from page_reader import Page
from report_material import full_report, make_report

from compresskit.errors import MachineError
from compresskit.render.html import html, joined
from compresskit.render.html.page import is_page
from compresskit.render.html.tradeoff import front
from compresskit.report import LayerEntry, Measurement, ModelEntry, Report, Verdict

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&<b>\u2028"


def parsed(report: Report) -> Page:
    return Page(html(report))


def pictures(page: Page) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(page.data["figures"])
    return found


def test_hostile_text_stays_text() -> None:
    report = make_report(
        command=HOSTILE,
        models=[
            ModelEntry(name=HOSTILE, path=HOSTILE, bytes=5, sha256="0"),
            ModelEntry(name="b", path="b", bytes=4, sha256="1"),
        ],
        measurements=[Measurement(model=HOSTILE, name=HOSTILE, value=1.0, unit=HOSTILE)],
        layers=[LayerEntry(model=HOSTILE, name=HOSTILE, kind=HOSTILE, parameters=1, bytes=1)],
        notes=[HOSTILE],
        environment={HOSTILE: HOSTILE},
        history=[{"name": HOSTILE, "options": {HOSTILE: HOSTILE}, "facts": {}, "skipped": {}}],
    )
    page = parsed(report)
    assert [tag for tag, _ in page.tags].count("script") == 3
    assert not {"img", "b"} & {tag for tag, attrs in page.tags if tag == "img" or "onerror" in attrs}
    assert any("<img src=x onerror=alert(1)>" in words for words in page.words)
    assert len(pictures(page)) >= 2


def test_what_a_bench_tells_is_not_drawn_as_quality() -> None:
    more = [
        Measurement(model=model, name=name, value=2.0, n=7)
        for name in (
            "first_call",
            "energy",
            "device_time",
            "device_memory",
            "traffic",
            "operations",
            "limit",
            "of_limit",
        )
        for model in ("fp32", "int8")
    ]
    report = make_report()
    told = make_report(measurements=[*report.measurements, *more])
    assert len(pictures(parsed(told))) == len(pictures(parsed(report)))


def test_each_point_of_a_sweep_has_a_place_of_its_own() -> None:
    places = [(batch, threads) for batch in (1, 8) for threads in (1, 2)]
    measured = [
        Measurement(
            model=model, name=name, value=value, low=value * 0.9, high=value * 1.1, runtime="onnxruntime",
            batch=batch, threads=threads,
        )
        for index, (batch, threads) in enumerate(places, 1)
        for model, name, value in (
            ("fp32", "latency_p50", 1.0 * index), ("int8", "latency_p50", 0.5 * index), ("int8", "speedup", 2.0)
        )
    ]  # fmt: skip
    page = parsed(make_report(measurements=measured))
    drawn = {tuple(p["layout"]["yaxis"].get("ticktext", ())): p for p in pictures(page)}
    names = ("batch 1, 1 thread", "batch 1, 2 threads", "batch 8, 1 thread", "batch 8, 2 threads")
    assert names in drawn
    for picture in (p for p in pictures(page) if tuple(p["layout"]["yaxis"].get("ticktext", ())) == names):
        spots = [round(y, 6) for trace in picture["data"] for y in trace["y"]]
        assert len(set(spots)) == len(spots) >= 4
    assert sum(words in ("Latency, median", "Speed-up") for words in page.words) == 2


@pytest.mark.parametrize("count", [2, 7, 20])
def test_no_model_of_a_sweep_lies_at_another_point(count: int) -> None:
    names = [f"m{number}" for number in range(count)]
    report = make_report(
        models=[ModelEntry(name=name, path=name, bytes=1, sha256="0" * 64) for name in names],
        measurements=[
            Measurement(model=name, name="latency_p50", value=1.0, runtime="onnxruntime", batch=1, threads=threads)
            for name in names
            for threads in (1, 2)
        ],
    )
    (picture,) = (p for p in pictures(parsed(report)) if "1 thread" in p["layout"]["yaxis"].get("ticktext", ()))
    for trace in picture["data"]:
        assert [round(y) for y in trace["y"]] == [0, 1]
        assert all(abs(y - round(y)) < 0.45 for y in trace["y"])


def test_nothing_is_loaded() -> None:
    assert not parsed(full_report()).loaded()


def test_what_a_page_would_load_is_noticed() -> None:
    """The check itself: each kind of reference is found."""
    whole = html(full_report())
    for before, after in (
        ("</body>", "<img src=//a/b></body>"), ("</style>", "@import 'a';</style>"),
        ("default-src 'none'", "default-src https://a"), ("</head>", "<link href=a></head>"),
    ):  # fmt: skip
        assert before in whole and Page(whole.replace(before, after, 1)).loaded(), after


def test_all_that_is_known_is_drawn() -> None:
    page = parsed(full_report())
    titles = " ".join(page.words)
    for title in (
        "Size of what ships", "Accuracy, %", "Latency, median", "Speed-up", "Latency of all calls", "Training loss",
        "accuracy, held out", "Bytes", "Bits per weight", "Sparsity", "Rank", "SQNR of the weights", "Share of a call",
        "Coverage", "History", "Environment", "PASS", "91.72 %", "calibrated with 512 images",
    ):  # fmt: skip
        assert title in titles, title
    places = [attrs["data-figure"] for _, attrs in page.tags if "data-figure" in attrs]
    assert places == [str(i) for i in range(len(pictures(page)))]
    # Without scripts each picture has its table.
    figures = [tag for tag, _ in page.tags].count("figure")
    assert figures == len(places) <= [tag for tag, _ in page.tags].count("table")


def test_same_report_same_bytes() -> None:
    assert html(full_report()) == html(full_report())


@pytest.mark.parametrize("verdict", list(Verdict))
def test_bare_reports(verdict: Verdict) -> None:
    page = parsed(Report(command="bench", verdict=verdict, models=[]))
    assert pictures(page) == []


def test_a_front_holds_what_no_other_beats() -> None:
    def point(name: str, cost: float, value: float) -> tuple[str, float, Measurement]:
        return name, cost, Measurement(model=name, name="accuracy", value=value)

    points = [point("a", 4, 90), point("b", 2, 90), point("c", 1, 80), point("d", 3, 85), point("e", 8, 92)]
    assert [name for name, _, _ in front(points, True)] == ["c", "b", "e"]
    assert [name for name, _, _ in front(points, False)] == ["c"]


def test_a_sweep_is_one_page_with_its_tradeoff() -> None:
    report = joined(["bits=8", "bits=4"], [make_report(), make_report(verdict=Verdict.FAIL)])
    assert [m.name for m in report.models] == ["fp32", "bits=8", "bits=4"]
    assert report.verdict is Verdict.FAIL
    assert not any(m.name.startswith("latency") for m in report.measurements)
    titles = " ".join(parsed(report).words)
    assert "Quality and size" in titles and "Quality and time of a call" in titles


def test_without_plotly_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(MachineError) as caught:
        html(make_report())
    assert "plotly" in caught.value.message and caught.value.hint == "pip install plotly"


def test_a_page_is_known_as_one(tmp_path: Any) -> None:
    ours, other = tmp_path / "a.html", tmp_path / "b.html"
    ours.write_text(html(make_report()), encoding="utf-8")
    other.write_text("<html>", encoding="utf-8")
    assert is_page(ours) and not is_page(other) and not is_page(tmp_path / "c.html")
