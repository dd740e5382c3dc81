"""What a model does on samples, as a page: R² by block, units, the linear regions of a slice, and what could work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compresskit.render import figures, structure_view
from compresskit.render.html.chart import Axis, Chart, Mark, Series
from compresskit.render.html.markup import Pictures, card, folded, section, table, text, words
from compresskit.render.html.page import document
from compresskit.render.html.svg import Still

_SIDE = 420
"""Of the picture of a slice in pixels."""
_SHADES = (0.28, 0.4, 0.52, 0.64, 0.76, 0.9)
_COLOURS = 6


def structure_page(found: Mapping[str, Any], *, title: str, words: Sequence[str]) -> str:
    """The page; it loads nothing.

    Args:
        found: The structure, as ``inspect --structure --json`` has it.
        title: The model.
        words: MODEL, what tells its architecture, and the samples, as typed.
    """
    pictures = Still()
    about = f"on {found['samples']} samples of {figures.clean(found['data'])}"
    head = f"<header><h1>{text(title)}</h1><p class=soft>structure {text(about)}</p></header>"
    body = (
        head,
        section("What could work", card(_readings(found, words))),
        section("Blocks", pictures.grid([c for c in (_r2(found), _rank(found)) if c is not None]), _halves(found)),
        section("Linear regions", _regions(found["regions"])),
        section("Units", _units(found, pictures)),
        section("Symmetry", card(_table(structure_view.symmetry_rows(found)))),
        section("Experts", card(_table(structure_view.expert_rows(found)))),
        section("Likeness", card(_table(structure_view.alike_rows(found)))),
    )
    return document(f"Structure of {title}", "".join(body), pictures)


def _readings(found: Mapping[str, Any], typed: Sequence[str]) -> str:
    items = []
    for reading in found["readings"]:
        command = structure_view.command_of(reading, typed)
        code = f"<br><code>{text(command)}</code>" if command else ""
        saves = f"<br>{text(saved)}" if (saved := structure_view.saves_text(reading)) else ""
        items.append(f"<li>{words(figures.prose(reading['finding']))}{saves}{code}</li>")
    return f'<ul class="steps">{"".join(items)}</ul>' if items else "<p>nothing stands out on these samples</p>"


def _table(rows: Sequence[Sequence[str]]) -> str:
    return table(rows[0], rows[1:]) if rows else ""


def _r2(found: Mapping[str, Any]) -> Chart | None:
    """R² by block, a series for each kind of layer."""
    blocks = [block for block in found["blocks"] if block["by"]]
    if not blocks:
        return None
    kinds = list(dict.fromkeys(kind for block in blocks for kind in block["by"]))
    series = [
        Series(
            kind, "bars",
            [
                Mark(max(0.0, r2), row, f"{block['name']}, {kind}: {r2:.3f}", value=f"{r2:.3f}")
                for row, block in enumerate(blocks) if (r2 := block["by"].get(kind)) is not None
            ],
            place,
        )
        for place, kind in enumerate(kinds)
    ]  # fmt: skip
    rows = structure_view.block_rows(found)
    note = "share of the variance of a block's output, on samples that the layer was not fitted on"
    return Chart(
        "One linear layer in the place of a block", series, Axis(0.0, 1.0), Axis(rows=[b["name"] for b in blocks]),
        rows[0], rows[1:], note,
    )  # fmt: skip


def _rank(found: Mapping[str, Any]) -> Chart | None:
    blocks = [block for block in found["blocks"] if block.get("rank")]
    if not blocks:
        return None
    marks = [
        Mark(100 * b["rank"] / b["width"], row, f"{b['name']}: {b['rank']} of {b['width']}", value=f"{b['rank']:.0f}")
        for row, b in enumerate(blocks)
    ]
    series = [Series("effective rank", "bars", marks)]
    x = Axis(0.0, 100.0, shown=lambda value: f"{value:.6g} %")
    return Chart("Effective rank of the output, of its width", series, x, Axis(rows=[b["name"] for b in blocks]))


def _halves(found: Mapping[str, Any]) -> str:
    return folded("Halves of blocks", _table(structure_view.half_rows(found)), "R² of one linear layer")


def _units(found: Mapping[str, Any], pictures: Pictures) -> str:
    layers = found["units"]["layers"]
    if not layers:
        return ""
    zeros = [figures.percent(row["sparsity"]) for row in layers]
    marks = [
        Mark(100 * row["sparsity"], n, f"{row['name']}: {zeros[n]}", value=zeros[n]) for n, row in enumerate(layers)
    ]
    x = Axis(0.0, 100.0, shown=lambda value: f"{value:.6g} %")
    rows = structure_view.unit_rows(found)
    chart = Chart(
        "Zeros among activations", [Series("zeros", "bars", marks)], x, Axis(rows=[r["name"] for r in layers]),
        rows[0], rows[1:],
    )  # fmt: skip
    return pictures.grid([chart])


def _regions(regions: Mapping[str, Any]) -> str:
    said = f"<p>{words(structure_view.regions_text(regions))}</p>"
    drawn = regions.get("slice")
    return card(said) + (_slice(drawn) if drawn else "")


def _slice(drawn: Mapping[str, Any]) -> str:
    """The cells of a square, one colour a class, neighbours in other shades."""
    classes = {c: n for n, c in enumerate(dict.fromkeys(drawn["classes"]))}
    parts = []
    for number, (cell, index) in enumerate(zip(drawn["cells"], drawn["classes"], strict=True)):
        points = " ".join(f"{_SIDE * x:.1f},{_SIDE * (1 - y):.1f}" for x, y in cell)
        shade = _SHADES[(number * 5) % len(_SHADES)]
        place = 1 + classes[index] % _COLOURS
        parts.append(f'<polygon class=c{place} points="{points}" fill-opacity={shade} />')
    note = (
        f"{drawn['regions']} linear regions in a square of side {drawn['side']:.3g} (the distance of two samples is 1) "
        "in the plane through three samples; each predicted class has a colour, each region a shade"
    )
    return (
        f'<figure><figcaption><h3>Regions of a slice</h3><p>{words(note)}</p></figcaption><div class="plot">'
        f'<svg role="img" aria-label="linear regions of a slice" viewBox="0 0 {_SIDE} {_SIDE}" '
        f'style="max-width:{_SIDE}px;stroke:var(--card);stroke-width:.6">{"".join(parts)}</svg></div></figure>'
    )
