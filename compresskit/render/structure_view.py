"""What a model does on samples, on the terminal."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from compresskit.render import figures

_ABOUT = {
    "blocks": "blocks: R² of one linear layer in the place of each, on other samples; effective rank of the output, "
    "and directions that hold 99 % of its variance; cosine of output and input; places with a twin in their sample",
    "units": "units: never or always on; zeros among outputs; share of the units that hold 90 % of a place's squares",
}


def structure_parts(found: Mapping[str, Any], words: Sequence[str], rows: int) -> list[RenderableType]:
    """What follows the estimates.

    Args:
        found: The structure, as ``inspect --structure --json`` has it.
        words: MODEL, what tells its architecture, and the samples, as typed.
        rows: Most rows of a table.
    """
    title = f"structure, on {found['samples']} samples of {figures.clean(found['data'])}"
    parts: list[RenderableType] = [Text(), _line(title, "bold")]
    parts += _part(_ABOUT["blocks"], block_rows(found), rows)
    parts += _part("halves of blocks: R² of one linear layer", half_rows(found), rows)
    parts += _part(_ABOUT["units"], unit_rows(found), rows)
    parts += [Text(), _line(regions_text(found["regions"]))]
    parts += _part("symmetry: relative change of the output when the picture is moved", symmetry_rows(found), rows)
    parts += _part("experts: share of the tokens that go to each", expert_rows(found), rows)
    parts += _part("most alike blocks: CKA of outputs, cosine of weights", alike_rows(found), 3)
    parts += [Text(), _line("what could work (from these samples; each command measures its result)", "bold")]
    for reading in found["readings"]:
        parts.append(_line(f"- {figures.prose(reading['finding'])}"))
        if saves := saves_text(reading):
            parts.append(_line(f"    {saves}"))
        if command := command_of(reading, words):
            parts.append(_line(f"    {command}"))
    return parts


def command_of(reading: Mapping[str, Any], words: Sequence[str]) -> str:
    """The command that would try what a reading says; empty for none."""
    if not reading["method"]:
        return ""
    kind, _, method = reading["method"].partition(".")
    typed = [*map(figures.clean, words), "--method", method, *reading["options"]]
    return shlex.join(["compresskit", kind, *typed])


_UNITS = {"macs": "multiply-accumulates", "parameters": "parameters", "products": "products, attention's included"}


def saves_text(reading: Mapping[str, Any]) -> str:
    """What the command of a reading saves; empty where it isn't known."""
    parts = [f"{figures.percent(share)} of the {_UNITS[unit]}" for unit, share in reading["saves"].items() if share]
    return f"saves {' and '.join(parts)}" if parts else ""


Rows = list[tuple[str, ...]]


def block_rows(found: Mapping[str, Any]) -> Rows:
    """The header and a row a block; empty without blocks."""
    kinds = list(dict.fromkeys(kind for block in found["blocks"] for kind in block["by"]))
    header = ("block", *(f"R² {kind}" for kind in kinds), "rank", "99 %", "width", "cosine", "twins")
    lines = [
        (
            block["name"],
            *(_two(block["by"].get(kind)) for kind in kinds),
            *(_cell(block.get("rank"), "{:.1f}"), _cell(block.get("rank99"), "{}"), _cell(block.get("width"), "{}")),
            _cell(block.get("cosine"), "{:.3f}"),
            figures.percent(block["twins"]) if "twins" in block else figures.DASH,
        )
        for block in found["blocks"]
    ]
    return [header, *lines] if lines else []


def half_rows(found: Mapping[str, Any]) -> Rows:
    """The header and a row a half."""
    lines = [(half["name"], _two(half["r2"])) for half in found["halves"]]
    return [("half", "R²"), *lines] if lines else []


def unit_rows(found: Mapping[str, Any]) -> Rows:
    """The header and a row an activation."""
    lines = [
        (
            row["name"], row["function"], str(row["units"]), _cell(row["never"], "{}"), _cell(row["always"], "{}"),
            figures.percent(row["sparsity"]), figures.percent(row["concentration"]),
        )
        for row in found["units"]["layers"]
    ]  # fmt: skip
    return [("activation", "function", "units", "never", "always", "zeros", "hold 90 %"), *lines] if lines else []


def symmetry_rows(found: Mapping[str, Any]) -> Rows:
    """The header and a row a move."""
    lines = [
        (row["move"], f"{row['error']:.3f}", figures.percent(row["same"]) if "same" in row else figures.DASH)
        for row in found["symmetry"]
    ]
    return [("move", "change", "same class"), *lines] if lines else []


def expert_rows(found: Mapping[str, Any]) -> Rows:
    """The header and a row a mixture."""
    lines = [
        (
            row["name"], str(row["experts"]), f"{row['effective']:.1f}", str(row["unused"]),
            f"{figures.percent(min(row['share']))} to {figures.percent(max(row['share']))}",
        )
        for row in found["experts"]
    ]  # fmt: skip
    return [("mixture", "experts", "effective", "unused", "tokens of one"), *lines] if lines else []


def alike_rows(found: Mapping[str, Any]) -> Rows:
    """The header and a row a pair."""
    lines = [(" and ".join(p["blocks"]), _two(p["outputs"]), _two(p["weights"])) for p in found["alike"]]
    return [("pair", "outputs", "weights"), *lines] if lines else []


def regions_text(regions: Mapping[str, Any]) -> str:
    """What was counted along lines, in a sentence."""
    if "unknown" in regions:
        return f"linear regions: unknown: {figures.prose(regions['unknown'])}"
    lines = len(regions["lines"])
    spread = f"95 %: {figures.amount(regions['low'])} to {figures.amount(regions['high'])}"
    how = (
        "counted along whole lines"
        if regions["exact"]
        else f"from exact counts on {figures.percent(max(line['share'] for line in regions['lines']))} of each at most"
    )
    return f"linear regions between two samples: {figures.amount(regions['regions'])} ({spread}; {lines} lines, {how})"


def _part(title: str, lines: Rows, rows: int) -> list[RenderableType]:
    if not lines:
        return []
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for index, name in enumerate(lines[0]):
        table.add_column(name, justify="right" if index else "left", overflow="fold")
    for line in lines[1 : rows + 1]:
        table.add_row(*(Text(figures.clean(cell)) for cell in line))
    parts: list[RenderableType] = [Text(), _line(title), Padding(table, (0, 0, 0, 2), expand=False)]
    if len(lines) - 1 > rows > 3:
        parts.append(_line(f"and {len(lines) - 1 - rows} more: --rows or --json"))
    return parts


def _two(value: float | None) -> str:
    return _cell(value, "{:.2f}")


def _cell(value: float | None, form: str) -> str:
    return figures.DASH if value is None else form.format(value)


def _line(text: str, style: str = "") -> RenderableType:
    return Padding(Text(text, style=style), (0, 0, 0, 2), expand=False)
