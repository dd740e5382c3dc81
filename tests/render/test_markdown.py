from __future__ import annotations

import re

import pytest

from compresskit.render.markdown import escape, markdown
from compresskit.report import Gate, Measurement, Report, Verdict


def test_the_tables_have_one_width(report: Report) -> None:
    rows = [line for line in markdown(report).splitlines() if line.startswith("|")]
    assert len(rows) == 4
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {7}
    assert rows[1] == "| --- | ---: | ---: | ---: | ---: | ---: |"
    assert "| int8 | 290 kB | 3.8× | accuracy 91.72 % (+0.02), cosine 0.9991 | 0.200 ms |" in rows[3]


@pytest.mark.parametrize("verdict", list(Verdict))
def test_the_verdict_is_the_heading(report: Report, verdict: Verdict) -> None:
    assert re.match(rf"### \S+ {verdict.value}\n", markdown(report.model_copy(update={"verdict": verdict})))


def test_what_is_not_passed_is_bold(report: Report) -> None:
    gates = [
        Gate(name="max-drop", limit="0.5pt", value=3.2, passed=False, asked=True),
        Gate(name="min-speedup", limit="1.5×", value=None, passed=None, reason="too noisy"),
    ]
    text = markdown(report.model_copy(update={"gates": gates}))
    assert "- **failed** max-drop: 3.2, limit 0.5pt" in text
    assert "- **inconclusive** min-speedup: not known, limit 1.5× (default): too noisy" in text


def test_several_runs_get_a_table_each(report: Report) -> None:
    more = [Measurement(model=m, name="latency_p50", value=1.0, runtime="torch", batch=8) for m in ("fp32", "int8")]
    text = markdown(report.model_copy(update={"measurements": [*report.measurements, *more]}))
    assert "\nonnxruntime, batch 1\n" in text
    assert "\ntorch, batch 8\n" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a|b", r"a\|b"),
        ("<img src=x>", r"\<img src=x\>"),
        ("[click](http://x)", r"\[click\](http:\//x)"),
        ("@team fixes #12", r"&#64;team fixes \#12"),
        ("`code` **bold** ~~gone~~", r"\`code\` \*\*bold\*\* \~\~gone\~\~"),
        ("layer_norm.weight", r"layer\_norm.weight"),
        ("a\nb\x1b[31m", "a\\\\nb\\\\x1b\\[31m"),
        ("&lt;", "&amp;lt;"),
    ],
)
def test_text_from_files_has_no_effect(text: str, expected: str) -> None:
    assert escape(text) == expected


def test_a_hostile_name_breaks_no_table(report: Report) -> None:
    models = [report.models[0].model_copy(update={"name": "x|y\n| z <b>", "path": "[a](b)"}), report.models[1]]
    rows = [
        line for line in markdown(report.model_copy(update={"models": models})).splitlines() if line.startswith("|")
    ]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {7}
