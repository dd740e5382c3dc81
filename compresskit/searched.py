"""How a result was searched for, as its report tells it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0, lt=2**63)]


STATES = {"kept": "passes", "missed": "misses", "dropped": "dropped", "failed": "failed"}
"""The outcome of a candidate, in words."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Tried(_Part):
    """One candidate of a search.

    Attributes:
        number: Counted from 0, in the order in which candidates began.
        steps: Of its recipe, with all options.
        values: What was picked, by the space's names.
        state: ``kept``: it keeps the bars on the samples that the choice is made by; ``missed``: it doesn't;
            ``dropped``: it was given up after the cheap look; ``failed``: a step refused.
        reason: Why it was dropped or failed.
        bytes: What ships.
        smaller: The original's bytes over these.
        faster: The original's time of a call over this one's, from a short look on the machine that tried it.
        timed_on: The machine's class; empty where nothing was timed.
        value: The metric on the samples that the choice is made by; similarity to the original without a metric.
        drop: How much worse than the original, in the metric's points.
        interval: 95 % of the drop.
        seconds: That it took.
        trained: Its recipe trains.
    """

    number: Count
    steps: list[dict[str, Any]]
    values: dict[str, Any]
    state: Literal["kept", "missed", "dropped", "failed"]
    reason: str = ""
    bytes: Count | None = None
    smaller: float | None = None
    faster: float | None = None
    timed_on: str = ""
    value: float | None = None
    drop: float | None = None
    interval: tuple[float, float] | None = None
    seconds: float = 0.0
    trained: bool = False


class Judged(_Part):
    """A candidate that was measured on the evaluation data.

    ``drop`` is in the metric's points, with an interval that is widened for the number of candidates that were
    compared; ``speedup`` was measured with all of them taking turns. ``passed`` is whether it keeps the bars there.
    """

    number: Count
    passed: bool
    value: float | None = None
    drop: float | None = None
    interval: tuple[float, float] | None = None
    speedup: float | None = None
    speedup_interval: tuple[float, float] | None = None


class Search(_Part):
    """How the result was found.

    Attributes:
        tried: All candidates, in the order in which they began.
        front: Numbers of those that no other beats in every goal and in quality.
        judged: Those that were measured on the evaluation data, in the order in which they were wanted.
        winner: Number of the result.
        pick: What decided among those that pass.
        goals: What was to be small.
        importance: Share of the differences between candidates that each question explains, by its name.
        chosen_by: The samples which the choice was based on, in words.
        metric: What was measured on them.
        seconds: That the search took, over all its runs.
        notes: What a reader must know of the choice.
    """

    tried: list[Tried] = []
    front: list[int] = []
    judged: list[Judged] = []
    winner: int | None = None
    pick: str = ""
    goals: list[str] = []
    importance: dict[str, float] = {}
    chosen_by: str = ""
    metric: str = ""
    seconds: float = 0.0
    notes: list[str] = []


def steps_text(steps: Sequence[dict[str, Any]]) -> str:
    """The steps of a candidate in short: methods with the option that matters."""
    return " + ".join(_step_text(step) for step in steps) or "nothing"


TELLING = (
    "width",
    "drop",
    "target-macs",
    "target-params",
    "budget",
    "student-depth",
    "rank",
    "sparsity",
    "epochs",
    "target-bits",
    "bits",
)
"""The options of a step that tell most of it."""


def _step_text(step: dict[str, Any]) -> str:
    method, options = next(iter(step.items()))
    options = options if isinstance(options, dict) else {}
    rules = [str(rule).rpartition("=")[2].partition("/")[0] for rule in options.get("layer-bits") or ()]
    told = {key: options[key] for key in TELLING if key in options}
    if rules and "bits" in options:
        bits = sorted({int(options["bits"]), *map(int, rules)})
        told["bits"] = f"{bits[0]} to {bits[-1]}"
    words = ", ".join(f"{key} {value}" for key, value in told.items())
    return f"{method} ({words})" if words else method
