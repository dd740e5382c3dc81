"""What the measurements say of each limit that a result must keep.

A run and ``check`` judge through this one piece, and from the same figures: those that stand in the report.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from compresskit.benchmark.run import change
from compresskit.benchmark.stats import MIN_EFFECT
from compresskit.quality.drop import Limit, parse_drop, within
from compresskit.recipe.limits import DEFAULT_DROP, Limits, parse_size
from compresskit.report import Evaluation, Gate, Measurement, ModelEntry, point_name, points_of

SAME = 1.001
"""Growth that nobody would call so: two constants that were equal, and shared, before."""
AS_FAST = 0.1
"""How much slower something may be that is held to be as fast: runtimes and machines differ more than that."""
_AGAIN = "measure again on an idle machine, or run bench with more `processes`"
_NO_DATA = "no quality was measured: measure again with evaluation data"
_ALONE = "the report has one model only: measure again with compare ORIGINAL MODEL"
_NO_BENCH = "no speed-up was measured: measure again with the original and without `no_bench`"


def gates(
    models: Sequence[ModelEntry],
    evaluation: Evaluation | None,
    measurements: Sequence[Measurement],
    limits: Limits,
    *,
    broken: Mapping[str, str] = {},
    slower: Mapping[str, float] = {},
    larger: Collection[str] = (),
) -> list[Gate]:
    """One gate for each limit that was asked for, and the default ones, for each model but the first.

    A speed-up is held to its limit at every point of a sweep, by a gate for each.
    A limit that was asked for has a gate whatever was measured: what nothing is known of is not passed. A model that is
    alone has gates only for what was asked.

    Args:
        models: Entries of the report, the baseline first.
        evaluation: None when no metric was measured.
        measurements: Scores and speed-ups are taken from them.
        limits: What the user asked for.
        broken: Models whose outputs aren't finite, with what was found.
        slower: Models that nothing promises to be faster, and how much slower they may be: :data:`AS_FAST` where as
            fast is enough, infinity for no default limit.
        larger: Models that nothing promises to be as small: they have no default limit of size.
    """
    alone = len(models) == 1
    default = not (alone or limits.may_grow)
    found: list[Gate] = []
    for entry in models[1:] or models:
        prefix = f"{entry.name}: " if len(models) > 2 else ""
        if entry.name in broken:
            reason = broken[entry.name]
            found.append(Gate(name=f"{prefix}finite outputs", limit="all", value=None, passed=False, reason=reason))
        elif (evaluation is not None and not alone) or limits.max_drop is not None:
            found.append(_quality_gate(models[0], entry, evaluation, measurements, limits, prefix))
        if (default and entry.name not in larger) or limits.max_size is not None:
            allowed = parse_size(limits.max_size) if limits.max_size else round(SAME * models[0].bytes)
            asked = limits.max_size is not None
            found.append(size_gate(f"{prefix}size", entry, allowed, limits.max_size or "the original", asked=asked))
        margin = slower.get(entry.name, MIN_EFFECT)
        if (default and margin < math.inf) or limits.min_speedup is not None:
            found += _speed_gates(entry, measurements, limits, prefix, margin)
    return found


def _quality_gate(
    baseline: ModelEntry,
    entry: ModelEntry,
    evaluation: Evaluation | None,
    measurements: Sequence[Measurement],
    limits: Limits,
    prefix: str,
) -> Gate:
    scores = {m.model: m for m in measurements if evaluation is not None and m.name == evaluation.metric}
    before, after = None if entry is baseline else scores.get(baseline.name), scores.get(entry.name)
    limit, asked = parse_drop(limits.max_drop or DEFAULT_DROP), limits.max_drop is not None
    name = f"{prefix}{evaluation.metric if evaluation else 'quality'} drop"
    if evaluation is None or before is None or after is None:
        reason = _NO_DATA if evaluation is None or after is None else _ALONE
        return Gate(name=name, limit=f"≤ {limit}", value=None, unit="pt", passed=None, asked=asked, reason=reason)
    interval = evaluation.drops.get(after.model)
    return drop_gate(name, before, after, limit, evaluation.higher_is_better, asked=asked, interval=interval)


def drop_gate(
    name: str,
    before: Measurement,
    after: Measurement,
    limit: Limit,
    higher_is_better: bool,
    *,
    asked: bool,
    interval: tuple[float, float] | None = None,
) -> Gate:
    """Is a score as good as another on the same samples, but for the limit?

    The interval says how sure the drop is on other data; the verdict is on this data, so the figures decide.
    """
    passed, lost = within(limit, before.value, after.value, higher_is_better)
    reason = f"{before.value:.3f} → {after.value:.3f} on {after.n} samples"
    if interval is not None:
        reason += f", 95 % interval of the drop {interval[0]:+.2f} to {interval[1]:+.2f}"
    value = lost if math.isfinite(lost) else None
    return Gate(name=name, limit=f"≤ {limit}", value=value, unit="pt", passed=passed, asked=asked, reason=reason)


def size_gate(name: str, entry: ModelEntry, allowed: float, shown: str, *, asked: bool, reason: str = "") -> Gate:
    """Is a model at most so large, in bytes?"""
    passed = entry.bytes <= allowed
    return Gate(
        name=name, limit=f"≤ {shown}", value=entry.bytes, unit="bytes", passed=passed, asked=asked, reason=reason
    )


def pace(ratio: Measurement, margin: float = MIN_EFFECT) -> tuple[bool | None, str]:
    """Whether something isn't slower than something else, None where that isn't proven; and the interval in words.

    Args:
        ratio: How many times faster it is.
        margin: What is nearer to 1 than this is not called slower.
    """
    if change(ratio, margin) == "slower":
        return False, _interval(ratio)
    if ratio.n > 1 and ratio.low is not None and ratio.high is not None and ratio.low > 1 / (1 + margin):
        return True, _interval(ratio)
    slower = ratio.high is not None and ratio.high < 1
    why = "slower by an uncertain amount" if slower else "too noisy to decide"
    return None, _interval(ratio, why)


def _interval(ratio: Measurement, why: str = "") -> str:
    """The interval in words; an interval that decides nothing comes with the reason ``why`` and with what to do."""
    if ratio.low is None or ratio.high is None:
        found, why = "no interval is known", why and "too few processes"
    else:
        found = f"95 % interval {ratio.low:.2f} to {ratio.high:.2f}"
    return f"{why}, {found}: {_AGAIN}" if why else found


def _speed_gates(
    entry: ModelEntry, measurements: Sequence[Measurement], limits: Limits, prefix: str, margin: float
) -> list[Gate]:
    """A gate for each point at which the speed-up is known; one where it should be known and isn't."""
    own = [m for m in measurements if (m.name, m.model) == ("speedup", entry.name)]
    if not own:
        return [] if limits.min_speedup is None else [_speed_gate(None, limits, prefix, margin)]
    points = points_of(own, "speedup")
    return [_speed_gate(m, limits, prefix, margin, point_name(m.point, points)) for m in own]


def _speed_gate(speedup: Measurement | None, limits: Limits, prefix: str, margin: float, where: str = "") -> Gate:
    name, asked = f"{prefix}speed{f' ({where})' if where else ''}", limits.min_speedup is not None
    limit = "not slower" if margin == MIN_EFFECT else f"as fast within {100 * margin:g} %"
    if limits.min_speedup is not None:
        limit = f"≥ {limits.min_speedup:g}×"
    if speedup is None:
        return Gate(name=name, limit=limit, value=None, unit="×", passed=None, asked=asked, reason=_NO_BENCH)
    low, high = speedup.low or 0.0, speedup.high if speedup.high is not None else math.inf
    passed: bool | None
    if limits.min_speedup is not None:
        passed = True if low >= limits.min_speedup else False if high < limits.min_speedup else None
        reason = _interval(speedup, "too noisy to decide" if passed is None else "")
    else:
        passed, reason = pace(speedup, margin)
        if passed is False:
            reason += f"; to accept it: `min_speedup` {max(0.01, low * 0.9):.2g}"
    return Gate(name=name, limit=limit, value=speedup.value, unit="×", passed=passed, asked=asked, reason=reason)
