"""Ranges from values: what each method is defined by, on distributions whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from compresskit.exporter.ranges import Histogram, find_range


def seen(*batches: np.ndarray) -> Histogram:
    values = Histogram()
    for batch in batches:
        values.add(batch.astype(np.float32), count=True)
    return values


def error(x: np.ndarray, low: float, high: float) -> float:
    step = (high - low) / 255
    return float(np.mean((x - (np.clip(np.round((x - low) / step), 0, 255) * step + low)) ** 2))


NORMAL = np.random.default_rng(0).standard_normal(60_000)
OUTLIER = np.concatenate([NORMAL, [40.0]])


def test_minmax_is_exact_over_batches_and_holds_zero() -> None:
    assert find_range(seen(np.array([1.5, 2.0]), np.array([7.25])), "minmax") == (0, 7.25)
    assert find_range(seen(np.array([-3.0, -2.0])), "minmax") == (-3, 0)


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse", "entropy"])
def test_every_range_lies_within_the_extremes(method) -> None:
    for x in (NORMAL, OUTLIER, np.maximum(NORMAL, 0), -np.abs(NORMAL), np.zeros(5), np.array([3.0])):
        low, high = find_range(seen(x), method)
        assert min(x.min(), 0) - 1e-6 <= low <= 0 <= high <= max(x.max(), 0) + 1e-6


def test_a_percentile_leaves_that_share_inside() -> None:
    low, high = find_range(seen(NORMAL), "percentile", 99.0)
    inside = np.mean((low <= NORMAL) & (high >= NORMAL))
    assert abs(inside - 0.99) < 0.002
    low, high = find_range(seen(np.abs(NORMAL)), "percentile", 99.0)
    assert low == 0 and abs(np.mean(np.abs(NORMAL) <= high) - 0.99) < 0.002


def test_mse_beats_minmax_in_what_it_minimizes() -> None:
    for x in (NORMAL, np.concatenate([NORMAL, [12.0, -9.0]]), np.maximum(NORMAL, 0)):
        values = seen(x)
        assert error(x, *find_range(values, "mse")) <= error(x, *find_range(values, "minmax")) * 1.001
    assert 9 < find_range(seen(np.concatenate([NORMAL, [12.0]])), "mse")[1] < 11  # the optimum is 9.8


def test_entropy_cuts_an_outlier_and_keeps_the_bulk() -> None:
    low, high = find_range(seen(OUTLIER), "entropy")
    assert 2 < high < 20 and low < -2
    low, high = find_range(seen(np.maximum(OUTLIER, 0)), "entropy")
    assert low == 0 and 2 < high < 20


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_entropy_does_not_see_how_many_zeros_a_relu_leaves(share: float) -> None:
    """Their bin would outweigh all others: the range would end below half of what the other values need."""
    positive = np.array_split(np.abs(np.random.default_rng(0).standard_normal(120_000)), 100)
    zeros = np.zeros(round(len(positive[0]) * share / (1 - share)))
    without, among = seen(*positive), seen(*(np.concatenate([batch, zeros]) for batch in positive))
    assert among.counts.sum() == pytest.approx(without.counts.sum() / (1 - share), rel=1e-3)
    assert find_range(among, "entropy") == find_range(without, "entropy")
    assert find_range(among, "entropy")[1] > 4


def test_the_histogram_widens_without_losing_counts() -> None:
    values = seen(NORMAL, NORMAL * 100)
    assert values.counts.sum() == pytest.approx(2 * len(NORMAL))
    direct = seen(np.concatenate([NORMAL * 100, NORMAL]))
    assert find_range(values, "percentile", 99.9) == pytest.approx(find_range(direct, "percentile", 99.9), rel=0.02)


def test_memory_does_not_grow_with_the_data() -> None:
    values = Histogram()
    for index in range(20):
        values.add(np.full((64, 64, 64), index, np.float32), count=True)
    assert values.counts.shape == (4096,)


def test_what_is_not_finite_is_remembered() -> None:
    values = seen(np.array([1.0]), np.array([np.inf]))
    assert not values.finite and values.high == 1
