"""A search: its best candidates as a table, and a summary of the others in lines."""

from __future__ import annotations

from collections import Counter

from compresskit.render import figures
from compresskit.searched import Judged, Search, Tried, tried_text

_IMPORTANT, _SHARE = 4, 0.02
"""Questions that are named at most, and the share of the differences that each must explain."""


def table(search: Search) -> tuple[tuple[str, ...], list[tuple[int, tuple[str, ...]]]]:
    """(titles, (number of the candidate, its cells) for each that no other beats, the smallest first)."""
    judged = {one.number: one for one in search.judged}
    tried = {one.number: one for one in search.tried}
    shown = dict.fromkeys([*search.front, *judged])
    header = ("", "candidate", "smaller", "speed", f"{search.metric} (selection)", f"{search.metric} (evaluation)")
    return header, [(number, _cells(tried[number], judged.get(number), search)) for number in shown if number in tried]


def lines(search: Search) -> list[str]:
    """How many candidates were tried and their outcomes, and which choices mattered."""
    states: Counter[str] = Counter(one.state for one in search.tried)
    words = {
        "kept": "pass", "missed": "miss", "looked": "preview only", "dropped": "dropped early", "cut": "interrupted",
        "failed": "failed",
    }  # fmt: skip
    told = ", ".join(f"{states[state]} {word}" for state, word in words.items() if states[state])
    count = len(search.tried)
    found = [f"{count} candidate{'s' * (count != 1)} tried in {search.seconds:.0f} s: {told}"]
    if search.chosen_by:
        found.append(f"compared by {search.metric} on {search.chosen_by}; → marks the result (pick: {search.pick})")
    mattered = [(name, share) for name, share in search.importance.items() if share >= _SHARE][:_IMPORTANT]
    if mattered:
        named = ", ".join(f"{figures.clean(name)} {100 * share:.0f} %" for name, share in mattered)
        found.append(f"most important choices for {search.goals[0]}: {named}")
    return [figures.clean(line) for line in found]


def _cells(one: Tried, judged: Judged | None, search: Search) -> tuple[str, ...]:
    speed = f"about {one.faster:.1f}×" if one.faster is not None else figures.DASH
    evaluated = figures.DASH
    if judged is not None:
        if judged.speedup is not None:
            speed = f"{judged.speedup:.2f}×"
        if judged.drop is not None:
            evaluated = f"{0 - judged.drop:+.2f}"
            if judged.interval is not None:
                evaluated += f" [{-judged.interval[1]:+.2f}, {-judged.interval[0]:+.2f}]"
        evaluated += "" if judged.passed else " missed"
    chosen = f"{0 - one.drop:+.2f}" if one.drop is not None else figures.DASH
    mark = "→" if one.number == search.winner else ""
    smaller = f"{one.smaller:.1f}×" if one.smaller is not None else figures.DASH
    return mark, f"{one.number}: {figures.clean(tried_text(one))}", smaller, speed, chosen, evaluated
