"""A profile by node as rows of text: the slowest nodes of each model, at each point of a sweep."""

from __future__ import annotations

from compresskit.render import figures
from compresskit.report import NodeTime, Report, point_name

HEADER = ("node", "operator", "ms", "share", "")
SHOWN, SHOWN_OF_A_SWEEP = 10, 4
_BAR, _NAME = 16, 28


def grouped(report: Report) -> list[tuple[str, str, list[NodeTime]]]:
    """Each profile: the model, where it was taken as far as that varies, and its nodes, the slowest first."""
    among = list(dict.fromkeys(node.point for node in report.profile))
    groups = {(entry.name, point): list[NodeTime]() for point in among for entry in report.models}
    for node in report.profile:
        groups.setdefault((node.model, node.point), []).append(node)
    return [
        (model, point_name(point, among), sorted(found, key=lambda node: -node.ms))
        for (model, point), found in groups.items()
        if found
    ]


def profiles(report: Report) -> list[tuple[str, list[tuple[str, ...]]]]:
    """For each profile a title, and cells under ``HEADER`` of its slowest nodes."""
    out: list[tuple[str, list[tuple[str, ...]]]] = []
    for model, where, found in grouped(report):
        shown = found[: SHOWN_OF_A_SWEEP if where else SHOWN]
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
        out.append((f"{figures.clean(model)}{f' ({where})' if where else ''}: {len(found)} nodes{rest}", lines))
    return out


def _short(name: str) -> str:
    """The end of a long name, which is what tells nodes apart."""
    return name if len(name) <= _NAME else f"…{name[1 - _NAME :]}"
