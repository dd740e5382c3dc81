"""What a search is asked for, and what it begins with: the model, its data, and what may be tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from compresskit.errors import UsageError
from compresskit.recipe.limits import Limits
from compresskit.recipe.plan import Recipe
from compresskit.runner.cache import Cache
from compresskit.runner.inspecting import layers_and_kinds
from compresskit.runner.keys import code_of, content, digest
from compresskit.runner.suggest import kind_of
from compresskit.search.defaults import Aims, default_space
from compresskit.search.searching import epochs_that_fit
from compresskit.search.space import Space
from compresskit.search.tried import Goal, Pick
from compresskit.search.trying import Look, Trying
from compresskit.stage import Progress

Cluster = Literal["ray"]

_MUCH_FASTER = 0.8
"""Share of float32's time in which bfloat16 must be done to be worth its rounding."""
HOLD_OUT = 0.2
"""Share of the data by which candidates are chosen."""


@dataclass(frozen=True)
class Request:
    """What is to be found.

    Attributes:
        recipe: With model, data, evaluation data and bars, and without steps.
        output: The folder to write.
        study: Folder or address where the search is kept.
        select_data: Samples by which the choice is made; None holds some of the data out.
        goals: What is to be small.
        picks: Which of the candidates that pass are wanted; the first is written to ``output``.
        seconds: That search and verdict may take.
        most: Candidates to try at most; None is any number.
        kinds: Of steps that may be tried; empty is all.
        space: What may be tried; None follows from the model.
        bench: Measure the speed.
        on: Where other workers are started: ``ray``; None is nowhere.
        num_workers: How many there; None is one for each node.
    """

    recipe: Recipe
    output: Path
    study: str
    select_data: str | None = None
    goals: tuple[Goal, ...] = ("size", "latency")
    picks: tuple[Pick, ...] = ("knee",)
    seconds: float = 600.0
    most: int | None = None
    kinds: tuple[str, ...] = ()
    space: Space | None = None
    bench: bool = True
    on: Cluster | None = None
    num_workers: int | None = None

    @classmethod
    def of(cls, recipe: Recipe, output: Path, study: str | None, select_data: str | None, **more: Any) -> Request:
        """A request by which samples are held out where none to choose by are given, and kept beside the output.

        Args:
            recipe: Says nothing of samples that are held out.
            output: The folder to write.
            study: None is a folder beside it.
            select_data: None holds some of the data out.
            more: Other attributes.
        """
        held = replace(recipe, hold_out=HOLD_OUT if select_data is None else None)
        return cls(held, output, study or f"{output}.study", select_data, **more)

    @property
    def limits(self) -> Limits:
        """The bars."""
        return Limits(self.recipe.max_drop, self.recipe.max_size, self.recipe.min_speedup)

    def to_json(self) -> dict[str, Any]:
        """What another worker needs to know; paths as they were typed."""
        recipe = {name: value for name, value in asdict(self.recipe).items() if name not in ("steps", "point")}
        return {
            "recipe": recipe, "select_data": self.select_data, "goals": list(self.goals), "bench": self.bench,
        }  # fmt: skip

    @classmethod
    def from_json(cls, found: Mapping[str, Any], study: str, space: Space, seconds: float) -> Request:
        """What another worker wrote."""
        recipe = dict(found["recipe"])
        shape = recipe.pop("input_shape")
        return cls(
            Recipe(**recipe, steps=(), input_shape=None if shape is None else tuple(shape)), Path(), study,
            found["select_data"], tuple(found["goals"]), seconds=seconds, space=space, bench=found["bench"],
        )  # fmt: skip


@dataclass
class Found:
    """A search on its way.

    Attributes:
        trying: What tries candidates.
        space: What may be tried.
        notes: What a reader must know.
    """

    trying: Trying
    space: Space
    notes: list[str] = field(default_factory=list)

    def goals(self, request: Request) -> int:
        """How many figures are to be small: without a metric similarity to the original is one of them."""
        return len(request.goals) + (self.trying.allowed() is None)


def prepared(request: Request, cache: Cache, progress: Progress, work: Path) -> Found:
    """Read the model, and find out what may be tried with it.

    Raises:
        UsageError: There is no data, or nothing can be tried.
        InputError: Model and data don't fit.
    """
    if request.recipe.data is None:
        raise UsageError("a search needs samples for calibration and selection", "give `data` FILE")
    look = Look(request.recipe, request.limits, request.select_data, request.bench)
    trying = Trying(look, cache, progress, work)
    space, notes = request.space, []
    if space is None:
        found = layers_and_kinds(trying.model)
        aims = Aims(request.goals, trying.metric is not None and trying.metric.name == "accuracy")
        space = default_space(trying.model, found, kind_of(trying.model, found), aims)
        if space.slots and space.trains() and (took := trying.seconds_a_pass):
            if (fits := epochs_that_fit(request.seconds, min(took.values()))) < 1:
                space = space.at_most(fits)
                notes.append("nothing was trained: an epoch takes more than a third of `time`")
            if took["bfloat16"] < _MUCH_FASTER * took["float32"]:
                space = space.in_bfloat16()
    if request.kinds:
        space = space.only(request.kinds)
    if not space.slots:
        raise UsageError("there is nothing to try with this model", "give a search space with `space` FILE")
    return Found(trying, space, notes)


def identity(request: Request, found: Found) -> dict[str, str]:
    """What a study is about: candidates of another model, other data or other bars don't belong into it."""
    recipe = request.recipe
    trying = found.trying
    return {
        "model": digest(content(Path(recipe.model or "")), code_of(recipe.arch), recipe.arch_args, recipe.key),
        "data": digest(trying.data and trying.data.fingerprint(), trying.select.fingerprint(), recipe.metric),
        "bars": digest(recipe.max_drop, recipe.max_size, recipe.min_speedup, sorted(request.goals)),
        "seed": str(recipe.seed),
    }
