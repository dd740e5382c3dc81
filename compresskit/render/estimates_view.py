"""What each stage could do with a model, on the terminal."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from compresskit.render import figures

_BAR = 24
_MEASURES = {
    "divergence": "mean KL divergence in nats",
    "relative error": "relative squared error",
}


def estimates_parts(found: Mapping[str, Any], words: Sequence[str], rows: int) -> list[RenderableType]:
    """What follows the table of layers.

    Args:
        found: The inspection, with its ``estimates``.
        words: MODEL and what tells its architecture, as typed.
        rows: Most layers of a table.
    """
    estimates = found["estimates"]
    parts: list[RenderableType] = [Text(), _line("estimates for each method (from shapes, not measured)", "bold")]
    parts += _sizes(estimates["quantize"])
    parts += [_line(_prune(estimates["prune"])), _line(_ranks(estimates["factorize"], found["kind"]))]
    if measured := estimates.get("sensitivity"):
        parts += _bars(measured, rows)
    if suggestion := estimates.get("suggestion"):
        parts += _suggested(suggestion, estimates["quantize"], words)
    return parts


def even_rank(ranks: Mapping[str, int] | None) -> str:
    """The break-even rank of a layer's cell: the largest that saves weights, by any way; a dash for none."""
    best = max((ranks or {}).values(), default=0)
    return str(best) if best else figures.DASH


def _sizes(quantize: Mapping[str, Any]) -> list[RenderableType]:
    if not quantize["forms"]:
        return [_line(f"quantize: nothing to gain: {figures.prose(quantize['reason'])}")]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for title in ("quantize", "size", "smaller", "MACs in low bits", "by"):
        table.add_column(title, justify="right" if title in ("size", "smaller", "MACs in low bits") else "left")
    table.add_row("float32", f"≈ {figures.size(quantize['float_bytes'])}", figures.DASH, "", "")
    for form in quantize["forms"]:
        share = form["macs_on_codes"] / form["macs"] if form["macs"] and form["macs_on_codes"] is not None else None
        cells = (form["form"], f"≈ {figures.size(form['bytes'])}", figures.times(form["smaller"]))
        table.add_row(
            *map(Text, (*cells, "" if share is None else _whole(share), form["by"].removeprefix("quantize ")))
        )
    return [Padding(table, (0, 0, 0, 2), expand=False)]


def _prune(prune: Mapping[str, Any]) -> str:
    if not prune["known"]:
        return f"prune: unknown: {figures.prose(prune['reason'])}"
    least = prune["least"]
    return (
        f"prune: channels can be cut in layers with {_whole(prune['parameters'])} of the parameters and "
        f"{_whole(prune['macs'])} of the MACs ({prune['groups']} groups); after the strongest pruning "
        f"{_whole(least['parameters'])} of the parameters and {_whole(least['macs'])} of the MACs remain"
    )


def _whole(share: float) -> str:
    """A share without decimals where there is no need of them."""
    return f"{100 * share:.0f} %" if share > 0.1 or share == 0 else figures.percent(share)


def _ranks(factorize: Mapping[str, Any], kind: str) -> str:
    layers = factorize["layers"]
    if not layers:
        why = factorize.get("reason") or ("needs the architecture" if kind == "tensors" else "no layer that it takes")
        return f"factorize: {figures.prose(why)}"
    where = ", of the checkpoint" if kind == "onnx" else ""
    good = sum(any(ranks.values()) for ranks in layers.values())
    return (
        f"factorize: {good} of {len(layers)} layers{where} get smaller at or below their break-even rank (column "
        "'even'); a speed-up needs a rank well below it"
    )


def _bars(measured: Mapping[str, Any], rows: int) -> list[RenderableType]:
    layers = measured["layers"]
    title = (
        f"sensitivity: change of the output when one layer alone is quantized to {measured['bits']} bits, on "
        f"{measured['samples']} samples of {figures.clean(measured['data'])}: {_MEASURES[measured['measure']]}"
    )
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False, pad_edge=False)
    table.add_column(overflow="fold")
    table.add_column(justify="right")
    table.add_column(no_wrap=True)
    top = max((layer["loss"] for layer in layers), default=0.0)
    for layer in layers[:rows]:
        length = _BAR * layer["loss"] / top if top > 0 else 0
        bar = "█" * int(length) + ("▌" if length % 1 >= 0.5 else "")
        table.add_row(Text(figures.clean(layer["name"])), Text(f"{layer['loss']:.2g}"), Text(bar, style="yellow"))
    parts: list[RenderableType] = [Text(), _line(title, "bold"), Padding(table, (0, 0, 0, 2), expand=False)]
    if len(layers) > rows:
        parts.append(_line(f"and {len(layers) - rows} layers with less effect: --rows or --json"))
    return parts


def _suggested(
    suggestion: Mapping[str, Any], quantize: Mapping[str, Any], words: Sequence[str]
) -> list[RenderableType]:
    form = next((f for f in quantize["forms"] if f["form"] == suggestion["form"]), None)
    typed = shlex.join(map(figures.clean, words))
    options = shlex.join(suggestion["options"])
    if form is None:
        return []
    text = (
        f"suggestion: about {figures.size(form['bytes'])}, {figures.times(form['smaller'])} smaller ({form['form']}):"
    )
    return [
        Text(),
        _line(text),
        _line(f"  compresskit quantize {typed} {options}"),
        _line(f"as a recipe with comments: compresskit inspect {typed} --suggest FILE.yaml"),
    ]


def _line(text: str, style: str = "") -> RenderableType:
    return Padding(Text(text, style=style), (0, 0, 0, 2), expand=False)
