"""The page: every text is text, nothing is loaded, and all that the report holds is drawn."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import pytest
from page_reader import Page
from report_material import KINDS, full_report, kept, make_report

from compresskit.errors import MachineError
from compresskit.render.html import answer, html, joined, layered
from compresskit.render.html.chart import Axis, span
from compresskit.render.html.compared import comparisons
from compresskit.render.html.markup import table
from compresskit.render.html.page import is_page
from compresskit.render.html.tradeoff import front
from compresskit.report import Evaluation, Gate, LayerEntry, Measurement, ModelEntry, Report, Verdict

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&<b>\u2028"


def parsed(report: Report) -> Page:
    return Page(html(report))


def pictures(report: Report) -> list[dict[str, Any]]:
    """What plotly is given to draw."""
    found: list[dict[str, Any]] = json.loads(Page(html(report, interactive=True)).data["figures"])
    return found


def charts(page: Page) -> list[dict[str, str | None]]:
    """The pictures of a page without scripts."""
    return [attrs for tag, attrs in page.tags if tag == "svg" and attrs.get("role") == "img"]


@pytest.mark.parametrize(("interactive", "scripts"), [(False, 0), (True, 3)])
def test_hostile_text_stays_text(interactive: bool, scripts: int) -> None:
    report = make_report(
        command=HOSTILE,
        models=[
            ModelEntry(name=HOSTILE, path=HOSTILE, bytes=5, sha256="0"),
            ModelEntry(name="b", path="b", bytes=4, sha256="1"),
        ],
        measurements=[
            *(
                Measurement(model=m, name=HOSTILE, value=v, low=v, high=v, unit=HOSTILE)
                for m, v in ((HOSTILE, 1), ("b", 2))
            ),
            Measurement(model=HOSTILE, name="speedup", value=1.0),
        ],
        layers=[
            LayerEntry(model=HOSTILE, name=name, kind=HOSTILE, parameters=1, bytes=size)
            for size, name in enumerate((HOSTILE, "b"))
        ],
        notes=[HOSTILE],
        environment={HOSTILE: HOSTILE},
        history=[{"name": HOSTILE, "options": {HOSTILE: HOSTILE}, "facts": {}, "skipped": {}}],
    )
    page = Page(html(report, interactive=interactive))
    assert [tag for tag, _ in page.tags].count("script") == scripts
    assert not {"img", "b"} & {tag for tag, attrs in page.tags if tag == "img" or "onerror" in attrs}
    assert any("<img src=x onerror=alert(1)>" in words for words in page.words)
    assert len(charts(page)) + sum("data-figure" in attrs for _, attrs in page.tags) == 3


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
    assert len(pictures(told)) == len(pictures(report))
    assert answer.before_after(told) == answer.before_after(report)


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
    report = make_report(measurements=measured)
    page = parsed(report)
    drawn = {tuple(p["layout"]["yaxis"].get("ticktext", ())): p for p in pictures(report)}
    names = ("batch 1, 1 thread", "batch 1, 2 threads", "batch 8, 1 thread", "batch 8, 2 threads")
    assert names in drawn
    assert all(page.words.count(name) >= 2 for name in names)
    for picture in (p for p in pictures(report) if tuple(p["layout"]["yaxis"].get("ticktext", ())) == names):
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
    (picture,) = (p for p in pictures(report) if "1 thread" in p["layout"]["yaxis"].get("ticktext", ()))
    for trace in picture["data"]:
        assert [round(y) for y in trace["y"]] == [0, 1]
        assert all(abs(y - round(y)) < 0.45 for y in trace["y"])


@pytest.mark.parametrize("interactive", [False, True])
def test_nothing_is_loaded(interactive: bool) -> None:
    assert not Page(html(full_report(), interactive=interactive)).loaded()


def test_what_a_page_would_load_is_noticed() -> None:
    """The check itself: each kind of reference is found."""
    whole = html(full_report())
    for before, after in (
        ("</body>", "<img src=//a/b></body>"), ("</style>", "@import 'a';</style>"),
        ("default-src 'none'", "default-src https://a"), ("</head>", "<link href=a></head>"),
    ):  # fmt: skip
        assert before in whole and Page(whole.replace(before, after, 1)).loaded(), after


@pytest.mark.parametrize("interactive", [False, True])
def test_all_that_is_known_is_shown(interactive: bool) -> None:
    report = full_report()
    layers = [
        layer.model_copy(update={"bytes": layer.bytes + 9 * i, "sqnr": layer.sqnr and layer.sqnr + i})
        for i, layer in enumerate(report.layers)
    ]
    page = Page(html(report.model_copy(update={"layers": layers}), interactive=interactive))
    titles = " ".join(page.words)
    for title in (
        "290 kB", "3.8× smaller", "accuracy, %", "latency p50", "Speed-up", "Latency of all calls", "Training loss",
        "accuracy, held out", "Bytes", "Bits per weight", "Sparsity", "Rank", "SQNR of the weights", "Share of a call",
        "Coverage", "History", "Environment", "PASS", "91.72 %", "calibrated with 512 images",
    ):  # fmt: skip
        assert title in titles, title
    figures = [tag for tag, _ in page.tags].count("figure")
    places = [attrs["data-figure"] for _, attrs in page.tags if "data-figure" in attrs]
    assert places == [str(i) for i in range(figures if interactive else 0)]
    assert len(charts(page)) == (0 if interactive else figures)
    # Without scripts each picture has its table.
    assert 6 <= figures <= [tag for tag, _ in page.tags].count("table")


def test_one_description_is_drawn_both_ways() -> None:
    """Each figure of each chart is in the light page and in the interactive one."""
    light = parsed(full_report())
    drawn = pictures(full_report())
    assert len(charts(light)) == len(drawn) > 4
    said = {
        text
        for picture in drawn
        for trace in picture["data"]
        if trace.get("mode") != "lines"
        for text in trace["hovertext"]
    }
    assert len(said) > 5 and said <= set(light.words)


def test_same_report_same_bytes() -> None:
    assert html(full_report()) == html(full_report())


@pytest.mark.parametrize("verdict", list(Verdict))
def test_bare_reports(verdict: Verdict) -> None:
    report = Report(command="bench", verdict=verdict, models=[])
    assert pictures(report) == [] and charts(parsed(report)) == []


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


def test_each_point_of_a_matrix_keeps_its_interval() -> None:
    def point(name: str, drop: tuple[float, float]) -> Report:
        told = Evaluation(metric="accuracy", higher_is_better=True, data="d", drops={"int8": drop})
        return make_report(evaluation=told)

    report = joined(["bits=8", "bits=4"], [point("bits=8", (-0.1, 0.2)), point("bits=4", (-0.3, 0.4))])
    assert report.evaluation is not None
    assert report.evaluation.drops == {"bits=8": (-0.1, 0.2), "bits=4": (-0.3, 0.4)}
    words = parsed(report).words
    assert "bits=4: +0.02 pt, 95 % interval -0.40 to +0.30 pt" in words


@pytest.mark.parametrize(
    ("models", "shown"),
    [(["a", "b"], "a → b"), (["a", "b", "c"], "2 models against a"), (["a", "b", "c", "d"], "3 models against a")],
)
def test_the_original_is_not_counted(models: list[str], shown: str) -> None:
    report = make_report(models=[ModelEntry(name=name, path=name, bytes=1, sha256="0" * 64) for name in models])
    assert f"<h1>{shown}</h1>" in html(report)


def test_the_figures_at_the_top_are_of_models_that_pass() -> None:
    """A model that misses a limit isn't praised for its size, as long as another passes."""
    models = [
        ModelEntry(name=name, path=name, bytes=size, sha256="0" * 64)
        for name, size in (("a", 900), ("b", 9), ("c", 300))
    ]

    def tops(*missed: str) -> list[str]:
        gates = [Gate(name=f"{name}: size", limit="1", value=2.0, passed=name not in missed) for name in ("b", "c")]
        page = parsed(make_report(models=models, measurements=[], gates=gates))
        at = next(i for i, word in enumerate(page.words) if word.startswith("Smallest"))
        return page.words[at : at + 2]

    assert tops() == tops("b", "c") == ["Smallest: b", "9 B"]
    assert tops("b") == ["Smallest that passes: c", "300 B"]


def test_the_limit_that_decided_comes_first() -> None:
    gates = [
        Gate(name=name, limit="1", value=2.0, passed=passed, asked=True)
        for name, passed in (("first", True), ("noisy", None), ("missed", False), ("last", True))
    ]
    for given, first in ((gates, "missed"), (gates[:2], "noisy"), (gates[:1], "first")):
        whole = html(make_report(gates=given))
        assert re.search(rf'<li class="\w+ first"><b>.</b><div><b>\w+</b> {first}: ', whole)
        assert whole.index(f"{first}: 2, limit 1") == min(whole.index(f"{g.name}: 2, limit 1") for g in given)


@pytest.mark.parametrize("count", [1, 5, 9])
def test_a_limit_that_is_not_passed_is_never_folded(count: int) -> None:
    gates = [Gate(name=f"g{i}", limit="1", value=2.0, passed=i % 2 == 0 or None, asked=False) for i in range(count)]
    shown = re.sub(r"<details.*?</details>", "", html(make_report(gates=gates)), flags=re.DOTALL)
    assert all(f"g{i}: 2" in shown for i in range(1, count, 2))


def test_folded_norms_are_no_added_layers() -> None:
    layers = [
        LayerEntry(model=model, name=name, kind=kind, parameters=9, bytes=size)
        for model, name, kind, size in (
            ("fp32", "conv", "Conv", 400), ("fp32", "head", "Gemm", 80), ("int8", "conv", "Conv", 100),
            ("int8", "head", "Gemm", 20), ("int8", "norm", "BatchNormalization", 50), ("int8", "new", "Conv", 10),
        )
    ]  # fmt: skip
    (chart,) = layered.layers(make_report(layers=layers))
    assert list(chart.y.rows) == ["conv", "head", "new"] and "1 normalization layer that" in chart.note
    assert "norm" in parsed(make_report(layers=layers)).words


def test_tables_align_numbers_alone() -> None:
    """A column of text is never aligned right, and a number keeps its unit on its line."""
    lines = [("a", "2.34 MB", "1. step", "2.5× [2.1, 2.9]", "accuracy 91 %", "8"), ("b", "–", "2", "–", "–", "12,345")]
    page = Page(table(("name", "size", "step", "ratio", "quality", "n"), lines))
    kinds = [attrs.get("class") for tag, attrs in page.tags if tag == "th"]
    assert kinds == [None, "n", None, "n", None, "n"]
    assert "2.34\u00a0MB" in table((), lines) and "91\u00a0%" in table((), lines)


def test_a_scale_shows_differences() -> None:
    """Quality isn't drawn from zero; a figure is never outside of its axis."""
    found = [
        Measurement(model=m, name="accuracy", value=v, low=v - 0.3, high=v + 0.2, unit="%")
        for m, v in (("fp32", 91.7), ("int8", 91.2))
    ]
    (chart,) = comparisons(make_report(measurements=found))
    assert chart.x.low > 90 and chart.x.high < 92.5
    for one in chart.series:
        for mark in one.marks:
            assert all(0 <= chart.x.place(at) <= 1 for at in (mark.x, mark.low, mark.high) if at is not None)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    ("low", "high"), [(0.98, 1.01), (0.2, 17), (0.235, 0.236), (90, 99.9), (1e5, 3e9), (0.5, 0.5), (1e-9, 1e9)]
)
def test_ticks_are_few_and_on_the_axis(low: float, high: float, log: bool) -> None:
    axis = Axis(*span((low, high), log=log), log=log)
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 6 and ticks == sorted(set(ticks))
    assert all(-1e-6 <= axis.place(at) <= 1 + 1e-6 for at in ticks)


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_light(kind: str) -> None:
    whole = html(kept(kind))
    assert len(whole.encode("utf-8")) <= 150_000
    assert "<script" not in whole and not Page(whole).loaded()


def test_the_history_is_read_not_parsed() -> None:
    applied = {
        "name": "quantize.rtn", "skipped": {},
        "options": {"bits": 4, "group_size": None, "layer_bits": ["a=8", "b=3"], "symmetric": False},
        "facts": {"layers": {"conv": {"bits": 4}}, "samples": 512},
    }  # fmt: skip
    said = "\n".join(parsed(make_report(history=[applied])).words)
    for part in (
        "quantize.rtn",
        " with bits 4",
        "1 layer changed, samples 512",
        "layer bits: a=8, b=3",
        "symmetric: no",
    ):
        assert part in said, part
    assert '"bits"' not in said and "{" not in said


def test_without_plotly_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(MachineError) as caught:
        html(make_report(), interactive=True)
    assert html(make_report())
    assert "plotly" in caught.value.message and caught.value.hint == "pip install plotly"


def test_a_page_is_known_as_one(tmp_path: Any) -> None:
    ours, other = tmp_path / "a.html", tmp_path / "b.html"
    ours.write_text(html(make_report()), encoding="utf-8")
    other.write_text("<html>", encoding="utf-8")
    assert is_page(ours) and not is_page(other) and not is_page(tmp_path / "c.html")
