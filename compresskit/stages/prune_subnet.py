"""``prune.subnet``: a part of a model that was trained to work alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

from pydantic import Field

from compresskit.errors import UsageError, listing
from compresskit.facts import read_facts, to_json
from compresskit.facts.prune import CutFacts, DepthFacts, StructuredFacts
from compresskit.facts.supernet import ElasticFacts, SubnetFacts
from compresskit.kinds import PRUNE
from compresskit.model import Card, Model
from compresskit.stage import Context, Form, Searched, Stage, Tunable
from compresskit.stages.batches import calibration, calibration_data

if TYPE_CHECKING:
    from torch import nn

    from compresskit.checkpoint.tensors import Tensors
    from compresskit.ops.prune.elastic import Elastic, Subnet
    from compresskit.ops.shrinking import CalibrationData

T = TypeVar("T")
SUPERNET = "distill.supernet"
_BATCH = 64
_NAMES = {"macs": "multiply-accumulates", "params": "parameters"}


class PruneSubnet(Stage):
    """Extract a narrower or shallower model from a supernet of `distill --method supernet`, without training.

    Channels and blocks are removed in the order of the supernet's training. The statistics of batch normalization are
    re-estimated on `data`.
    """

    kind: ClassVar = PRUNE
    method: ClassVar[str] = "subnet"
    takes: ClassVar[tuple[Form, ...]] = ("torch",)
    gives: ClassVar = "same"
    facts: ClassVar = SubnetFacts
    searched: ClassVar = Searched(("*",))

    width: Annotated[
        float | None,
        Field(gt=0, le=1, description="Width: fraction of the channels or neurons to keep, rounded up. (all)"),
        Tunable(0.25, 1.0, step=0.05),
    ] = None
    drop: Annotated[int | None, Field(ge=0, description="Number of blocks to drop. (none)"), Tunable(0, 4)] = None
    samples: Annotated[int, Field(ge=2, description="Number of samples for the statistics of batch normalization.")] = (
        2048
    )

    def check_options(self) -> None:
        """Refuse to guess what is wanted.

        Raises:
            UsageError: Nothing says which subnet.
        """
        if self.width is None and self.drop is None:
            raise UsageError("no subnet is given. Give `width`, `drop` or both", "for example `width` 0.5")

    def run(self, model: Model, ctx: Context) -> Model:
        """Cut a module down in place.

        Raises:
            UsageError: The model is no supernet, or wasn't trained for so small a part; there are no data for the
                statistics of its batch normalizations.
            InputError: The card or the data don't fit the model.
        """
        from compresskit.ops.batchnorm import recalibrate
        from compresskit.ops.prune.elastic import ElasticSettings, Subnet, again, take
        from compresskit.ops.prune.replay import facts_of, widths
        from compresskit.ops.prune.rewrite import conv1d_to_linear, linear_to_conv1d, rewrite_shortcuts
        from compresskit.ops.prune.structured import amounts

        self.check_options()
        known = elastic_of(model.card)
        subnet = Subnet(1.0 if self.width is None else self.width, self.drop or 0)
        _check_trained(subnet, known)
        module, transformer = model.module.eval(), model.card.arch.kind == "transformers"
        _check_norms(module, ctx)
        data = calibration_data(model, ctx, samples=self.samples, size=_BATCH, rows=2, by_length=False)
        base = amounts(module, data)
        conv1d = conv1d_to_linear(module)
        rewritten = rewrite_shortcuts(module, data.run) if subnet.width < 1 else {}
        before = widths(module)
        settings = ElasticSettings(seed=ctx.seed, transformer=transformer)
        wanted = known if subnet.width < 1 else replace(known, order={})  # channels that all stay aren't looked for
        found = again(module, data, wanted, settings)
        gone = found.gone(subnet.drop)
        facts: dict[str, Any] = {"config": _config(module, found, subnet, data)} if transformer else {}
        stacks = take(module, found, subnet, data)
        for name, size in facts.get("config", {}).items():
            setattr(module.config, name, size)
        layers = facts_of(module, _moved(before, stacks), list(_moved(dict.fromkeys(conv1d), stacks)))
        facts["layers"] = _about(layers, found, stacks) | {name: {"about": "dropped"} for name in gone}
        facts |= {
            "stacks": stacks,
            "rewritten": {n: list(map(to_json, m)) for n, m in _moved(rewritten, stacks).items()},
        }
        now = amounts(module, data)
        linear_to_conv1d(module, list(_moved(dict.fromkeys(conv1d), stacks)))
        facts["share"] = {unit: round(now[unit] / base[unit], 4) for unit in now if base[unit]}
        if ctx.data is not None and (norms := recalibrate(module, data.forward, data.batches)):
            facts |= {"recalibrated": norms, "calibration": calibration(ctx.data, self.samples)}
        facts["notes"] = self._notes(facts, gone)
        return self.recorded(model, facts)

    def _notes(self, facts: dict[str, Any], gone: list[str]) -> list[str]:
        left = " and ".join(
            f"{100 * facts['share'][u]:.1f} % of the {n}" for u, n in _NAMES.items() if u in facts["share"]
        )
        notes = [f"{left} of the supernet remain; nothing was trained"]
        if gone:
            notes.append(f"dropped {len(gone)} blocks: {listing(gone, 12)}")
        if "config" in facts and any("kind" in fact for fact in facts["layers"].values()):
            notes.append(
                "config.json cannot describe fewer heads: compresskit loads the result, transformers alone cannot"
            )
        if "recalibrated" in facts:
            about = facts["calibration"]
            notes.append(f"batch normalization was re-estimated on {about['samples']} samples of {about['data']}")
        return notes

    @classmethod
    def replay(cls, module: nn.Module, facts: SubnetFacts, tensors: Tensors) -> Tensors:
        """Give a freshly built module the subnet's widths, and take the dropped blocks out of it."""
        from compresskit.ops.prune import depth
        from compresskit.ops.prune.replay import replay

        narrow = {name: fact for name, fact in facts.layers.items() if isinstance(fact, CutFacts)}
        depth.replay(module, DepthFacts(layers={}, stacks=facts.stacks, config=facts.config))
        replay(module, StructuredFacts(layers=narrow, rewritten=facts.rewritten))
        return tensors


def elastic_of(card: Card) -> ElasticFacts:
    """What may be left out of the model of a card.

    Raises:
        UsageError: It was not trained for that, or was changed since.
        InputError: Its card is damaged.
    """
    last = card.history[-1] if card.history else None
    if last is None or last.name != SUPERNET:
        changed = any(applied.name == SUPERNET for applied in card.history)
        what = f"{last.name} has changed the supernet" if changed and last else "the model is not a supernet"
        raise UsageError(
            f"{what}: none of its parts was trained to work alone",
            "take the subnet first" if changed else "distill `method` supernet trains one",
        )
    return read_facts(ElasticFacts, last.facts.get("elastic"), f"the card's {SUPERNET}: elastic")


def _check_trained(subnet: Subnet, known: ElasticFacts) -> None:
    """Refuse what is smaller than all that was trained.

    Raises:
        UsageError: It is.
    """
    if subnet.width < known.least and known.order:
        raise UsageError(
            f"`width` {subnet.width:g}: the narrowest that was trained is {known.least:g}",
            f"give {known.least:g} or more, or train with a lower `min_width`",
        )
    if subnet.width < 1 and not known.order:
        raise UsageError(f"`width` {subnet.width:g}: no channels of this supernet were trained to go", "give `drop`")
    if subnet.drop > len(known.blocks):
        raise UsageError(
            f"`drop` {subnet.drop}: at most {len(known.blocks)} blocks were left out in training",
            "give fewer, or train with a lower `min_depth`" if known.blocks else "give `width` alone",
        )


def _check_norms(module: nn.Module, ctx: Context) -> None:
    """Refuse to leave the statistics of the whole model to a part of it.

    Raises:
        UsageError: There are batch normalizations and no data.
    """
    from torch.nn.modules.batchnorm import _BatchNorm

    if ctx.data is None and any(isinstance(layer, _BatchNorm) for layer in module.modules()):
        raise UsageError("the statistics of batch normalization are another part's", "give `data` FILE")


def _moved(known: Mapping[str, T], stacks: dict[str, Any]) -> dict[str, T]:
    """The same by the names that layers have once blocks are dropped."""
    from compresskit.ops.prune.depth import moved

    return {name: value for old, value in known.items() if (name := moved(old, stacks)) is not None}


def _about(layers: dict[str, dict[str, Any]], found: Elastic, stacks: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What is recorded of layers that are narrower: of those that a config tells of only what people read."""
    members = [member.layer for group in found.in_config.groups for member in group.members]
    told = _moved(dict.fromkeys(members), stacks)
    return {name: {"about": fact["about"]} if name in told else fact for name, fact in layers.items()}


def _config(module: nn.Module, found: Elastic, subnet: Subnet, data: CalibrationData) -> dict[str, Any]:
    """What ``config.json`` says of the subnet, proven on a twin that is built from it; heads aren't in it."""
    from compresskit.ops.prune.config import check_config, with_fewer_layers, with_sizes
    from compresskit.ops.prune.elastic import take

    twin, parts = copy.deepcopy(module), found.in_config
    stacks = take(twin, parts, subnet, data)
    kept = parts.kept(subnet.width) if subnet.width < 1 else {}
    sizes = {found.size: len(next(iter(kept.values())))} if kept else {}
    changes: dict[str, Any] = {}
    for name, size in sizes.items():  # what is proven of fewer layers is proven of narrow ones
        setattr(twin.config, name, size)
    for stack in stacks.values():
        changes |= with_fewer_layers(twin, stack["of"], [int(leaf) for leaf in stack["kept"]])
    if sizes:
        changes |= with_sizes(twin, sizes)
    if changes:
        check_config(twin, data.run)
    return changes
