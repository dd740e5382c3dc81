"""A report as commands of a GitHub workflow, which become annotations."""

from __future__ import annotations

from compresskit.render import figures, rows
from compresskit.report import Report


def github(report: Report) -> str:
    """The verdict and a line a gate, ending in a line break: an error or a warning for what isn't passed.

    What ends with exit code 1 is an error, another gate that isn't proven a warning.
    """
    lines = [_inert(f"{rows.word(report)}  {rows.headline(report)}")]
    for gate in report.gates:
        state = rows.gate_state(gate)
        if gate.passed:
            lines.append(_inert(f"{state}  {rows.gate_text(gate)}"))
        else:
            kind = "error" if gate.fails else "warning"
            title = f"{state}: {figures.clean(gate.name)}"
            lines.append(_inert(f"::{kind} title={_property(title)}::{_data(rows.gate_text(gate))}"))
    lines += [_inert(f"note: {figures.prose(note)}") for note in report.notes]
    return "\n".join(lines) + "\n"


def _data(text: str) -> str:
    """A command's message, as the runner unescapes it."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _inert(text: str) -> str:
    """A line with no command, or with one at its begin: the older form, ``##[error]``, counts anywhere in a line."""
    return text.replace("##[", "# #[")
