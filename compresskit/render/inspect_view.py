"""What ``inspect`` found, on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from compresskit.render import figures
from compresskit.render.branches import branches
from compresskit.render.console import make_console
from compresskit.render.estimates_view import estimates_parts, even_rank
from compresskit.render.structure_view import structure_parts

ROWS = 40
_MARGIN = 2
_SPECTRUM = (
    "spectrum: effective rank; smallest rank that keeps 90, 95 and 99 % of the energy; break-even rank; energy kept "
    "at 80, 60 and 40 % of the size"
)


def print_inspection(
    found: dict[str, Any],
    console: Console | None = None,
    *,
    title: str = "",
    rows: int = ROWS,
    words: Sequence[str] = ("MODEL",),
    data: Sequence[str] = ("--data", "DATA"),
) -> None:
    """Draw an inspection: totals, then the layers in the model's order.

    Args:
        found: What ``compresskit.ops.inspect`` returned.
        console: Where to draw; standard output by default.
        title: The model, as typed.
        rows: Most layers to show. Of more, the largest are shown, and the rest is counted.
        words: MODEL and what tells its architecture, as typed, for commands that are shown.
        data: The samples and how they are prepared, as typed.
    """
    console = make_console() if console is None else console
    layers = found["layers"]
    ranked = sorted(range(len(layers)), key=lambda index: -layers[index]["bytes"])[:rows]
    parts: list[RenderableType] = [Text(figures.clean(title), style="bold")] if title else []
    parts += [_indented(Text(line)) for line in _totals(found)]
    parts += [Text(), _fitting(partial(_table, [layers[index] for index in sorted(ranked)], found), console)]
    if hidden := len(layers) - len(ranked):
        rest = sum(layers[index]["bytes"] for index in set(range(len(layers))).difference(ranked))
        parts += [_indented(Text(f"and {hidden} smaller layers of {figures.size(rest)} in all: --json lists them"))]
    if known := found.get("spectrum"):
        parts += [Text(), _indented(Text(_SPECTRUM))]
        parts += [_fitting(partial(_spectrum_table, known[:rows]), console)]
        if len(known) > rows:
            parts.append(_indented(Text(f"and {len(known) - rows} more layers: --rows or --json")))
    if "estimates" in found:
        parts += estimates_parts(found, words, rows)
    if known := found.get("structure"):
        parts += structure_parts(known, (*words, *data), rows)
    if found["notes"]:
        parts += [Text(), *(_indented(Text(f"note: {figures.prose(note)}")) for note in found["notes"])]
    for part in parts:
        console.print(part, overflow="fold")


def _totals(found: dict[str, Any]) -> list[str]:
    totals = found["totals"]
    only = f" of {figures.clean(next(iter(found['dtypes'])))}" if len(found["dtypes"]) == 1 else ""
    facts = [f"{figures.amount(totals['parameters'])} parameters", figures.size(totals["bytes"]) + only]
    if totals["macs"] is not None:
        shapes = ", ".join(
            f"{figures.clean(name)} {'×'.join(map(str, shape)) or 'scalar'}" for name, shape in found["inputs"].items()
        )
        facts.append(f"{figures.amount(totals['macs'])} MACs for {shapes}")
    if totals["sparsity"] is not None:
        facts.append(f"{figures.percent(totals['sparsity'])} zeros")
    lines = [", ".join(facts)]
    if len(found["dtypes"]) > 1:
        parts = (f"{figures.clean(name)} {figures.size(size)}" for name, size in found["dtypes"].items())
        lines.append("by dtype: " + ", ".join(parts))
    if len(found["layers"]) > 1 and found["biggest"]:
        lines.append("biggest: " + ", ".join(figures.clean(name) or "(root)" for name in found["biggest"]))
    return lines


def _fitting(draw: Callable[[bool], Table], console: Console) -> RenderableType:
    """The table as it is where the console is wide enough; else drawn for a narrow one."""
    wide = draw(False)
    fits = Measurement.get(console, console.options, wide).maximum + _MARGIN <= console.width
    return Padding(wide if fits else draw(True), (0, 0, 0, _MARGIN), expand=False)


def _add_rows(table: Table, names: Sequence[str], rest: Sequence[Sequence[str]], narrow: bool) -> None:
    """A row for each name; in a narrow table under headings."""
    shown = [figures.clean(name) or "(root)" for name in names]
    for (heading, cell), others in zip(branches(shown) if narrow else [("", n) for n in shown], rest, strict=True):
        if heading:
            table.add_row(Text(heading, style="dim"))
        table.add_row(*map(Text, (cell, *others)))


def _table(layers: list[dict[str, Any]], found: dict[str, Any], narrow: bool) -> Table:
    """One dtype is told above a narrow table, not in each row."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    macs = found["totals"]["macs"] is not None or any(layer["macs"] is not None for layer in layers)
    typed = found["kind"] != "tensors"
    dtype = not narrow or len(found["dtypes"]) != 1
    columns = {"layer": True, "type": typed, "shape": True, "dtype": dtype, "size": True, "zeros": True, "MACs": macs}
    ranks = found.get("estimates", {}).get("factorize", {}).get("layers", {})
    columns["even"] = bool(ranks)
    right = {"size", "zeros", "MACs", "even"}
    for title, shown in columns.items():
        if shown:
            table.add_column(title, justify="right" if title in right else "left", overflow="fold")
    rest = []
    for layer in layers:
        size = "tied" if "tied_to" in layer else figures.size(layer["bytes"])
        group = f" g{layer['group_size']}" if layer.get("group_size") else ""
        cells = (
            figures.clean(layer["type"]),
            "×".join(map(str, layer["shape"])) or "scalar",
            figures.clean(layer["dtype"]) + group,
            size,
            figures.percent(layer["sparsity"]),
            figures.amount(layer["macs"]),
            even_rank(ranks.get(layer["name"])),
        )
        rest.append([cell for cell, shown in zip(cells, list(columns.values())[1:], strict=True) if shown])
    _add_rows(table, [layer["name"] for layer in layers], rest, narrow)
    return table


def _spectrum_table(layers: list[dict[str, Any]], narrow: bool) -> Table:
    table = Table(box=None, padding=(0, 1 if narrow else 2, 0, 0), header_style="bold", pad_edge=False)
    first = layers[0]
    energies, budgets = list(first["rank_for"]), list(first["kept"])
    table.add_column("layer", overflow="fold")
    titles = ("matrix", "eff.", *(f"r{e}" for e in energies), "even", *(f"@{b} %" for b in budgets))
    for title in titles:
        table.add_column(title, justify="right")
    rest = []
    for layer in layers:
        cells = (
            "×".join(map(str, layer["shape"])),
            f"{layer['effective_rank']:.1f}",
            *(str(layer["rank_for"][e]) for e in energies),
            f"{layer['break_even']:.4g}",
            *(figures.percent(layer["kept"][b]) for b in budgets),
        )
        rest.append(cells)
    _add_rows(table, [layer["name"] for layer in layers], rest, narrow)
    return table


def _indented(text: Text) -> RenderableType:
    return Padding(text, (0, 0, 0, 2), expand=False)
