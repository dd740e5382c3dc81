"""A profile and a sweep, drawn."""

from __future__ import annotations

from compresskit.render import nodes, sweep
from compresskit.render.markdown import markdown
from compresskit.report import Measurement, ModelEntry, NodeTime, Report, Verdict


def report(**parts) -> Report:
    models = [ModelEntry(name=name, path=name, bytes=10, sha256="0") for name in ("a", "b")]
    return Report(command="compresskit bench a b", verdict=Verdict.UNVERIFIED, models=models, **parts)


def test_the_ten_slowest_nodes_are_shown_the_slowest_first() -> None:
    profile = [NodeTime(model="b", name=f"n{i}", op="Conv", ms=i, share=i / 66) for i in range(1, 12)]
    ((title, lines),) = nodes.profiles(report(profile=profile))
    assert title.startswith("b: 11 nodes") and "10 slowest" in title
    assert [line[0] for line in lines] == [f"n{i}" for i in range(11, 1, -1)]
    assert len(lines[0][-1]) > len(lines[-1][-1]) > 0


def test_a_sweep_has_a_profile_at_each_point() -> None:
    profile = [
        NodeTime(model=model, name=f"n{i}", op="Conv", ms=i * batch, share=i / 15, batch=batch, threads=2)
        for batch in (1, 8)
        for model in ("b", "a")
        for i in range(1, 6)
    ]
    found = nodes.profiles(report(profile=profile))
    assert [title.partition(":")[0] for title, _ in found] == [
        "a (batch 1)",
        "b (batch 1)",
        "a (batch 8)",
        "b (batch 8)",
    ]
    assert all(len(lines) == 4 and "4 slowest" in title for title, lines in found)
    assert found[0][1][0][2] != found[2][1][0][2]


def test_names_from_a_file_are_escaped_and_cut() -> None:
    profile = [NodeTime(model="a", name="<b>\x1b[31m" + "x" * 90 + "|end", op="@Conv", ms=1, share=1)]
    text = markdown(report(profile=profile))
    assert "\x1b" not in text and "<b>" not in text and "@Conv" not in text
    assert "\\|end" in text and "x" * 40 not in text


def test_a_point_that_a_model_lacks_has_no_row() -> None:
    def figure(model: str, batch: int) -> Measurement:
        return Measurement(model=model, name="latency_p50", value=2.0, unit="ms", batch=batch, threads=1)

    header, lines = sweep.table(report(measurements=[figure("a", 1), figure("a", 8), figure("b", 8)]))
    assert header[:2] == ("model", "batch")
    assert [line.cells[:2] for line in lines] == [("a", "1"), ("a", "8"), ("b", "8")]
