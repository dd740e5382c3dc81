"""What is text on the page: coverage, notes, history, files and environment, each folded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compresskit.errors import as_flags
from compresskit.render import figures, rows
from compresskit.render.html.markup import folded, table, text, words
from compresskit.report import Report
from compresskit.searched import TELLING

_LISTED = 200
"""Layers that are named of each reason."""
_VALUES = 12
"""Entries of a list that are shown."""


def coverage(report: Report) -> str:
    """What was changed, and what was not with the reason."""
    found, parts = report.coverage, []
    if line := rows.done_line(report):
        parts.append(f"<p>{words(line)}</p>{table(('layer', 'to'), list(found.done.items()), prose=True)}")
    if found.skipped:
        by_reason: dict[str, list[str]] = {}
        for name, reason in found.skipped.items():
            by_reason.setdefault(reason, []).append(name)
        lines = [
            (rows.unchanged(report, names), as_flags(reason), _first(names))
            for reason, names in sorted(by_reason.items(), key=lambda item: -len(item[1]))
        ]
        parts.append(table(("", "reason", "layers"), lines, prose=True))
    about = f"{len(found.done)} changed, {len(found.skipped)} unchanged"
    return folded("Coverage", "".join(parts), about)


def notes(report: Report) -> str:
    """The remarks of the stages and of the bench."""
    items = "".join(f"<li>{words(as_flags(note))}</li>" for note in report.notes)
    return folded("Notes", f"<ul>{items}</ul>" if items else "", str(len(report.notes)))


def history(report: Report) -> str:
    """Each step that the model went through: what it did, and with which options."""
    items = "".join(_applied(applied) for applied in report.history)
    names = ", ".join(figures.clean(applied.get("name")) for applied in report.history)
    return folded("History", f'<ol class="steps">{items}</ol>' if items else "", names)


def files(report: Report) -> str:
    """Where the models are, and by what they are known."""
    found = [(m.name, m.path, f"{m.bytes:,}", m.sha256) for m in report.models]
    lines = table(("model", "path", "bytes", "SHA-256"), found) if found else ""
    return folded("Files", lines, f"{len(found)}")


def environment(report: Report) -> str:
    """The machine and the packages."""
    lines = list(_flat(report.environment))
    return folded("Environment", table((), lines, prose=True) if lines else "", str(report.environment.get("cpu", "")))


def _first(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if names[_LISTED:] else "")


def _applied(applied: Mapping[str, Any]) -> str:
    """A step. What is by layer is in the coverage, what is by epoch in the pictures."""
    facts, options, skipped = (_mapping(applied.get(key)) for key in ("facts", "options", "skipped"))
    layers = _mapping(facts.get("layers"))
    did = [f"{len(layers)} layer{'s' * (len(layers) != 1)} changed"] if layers else []
    did += [f"{len(skipped)} unchanged"] if skipped else []
    did += [f"{_name(key)} {_value(value)}" for key, value in facts.items() if _is_plain(value)]
    telling = [f"{_name(key)} {_value(options[key])}" for key in options if _tells(key, options[key])]
    every = "".join(f"<li>{words(f'{_name(key)}: {_value(value)}')}</li>" for key, value in options.items())
    chosen = words(f" with {', '.join(telling)}") if telling else ""
    done = words(", ".join(did))
    return (
        f"<li><b>{text(applied.get('name'))}</b>{chosen}"
        f"{f'<p>{done}</p>' if did else ''}"
        f"{f'<details><summary>All options</summary><ul>{every}</ul></details>' if every else ''}</li>"
    )


def _tells(key: str, value: object) -> bool:
    return key.replace("_", "-") in TELLING and bool(value)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_plain(value: object) -> bool:
    return isinstance(value, (str, int, float)) and not isinstance(value, bool) and value != ""


def _name(key: object) -> str:
    return str(key).replace("_", " ")


def _value(value: object) -> str:
    """An option or a fact in words."""
    if value is None or value in ([], {}, ""):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_value, value[:_VALUES])) + (
            f" and {len(value) - _VALUES} more" if value[_VALUES:] else ""
        )
    if isinstance(value, Mapping):
        return ", ".join(f"{_name(key)} {_value(one)}" for key, one in list(value.items())[:_VALUES])
    return f"{value:g}" if isinstance(value, float) else str(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)
