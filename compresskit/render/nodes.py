"""A profile by node as rows of text: the slowest nodes of each model."""

from __future__ import annotations

from compresskit.render import figures
from compresskit.report import Report

HEADER = ("node", "operator", "ms", "share", "")
SHOWN = 10
_BAR, _NAME = 16, 28


def profiles(report: Report) -> list[tuple[str, list[tuple[str, ...]]]]:
    """For each model that has a profile a title, and cells under ``HEADER`` of its ``SHOWN`` slowest nodes."""
    out: list[tuple[str, list[tuple[str, ...]]]] = []
    for entry in report.models:
        found = sorted((node for node in report.profile if node.model == entry.name), key=lambda node: -node.ms)
        if not found:
            continue
        shown = found[:SHOWN]
        lines: list[tuple[str, ...]] = [
            (
                _short(figures.clean(node.name)),
                figures.clean(node.op),
                figures.milliseconds(node.ms),
                figures.percent(node.share),
                "█" * max(1, round(_BAR * node.share / (shown[0].share or 1))),
            )
            for node in shown
        ]
        rest = f", the {len(shown)} slowest; all are in the report" if len(found) > len(shown) else ""
        out.append((f"{figures.clean(entry.name)}: {len(found)} nodes{rest}", lines))
    return out


def _short(name: str) -> str:
    """The end of a long name, which is what tells nodes apart."""
    return name if len(name) <= _NAME else f"…{name[1 - _NAME :]}"
