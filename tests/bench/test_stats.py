import math
from collections import Counter

import numpy as np
import pytest

from compresskit.benchmark import stats
from compresskit.benchmark.plan import Plan
from compresskit.benchmark.stats import Estimate, compare, decide, estimate, speedup, student_quantile


def latencies(rng, processes, rounds, process=0.01, single=0.02, burst=0.05, slower=0.0, drift=None):
    """Round medians of one model, ns: ``(processes, rounds)``."""
    shape = (processes, rounds)
    logs = rng.normal(0, process, (processes, 1)) + rng.normal(0, single, shape)
    logs = logs + (rng.random(shape) < burst) * np.log1p(rng.uniform(0.25, 1, shape))
    return 1e6 * np.exp(logs + np.log1p(slower) + (0 if drift is None else drift))


def verdicts(slower, trials=400, processes=7, rounds=6, **noise):
    rng = np.random.default_rng(0)
    counts = Counter()
    for _ in range(trials):
        drift = np.cumsum(rng.normal(0, 0.03, (processes, rounds)), axis=1)
        base = latencies(rng, processes, rounds, drift=drift, **noise)
        other = latencies(rng, processes, rounds, slower=slower, drift=drift, **noise)
        counts[compare(base, other)] += 1
    return counts


@pytest.mark.parametrize("process", [0.002, 0.01, 0.03, 0.1, 0.3])
def test_the_same_model_is_never_different(process):
    counts = verdicts(0.0, process=process)
    assert counts["faster"] + counts["slower"] <= 4  # 1 of 100


@pytest.mark.parametrize(("slower", "answer"), [(0.1, "slower"), (-0.1, "faster")])
def test_a_tenth_is_found(slower, answer):
    assert verdicts(slower)[answer] >= 380  # 95 of 100


def test_noise_is_told_apart_from_equality():
    assert verdicts(0.0, process=0.005)["same"] > 350
    assert verdicts(0.0, process=0.2)["inconclusive"] > 350
    assert verdicts(0.1, process=0.2)["inconclusive"] > 350


def test_a_proven_but_tiny_difference_is_no_difference():
    base = [[100.0, 100.1], [100.2, 100.0], [100.1, 100.1], [100.0, 100.2]]
    other = [[102.0, 102.1], [102.2, 102.0], [102.1, 102.1], [102.0, 102.2]]
    ratio = speedup(base, other)
    assert ratio.high < 1  # proven
    assert decide(ratio) == "same"
    assert decide(ratio, min_effect=0.01) == "slower"


def test_more_calls_are_no_more_evidence():
    """Processes that disagree stay inconclusive however many rounds each one ran (raw-sample tests fail here)."""
    rng = np.random.default_rng(0)
    levels = np.array([1.0, 1.15, 1.0, 1.15, 1.15])[:, None]
    base = 1e6 * rng.normal(1, 0.01, (5, 2000))
    other = 1e6 * rng.normal(1, 0.01, (5, 2000)) * levels
    assert compare(base, other) == "inconclusive"


def test_speedup_pairs_rounds_and_shrugs_off_a_disturbed_one():
    drift = np.linspace(1, 3, 5)
    base = [list(2.0 * drift), list(2.0 * drift)]
    other = [list(1.0 * drift), list(1.0 * drift)]
    other[0][2] *= 50
    ratio = speedup(base, other)
    assert (ratio.value, ratio.n) == (pytest.approx(2.0), 2)
    assert speedup(other, base).value == pytest.approx(0.5)


def test_estimate_is_a_student_interval_on_logs():
    found = estimate([1.0, math.e, math.e**2])
    assert found.value == pytest.approx(math.e)
    assert math.log(found.high / found.value) == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
    assert found.low * found.high == pytest.approx(found.value**2)


def test_one_process_proves_nothing():
    assert estimate([2.0]) == Estimate(pytest.approx(2.0), 0.0, math.inf, 1)
    assert compare([[1.0, 1.0]], [[5.0, 5.0]]) == "inconclusive"


def test_identical_latencies_are_the_same():
    assert compare([[1.0]] * 3, [[1.0]] * 3) == "same"
    assert compare([[1.0]] * 3, [[2.0]] * 3) == "slower"


@pytest.mark.parametrize(
    ("p", "df", "value"),
    [
        (0.975, 4, 2.7764),
        (0.975, 5, 2.5706),
        (0.975, 9, 2.2622),
        (0.975, 30, 2.0423),
        (0.975, 999, 1.9623),
        (0.9975, 6, 4.3168),
        (0.975, 10, 2.2281),
        (0.9975, 10, 3.5814),
        (0.9975, 30, 3.0298),
        (0.975, 120, 1.9799),
        (0.975, 1, 12.7062),
        (0.975, 2, 4.3027),
        (0.99975, 2, 44.7046),
        (0.99925, 4, 7.7412),
        (0.975, 100_000, 1.9600),
    ],
)
def test_quantiles_are_those_of_the_tables(p, df, value):
    assert student_quantile(p, df) == pytest.approx(value, abs=2e-3)


def test_models_of_unequal_generations_are_refused():
    with pytest.raises(ValueError):
        stats.speedup([[1.0]], [[1.0], [1.0]])


def test_the_errors_of_all_looks_come_to_one_percent():
    plan = Plan()
    looks = [plan.look(n) for n in range(plan.processes + plan.more)]
    assert sum(look.error for look in looks if look) + stats.Look().error <= 0.01 + 1e-9
    assert [n for n, look in enumerate(looks) if look] == [3, 5, 7]
    assert not any(Plan().exactly(20).look(n) for n in range(20))


def ended(slower, trials=400, **noise):
    """Verdicts of comparisons that end at the first look that says enough, and the generations that they took."""
    rng, plan = np.random.default_rng(0), Plan()
    counts, taken = Counter(), []
    for _ in range(trials):
        base = latencies(rng, 14, 5, **noise)
        other = latencies(rng, 14, 5, slower=slower, **noise)
        looks = ((n, plan.look(n)) for n in range(2, 14))
        n = next((n for n, look in looks if look and stats.settled(base[:n], other[:n], look)), 14)
        counts[compare(base[:n], other[:n])] += 1
        taken.append(n)
    return counts, np.mean(taken)


@pytest.mark.parametrize("process", [0.002, 0.03, 0.1])
def test_an_early_end_does_not_make_equal_models_different(process):
    counts, _ = ended(0.0, process=process)
    assert counts["faster"] + counts["slower"] <= 8  # 1 of 100 is what is expected at most; an end at p < .05 has 40


def test_an_early_end_finds_a_tenth_with_fewer_processes():
    counts, taken = ended(0.1)
    assert counts["slower"] >= 380  # 95 of 100
    assert taken < 6


@pytest.mark.parametrize(("bars", "look", "answer"), [
    ((), stats.Look(), True),
    ((1.5,), stats.Look(), True),
    ((1.99,), stats.Look(), False),
    ((1.5, 1.99), stats.Look(), False),
    ((), stats.Look(0.005, 0.005, sharp=True), True),
])  # fmt: skip
def test_a_question_is_settled_when_each_bar_is_reached_or_missed(bars, look, answer):
    base = [[2.0], [2.04], [1.96], [2.02], [1.98]]
    assert stats.settled(base, [[1.0]] * 5, look, bars) == answer


def test_an_early_end_waits_for_a_narrow_interval():
    base, other = [[20.0], [22.0], [18.0], [21.0], [19.0]], [[1.0]] * 5
    assert stats.settled(base, other, stats.Look())
    assert not stats.settled(base, other, stats.Look(sharp=True))
