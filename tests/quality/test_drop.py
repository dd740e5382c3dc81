"""``--max-drop``: what is understood and what passes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compresskit.errors import UsageError
from compresskit.quality import Limit, parse_drop, within


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.5pt", Limit(0.5, False)),
        (".5 pt", Limit(0.5, False)),
        ("1%", Limit(1.0, True)),
        (" 2.50 % ", Limit(2.5, True)),
        ("0pt", Limit(0.0, False)),
    ],
)
def test_both_forms(text, expected):
    assert parse_drop(text) == expected
    assert parse_drop(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    ["", "1", "0.5", "-1%", "1 percent", "pt", "%", "1e3%", "nan%", "infpt", "1%pt", "1,5%", "٣%", "9" * 400 + "%"],
)
def test_anything_else_is_a_usage_error(text):
    with pytest.raises(UsageError, match="`max_drop`"):
        parse_drop(text)


@pytest.mark.parametrize(
    ("limit", "baseline", "value", "higher", "passed"),
    [
        ("0.5pt", 75.0, 74.5, True, True),
        ("0.5pt", 91.695, 91.195, True, True),
        ("0.5pt", 75.0, 74.49, True, False),
        ("0.5pt", 75.0, 80.0, True, True),
        ("1%", 75.0, 74.3, True, True),
        ("1%", 75.0, 74.2, True, False),
        ("1%", 4.656, 4.70, False, True),
        ("1%", 4.656, 4.71, False, False),
        ("0.1pt", 4.656, 4.70, False, True),
        ("0.1pt", 4.656, 4.80, False, False),
        ("1%", 4.656, 4.0, False, True),
        ("0pt", 50.0, 50.0, True, True),
        ("1%", -10.0, -10.05, True, True),
        ("1%", -10.0, -10.2, True, False),
        ("1%", 75.0, math.nan, True, False),
        ("1%", 4.0, math.inf, False, False),
    ],
)
def test_points_and_percent_in_both_directions(limit, baseline, value, higher, passed):
    found, drop = within(parse_drop(limit), baseline, value, higher)
    assert found is passed
    assert math.isnan(drop) or drop == pytest.approx(baseline - value if higher else value - baseline)


@pytest.mark.parametrize(
    ("interval", "passed"),
    [((-0.2, 0.3), True), ((-0.1, 0.7), None), ((0.1, 0.5), True), ((-3.0, -1.0), True)],
)
def test_an_interval_around_the_limit_is_inconclusive(interval, passed):
    assert within(parse_drop("0.5pt"), 75.0, 74.9, True, interval)[0] is passed


def test_a_proven_drop_fails():
    assert within(parse_drop("0.5pt"), 75.0, 74.0, True, (0.6, 1.4))[0] is False
    assert within(parse_drop("0.5pt"), 75.0, 74.4, True, (0.2, 1.0))[0] is None


@given(st.floats(0, 100), st.floats(1, 100), st.floats(1, 100))
def test_percent_agrees_with_points(limit, baseline, value):
    points = Limit(baseline * limit / 100, False)
    for higher in (True, False):
        assert within(Limit(limit, True), baseline, value, higher) == within(points, baseline, value, higher)
