"""How a search times candidates whose time varies from sample to sample."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from compresskit.search.trying import faster


@dataclass
class Sleeping:
    """A session that takes as long as its input says."""

    seen: Counter[float] = field(default_factory=Counter)
    share: float = 1.0

    def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        self.seen[feeds["ms"]] += 1
        time.sleep(self.share * feeds["ms"] / 1e3)
        return {}


def test_all_samples_count_alike() -> None:
    feeds = [{"ms": value} for value in (4.0, 1.0, 1.0, 2.0)]
    original, new = Sleeping(), Sleeping(share=0.5)
    ratio = faster(original, new, feeds, rounds=3)  # type: ignore[arg-type]
    assert 1.5 < ratio < 2.5
    for session in (original, new):
        first = session.seen[4.0] - 2  # what told how many calls fill a round
        assert first > 0 and first % 3 == 0
        assert session.seen[1.0] == 2 * first and session.seen[2.0] == first
