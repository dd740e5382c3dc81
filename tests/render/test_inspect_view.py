from __future__ import annotations

import io
from typing import Any

import pytest

from compresskit.render.console import make_console
from compresskit.render.inspect_view import print_inspection


def layer(index: int, **changes: Any) -> dict[str, Any]:
    base = {
        "name": f"encoder.layer{index}.dense", "type": "Linear", "shape": [64, 64], "dtype": "float32",
        "parameters": 4096, "bytes": 16384 + index, "sparsity": 0.25, "macs": 4096,
    }  # fmt: skip
    return {**base, **changes}


def found(layers: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    data = {
        "kind": "module",
        "totals": {"layers": len(layers), "parameters": 4096, "bytes": 16384, "macs": 40_551_040, "sparsity": 0.25},
        "dtypes": {"float32": 16000, "int4": 384},
        "inputs": {"x": [1, 3, 32, 32]},
        "layers": layers,
        "biggest": [each["name"] for each in layers[:2]],
        "notes": ["attention is not counted"],
    }
    return {**data, **changes}


def draw(data: dict[str, Any], width: int = 80, **options: Any) -> str:
    stream = io.StringIO()
    print_inspection(data, make_console(stream, width=width), **options)
    return stream.getvalue()


def test_totals_and_layers_are_shown() -> None:
    text = draw(found([layer(1), layer(2)]), title="model.pt")
    for part in ("model.pt", "4.1 k parameters", "40.6 M MACs for x 1×3×32×32", "25.0 % zeros", "int4 384 B",
                 "encoder.layer2.dense", "64×64", "16.4 kB", "attention is not counted"):  # fmt: skip
        assert part in text, part


def test_the_largest_layers_are_shown_and_the_rest_is_counted() -> None:
    text = draw(found([layer(i, bytes=1000 * i) for i in range(1, 51)], biggest=[]), rows=10)
    assert "encoder.layer41.dense" in text
    assert "encoder.layer40.dense" not in text
    assert "and 40 smaller layers of 820 kB in all" in text
    assert text.index("layer41.") < text.index("layer50.")


def test_tied_and_grouped_layers_are_marked() -> None:
    text = draw(found([layer(1, dtype="int4", group_size=32), layer(2, tied_to="embedding")]))
    assert "int4 g32" in text
    assert "tied" in text


@pytest.mark.parametrize("width", [40, 80])
def test_names_fit_and_are_whole(width: int) -> None:
    name = "Q" * 150
    text = draw(found([layer(1, name=name)], biggest=[]), width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("Q") == 150


def test_long_names_share_a_heading_where_the_table_is_narrow() -> None:
    parts = ("attention.self.query", "attention.output.dense", "output.dense")
    names = [f"encoder.layer.{index}.{part}" for index in (0, 1) for part in parts]
    data = found([layer(1, name=name, type="Linear") for name in (*names, "classifier.out_proj")], biggest=[])
    narrow, wide = (draw(data | {"dtypes": {"float32": 1}}, width) for width in (70, 120))
    assert all(name in wide for name in names) and "16.4 kB of float32" in wide
    lines = narrow.splitlines()
    assert max(map(len, lines)) <= 70
    assert [line.split()[0] for line in lines if line.startswith("  encoder")] == ["encoder.layer.0", "encoder.layer.1"]
    assert all(sum(line.startswith(f"    {part} ") for line in lines) == 2 for part in parts)
    assert "  classifier.out_proj " in narrow  # alone, so whole
    assert "float32  " not in narrow


def test_names_are_no_markup() -> None:
    text = draw(found([layer(1, name="[red]x\x1b[0m")]), 120, title="[bold]m\x07")
    assert r"[red]x\x1b[0m" in text
    assert r"[bold]m\x07" in text


def test_a_bare_file_shows_neither_types_nor_macs() -> None:
    totals = {"layers": 1, "parameters": 1, "bytes": 4, "macs": None, "sparsity": None}
    text = draw(found([layer(1, macs=None, sparsity=None)], kind="tensors", totals=totals, inputs={}))
    assert "MACs" not in text
    assert " type" not in text
