from __future__ import annotations

import pytest

from compresskit.render import figures


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_499, "999 kB"), (999_500, "1 MB"), (13_540_000, "13.5 MB"),
     (2_147_483_648, "2.15 GB"), (7e15, "7000 TB")],
)  # fmt: skip
def test_sizes_are_decimal_with_three_digits(count: float, text: str) -> None:
    assert figures.size(count) == text


@pytest.mark.parametrize(("count", "text"), [(None, "–"), (0, "0"), (272_474, "272 k"), (40_551_040, "40.6 M")])
def test_amounts(count: float | None, text: str) -> None:
    assert figures.amount(count) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (float("nan"), "–"), (91.695, "91.69"), (4.6561, "4.656"), (0.9991, "0.9991")]
)
def test_numbers(value: float | None, text: str) -> None:
    assert figures.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.2, "0.200"), (4.123, "4.12"), (24.61, "24.6"), (1280.4, "1280"), (None, "–")]
)
def test_milliseconds(value: float | None, text: str) -> None:
    assert figures.milliseconds(value) == text


@pytest.mark.parametrize(
    ("fraction", "text"), [(None, "–"), (0.0, "0 %"), (1e-6, "<0.1 %"), (0.125, "12.5 %"), (1.0, "100.0 %")]
)
def test_percentages(fraction: float | None, text: str) -> None:
    assert figures.percent(fraction) == text
