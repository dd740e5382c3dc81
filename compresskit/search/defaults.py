"""The space of a model where the user names none: what its kind calls for, by what the methods declare."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from compresskit import registry
from compresskit.errors import InputError, UsageError
from compresskit.facts.supernet import ElasticFacts
from compresskit.model import Model
from compresskit.ops.globs import escaped
from compresskit.runner.stage_runner import form
from compresskit.search.space import Choice, Slot, Space
from compresskit.search.tried import Goal
from compresskit.stage import Stage, Tunable
from compresskit.stages.prune_subnet import elastic_of

_LARGE = 0.15
"""Share of a model's bytes from which on its embedding gets a step of its own."""
_ORDER = ("prune.depth", "prune.structured")
"""Blocks go before channels: what is left is narrower where it counts."""
_BLOCKS = {"prune.depth": ("drop", 3), "substitute.collapse": ("count", 4)}
"""What takes whole blocks away, in the same place of a recipe: the option that counts them, and the most of them."""
_CLOSING = ("route", "quantize")
"""Kinds behind all others: of what they give nothing is cut or trained."""
_SUBNET, _EXITS, _EXPERTS = "prune.subnet", "route.exits", "route.experts"
_STEP = 0.05
"""Between two widths of a supernet that are tried."""


@dataclass(frozen=True)
class Aims:
    """What a search is for.

    Attributes:
        goals: What is to be small.
        classes: The samples have labels of classes.
    """

    goals: Collection[Goal] = ("size", "latency")
    classes: bool = False


def default_space(model: Model, found: Mapping[str, Any], kind: str, aims: Aims = Aims()) -> Space:
    """What may be tried with a model.

    Args:
        model: With its inputs known.
        found: Its inspection.
        kind: From :func:`compresskit.runner.suggest.kind_of`.
        aims: What the search is for.
    """
    cuts: list[Slot] = []
    finals: list[Choice | None] = []
    trained = _parts(model)
    blocks = cache(partial(_residual_blocks, model))
    for name in sorted(registry.rows(), key=_place):
        stage = registry.get(name)
        if stage.searched is None or not {kind, "*"} & set(stage.searched.models) or not _fits(stage, model):
            continue
        if stage.searched.goal not in (None, *aims.goals) or (name == _EXITS and not aims.classes):
            continue
        if trained is not None and not stage.kind.quantizes and name != _SUBNET:
            continue  # its parts need no other cut, and no training
        choice = _choice(stage, model, blocks)
        if choice is None:
            continue
        if stage.kind.quantizes:
            finals.append(choice)
        elif name in _BLOCKS and (at := _place_of_blocks(cuts)) is not None:
            cuts[at] = Slot((*cuts[at].choices, choice))
        else:
            cuts.append(Slot((None, choice)))
    embedding = _embedding(found) if kind == "text" else None
    if embedding is not None:
        cuts.append(Slot((None, embedding)))
    if finals:
        cuts.append(Slot((*finals, None) if cuts else tuple(finals)))
    return Space(tuple(cuts))


def _place_of_blocks(slots: Sequence[Slot]) -> int | None:
    return next((at for at, slot in enumerate(slots) for c in slot.choices if c and c.method in _BLOCKS), None)


def _place(name: str) -> tuple[int, int, str]:
    kinds = sorted(registry.kind_names(), key=_CLOSING.__contains__)
    kind = name.partition(".")[0]
    return kinds.index(kind) if kind in kinds else len(kinds), _ORDER.index(name) if name in _ORDER else 9, ""


def _fits(stage: type[Stage], model: Model) -> bool:
    """The method works on such a model, or on its ONNX file."""
    have = form(model)
    return have in stage.takes or (have == "torch" and "onnx" in stage.takes)


def _choice(stage: type[Stage], model: Model, residual_blocks: Callable[[], int]) -> Choice | None:
    """A method with ranges that suit the model; None where it can't be cut."""
    choice = Choice.of(stage)
    if stage.name() == "distill.layers":
        blocks = _blocks(model)
        if blocks < 3:
            return None
        depth = Tunable(max(1, blocks // 3), blocks - 1)
        return replace(choice, ranges={"student_depth": depth, "epochs": choice.ranges["epochs"]})
    if stage.name() == _SUBNET:
        parts = _parts(model)
        return None if parts is None else replace(choice, ranges=_of_parts(parts))
    if stage.name() == _EXITS:
        return choice if _has_places(model) else None
    if stage.name() == _EXPERTS:
        return choice if _has_mixtures(model) else None
    if stage.name() in _BLOCKS:
        option, most = _BLOCKS[stage.name()]
        blocks = residual_blocks()
        return replace(choice, ranges={option: Tunable(1, min(most, blocks - 1))}) if blocks > 1 else None
    if stage.name() == "distill.kd":
        return replace(choice, ranges={"epochs": choice.ranges["epochs"]})
    return choice


def _parts(model: Model) -> ElasticFacts | None:
    """What may be left out of a supernet; None for another model, or one that was changed since."""
    try:
        return elastic_of(model.card)
    except UsageError:
        return None


def _of_parts(parts: ElasticFacts) -> dict[str, Tunable]:
    """The widths and depths that were trained."""
    least = round(_STEP * math.ceil(parts.least / _STEP - 1e-9), 6)
    width = {"width": Tunable(least, 1.0, step=_STEP)} if parts.order else {}
    return width | ({"drop": Tunable(0, len(parts.blocks))} if parts.blocks else {})


def _blocks(model: Model) -> int:
    """Of a transformer, by its config; 0 where there is none."""
    config = getattr(model.body, "config", None)
    return int(getattr(config, "num_hidden_layers", 0) or 0)


def _residual_blocks(model: Model) -> int:
    """Blocks that can be dropped; 0 where there are none, or none were found."""
    if isinstance(model.body, Path):
        return 0
    from compresskit.ops.prune.depth import blocks_of
    from compresskit.stages.batches import forward_of, made_up

    try:
        batch = made_up(model.card.inputs, 2, 0)
        return len(blocks_of(model.body.eval(), batch, forward_of(model.body, model.card.inputs)))
    except InputError:
        return 0


def _has_places(model: Model) -> bool:
    """It is a classifier with blocks that an exit can follow."""
    if isinstance(model.body, Path):
        return False
    from compresskit.ops.route.places import find
    from compresskit.stages.batches import forward_of, made_up

    forward, batch = forward_of(model.body.eval(), model.card.inputs), made_up(model.card.inputs, 1, 0)
    try:
        return bool(find(model.body, lambda target: forward(target, batch), batch, count=1).layers)
    except InputError:
        return False


def _has_mixtures(model: Model) -> bool:
    """It has mixtures of experts, of which some can go."""
    from compresskit.ops.structure.experts import mixtures

    return not isinstance(model.body, Path) and model.card.arch.kind == "transformers" and bool(mixtures(model.body))


def _embedding(found: Mapping[str, Any]) -> Choice | None:
    """4 bit for a large table of vectors, which nothing multiplies by; None where there is none."""
    total = max(1, int(found["totals"]["bytes"]))
    tables = [layer for layer in found["layers"] if layer["type"] == "Embedding" and layer["bytes"] > _LARGE * total]
    if not tables:
        return None
    names = [escaped(str(layer["name"])) for layer in tables]
    options = {"bits": 4, "group_size": 64, "include": tuple(names)}
    return Choice("quantize.rtn", options, {}, {})
