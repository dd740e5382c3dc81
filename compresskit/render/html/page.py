"""The page: the answer first, then what it rests on, then the detail, folded."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from compresskit.render import rows, search_view
from compresskit.render.html import answer, searched, told
from compresskit.render.html.compared import comparisons, latencies
from compresskit.render.html.curves import curves
from compresskit.render.html.layered import layer_table, layers, nodes
from compresskit.render.html.markup import Pictures, card, folded, section, table, text
from compresskit.render.html.points import sweeps
from compresskit.render.html.style import CSS
from compresskit.render.html.svg import Still
from compresskit.render.html.tradeoff import tradeoffs
from compresskit.report import Report

MARK = '<meta name="generator" content="compresskit">'
"""By this a page is known as one of ours, which may be replaced."""


def html(report: Report, *, output: str = "", interactive: bool = False) -> str:
    """A report as one HTML page that loads nothing: pictures, and the tables behind them.

    Args:
        report: What a command found out.
        output: The file or folder that was written, if any.
        interactive: The pictures are plotly's, whose library of 4.7 MB is in the page; else they are SVG, and no script
            is.

    Raises:
        MachineError: It is to be interactive, and plotly isn't installed.
    """
    pictures = _pictures(interactive)
    body = "".join(
        (
            answer.top(report, output),
            answer.limits(report),
            _compared(report, pictures),
            section("Trade-off", pictures.grid(tradeoffs(report))),
            _searched(report, pictures),
            section("Sweep", pictures.grid(sweeps(report))),
            _folded(report, pictures),
        )
    )
    return document(f"{rows.word(report)}: {rows.headline(report, output)}", body, pictures)


def document(title: str, body: str, pictures: Pictures) -> str:
    """A whole page.

    Args:
        title: Of the window.
        body: HTML.
        pictures: What drew the charts in it.
    """
    scripts = "".join(f"<script>{code}</script>" for code in pictures.scripts)
    # Without scripts the tables are there all the same.
    bare = "<noscript><style>.plot{display:none}</style></noscript>" if scripts else ""
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">{_policy(pictures.scripts)}{MARK}'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{text(title)}</title>'
        f"<style>{CSS}</style>{bare}</head><body><main>{body}</main>\n{pictures.data()}{scripts}</body></html>\n"
    )
    return page.encode("utf-8", "replace").decode("utf-8")


def is_page(path: Path) -> bool:
    """True for a page that was made here."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as stream:
            return MARK.encode() in stream.read(1000)
    except OSError:
        return False


def _pictures(interactive: bool) -> Pictures:
    if not interactive:
        return Still()
    from compresskit.render.html.interactive import Interactive

    return Interactive()


def _policy(scripts: tuple[str, ...]) -> str:
    """Nothing is fetched, and no script runs but the page's own, known by their hashes."""
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(code.encode('utf-8')).digest()).decode()}'" for code in scripts
    ]
    allowed = f"script-src {' '.join(hashes)}; img-src data: blob:; font-src data:; " if hashes else ""
    rules = f"default-src 'none'; {allowed}style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    return f'<meta http-equiv="Content-Security-Policy" content="{rules}">'


def _compared(report: Report, pictures: Pictures) -> str:
    """The main table, and what of it has an interval."""
    if not report.models:
        return ""
    header, *lines = answer.before_after(report)
    # A size alone is at the top already.
    main = card(table(header, lines)) if len(lines) > 1 else ""
    title = {1: "Figures", 2: "Before and after"}.get(len(report.models), "Models")
    return section(title, main, pictures.grid(comparisons(report)))


def _searched(report: Report, pictures: Pictures) -> str:
    found = report.search
    if found is None:
        return ""
    said = "".join(f"<p>{text(line)}</p>" for line in search_view.lines(found))
    whole = folded("All candidates", table(searched.HEADER, searched.lines(found)), str(len(found.tried)))
    mattered = [(name, f"{100 * share:.0f} %") for name, share in found.importance.items() if share > 0]
    explained = f"share of the differences in {found.goals[0] if found.goals else 'the goal'} that it explains"
    shares = table(("choice", "share"), mattered)
    return section(
        "Search", card(said), pictures.grid(searched.searches(found)), whole,
        folded("Which choice mattered", shares if mattered else "", f"{explained} (PED-ANOVA)"),
    )  # fmt: skip


def _folded(report: Report, pictures: Pictures) -> str:
    """The detail. What is of every model stands before what is of one."""
    timings = "".join(
        f"<h3>{text(timing.run)}</h3>{table(timing.header, timing.lines)}" for timing in rows.timings(report)
    )
    steps = table(rows.STEP_HEADER, rows.steps(report)) if report.steps else ""
    profile, spread = nodes(report), latencies(report)
    counted = len({entry.name for entry in report.layers})
    parts = (
        folded("Steps", steps, str(len(report.steps))),
        folded("Layers", pictures.grid(layers(report)) + layer_table(report), str(counted)),
        folded("Nodes", pictures.grid(profile), "share of a call"),
        folded("Timings", timings),
        folded("Latencies", pictures.grid(spread), "distribution of all timed calls"),
        folded("Training", pictures.grid(curves(report)), "by epoch"),
        told.coverage(report),
        told.notes(report),
        told.history(report),
        told.files(report),
        told.environment(report),
    )
    return section("Detail", *parts)
