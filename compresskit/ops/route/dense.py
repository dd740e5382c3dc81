"""A dense model with experts: sparse feed-forward layers are split, and each split is compared with random ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

import torch
from torch import Tensor, nn

from compresskit.errors import InputError, listing
from compresskit.facts.route import SplitFacts
from compresskit.ops.calibration.activation_stream import Batch
from compresskit.ops.calibration.trace import tensors_in, trace
from compresskit.ops.globs import check_globs
from compresskit.ops.macs import calling
from compresskit.ops.output_distance import OutputDistance, split
from compresskit.ops.packed.modules import set_module
from compresskit.ops.route.clusters import (
    Seen,
    Sizes,
    always,
    clustered,
    density,
    drawn,
    error,
    routed,
    shared_units,
    sizes,
)
from compresskit.ops.route.feed_forward import RoutedFeedForward, Site, filled, place, rows_of, sites
from compresskit.ops.shrinking import CalibrationData, ShrinkSettings
from compresskit.ops.substitute.candidates import mask_of

Progress = Callable[[str, int, int], None]
CLUSTERED, RANDOM, ALWAYS = "clustered", "random", "always"
_TOKENS = 4096
"""Tokens of a layer that a split is made of."""
_DRAWS = 3
"""Random splits."""
_EXACT = 1e-4
"""Relative error up to which all experts together are the dense layer."""


@dataclass(frozen=True)
class Wanted:
    """What the user asked for.

    Attributes:
        keep: Share of the hidden units that a token goes through.
        shared: Share of them that all tokens go through.
        experts: Into how many the others are split.
        random: Take a random split in the place of clusters.
    """

    keep: float
    shared: float
    experts: int
    random: bool


@dataclass(frozen=True)
class Experts:
    """What came of it.

    Attributes:
        layers: That were split.
        skipped: Those that were not, with the reason.
        distance: Of the model's output from the original's on held-out samples, by kind of split; of random ones the
            mean.
    """

    layers: dict[str, SplitFacts]
    skipped: dict[str, str]
    distance: dict[str, float]


@dataclass(frozen=True)
class _Layer:
    """A layer that is split: its place, its facts, and the module by kind of split; random ones are numbered."""

    site: Site
    fact: SplitFacts
    made: dict[str, RoutedFeedForward]


@torch.no_grad()
def add_experts(
    module: nn.Module, data: CalibrationData, wanted: Wanted, settings: ShrinkSettings, progress: Progress
) -> Experts:
    """Split the feed-forward layers of a dense model, in place.

    Args:
        module: In eval mode.
        data: With batches; some are held out.
        wanted: How.
        settings: Globs and seed.
        progress: Called as ``progress(what, done, total)``.

    Raises:
        UsageError: A glob matches nothing.
        InputError: There is no such layer, none is sparse enough, or clusters are no better than random splits.
    """
    with calling(module):
        found = sites(module, trace(module, partial(data.run, module)))
    if not found:
        raise InputError(
            "this model has no mixture of experts, and no dense feed-forward layer that can be split into experts",
            "a linear layer, an activation that is a module, and a linear layer behind it are needed",
        )
    check_globs([site.name for site in found], settings.globs)
    skipped = {site.name: why for site in found if (why := settings.left_out(site.name))}
    found = [site for site in found if site.name not in skipped]
    used, held = split(data.batches)
    distance = OutputDistance(module, held, data.forward, scores=data.scores)
    seen, apart = (_inputs(module, found, replace(data, batches=part)) for part in (used, held))
    layers: list[_Layer] = []
    for number, site in enumerate(found, 1):
        views = [_seen(module, site, given[site.name]) for given in (seen, apart)]
        layer = _split(module, site, views, wanted, settings.seed + number)
        if isinstance(layer, str):
            skipped[site.name] = layer
        else:
            layers.append(layer)
        progress("split layers", number, len(found))
    if not layers:
        raise InputError(
            f"no feed-forward layer can be split: {listing([f'{n}: {why}' for n, why in skipped.items()], 3)}",
            "a larger `keep` lets a token through more units",
        )
    away = _distances(module, layers, distance)
    _check_better(away, wanted)
    kind = f"{RANDOM} 0" if wanted.random else CLUSTERED
    for layer in layers:
        place(module, layer.site.name, layer.fact, layer.made[kind])
    mean = {RANDOM: fmean(value for name, value in away.items() if name.startswith(RANDOM))}
    return Experts(
        {layer.site.name: layer.fact for layer in layers},
        skipped,
        {CLUSTERED: away[CLUSTERED], **mean, ALWAYS: away[ALWAYS]},
    )


def _check_better(away: Mapping[str, float], wanted: Wanted) -> None:
    """Refuse clusters that are no better than random splits."""
    drawn = [value for name, value in away.items() if name.startswith(RANDOM)]
    if not wanted.random and away[CLUSTERED] >= fmean(drawn):
        raise InputError(
            f"clusters of hidden units are no better than random ones here: the output moves by {away[CLUSTERED]:.3g}, "
            f"with random experts by {fmean(drawn):.3g} ({min(drawn):.3g} to {max(drawn):.3g}, {len(drawn)} draws)",
            "a larger `keep`, more `samples`, or `split` random",
        )


def _split(module: nn.Module, site: Site, views: Sequence[Seen], wanted: Wanted, seed: int) -> _Layer | str:
    """The splits of one layer, or why there is none."""
    seen, apart = views
    units = seen.hidden.shape[1]
    size = sizes(units, wanted.keep, wanted.shared, wanted.experts)
    if size is None:
        return f"{units} hidden units can't be {wanted.experts} experts of which some are chosen"
    holding = density(seen)
    if holding > wanted.keep:
        return (
            f"not sparse: {100 * holding:.0f} % of the hidden units hold 90 % of what a token's units give, a token "
            f"would go through {100 * size.active / units:.0f} %"
        )
    shared, rest = shared_units(seen, size)
    splits = {CLUSTERED: routed(seen, shared, clustered(seen, rest, size, seed), size.top)}
    for draw in range(_DRAWS):
        splits[f"{RANDOM} {draw}"] = routed(seen, shared, drawn(rest, size, 100 * seed + draw), size.top)
    splits[ALWAYS] = always(seen, size)
    errors = {kind: error(apart, one, size.top) for kind, one in splits.items()}
    fact = SplitFacts(
        up=site.up, activation=site.activation, down=site.down, gate=site.gate, shared=size.shared, size=size.size,
        experts=size.experts, top=size.top, density=round(holding, 4), error=round(errors[CLUSTERED], 4),
        random=round(fmean(value for kind, value in errors.items() if kind.startswith(RANDOM)), 4),
        about=_about(size, units),
    )  # fmt: skip
    made = {kind: filled(module, site.name, fact, one) for kind, one in splits.items()}
    if not _whole(module, site, made[CLUSTERED], apart.x):
        return "all experts together don't give what the dense layer gives"
    return _Layer(site, fact, made)


def _about(size: Sizes, units: int) -> str:
    return (
        f"{size.shared} shared units and {size.experts} experts of {size.size}, {size.top} a token: "
        f"{100 * size.active / units:.0f} % of the units"
    )


def _whole(module: nn.Module, site: Site, made: RoutedFeedForward, x: Tensor) -> bool:
    """Whether all experts together are the dense layer."""
    x = x[:256].to(made.router.weight.dtype)
    wanted = module.get_submodule(site.down)(site.hidden(module, x))
    top, made.top = made.top, len(made.experts)
    near = float((made(x) - wanted).norm()) <= _EXACT * float(wanted.norm())
    made.top = top
    return near


def _distances(module: nn.Module, layers: Sequence[_Layer], distance: OutputDistance) -> dict[str, float]:
    """The distance of the model's output by kind of split, all layers split alike."""
    found = {}
    for kind in layers[0].made:
        with _placed(module, layers, kind):
            found[kind] = distance(module)
    return found


@contextmanager
def _placed(module: nn.Module, layers: Sequence[_Layer], kind: str) -> Iterator[None]:
    """The module with experts, for a while."""
    names = [n for one in layers for n in dict.fromkeys((one.site.name, one.site.up, one.site.activation))]
    before = {name: module.get_submodule(name) for name in names}
    for layer in layers:
        place(module, layer.site.name, layer.fact, layer.made[kind])
    try:
        yield
    finally:
        for layer in layers:
            set_module(module, layer.site.name, before[layer.site.name])
            if not layer.fact.gate:
                for name in (layer.site.up, layer.site.activation):
                    set_module(module, name, before[name])


def _inputs(module: nn.Module, found: Sequence[Site], data: CalibrationData) -> dict[str, Tensor]:
    """What each layer is given for some tokens, without padding: float32 ``(tokens, inputs)``."""
    kept: dict[str, list[Tensor]] = {site.name: [] for site in found}
    most = max(1, _TOKENS // max(1, len(data.batches)))

    def note(name: str, batch: Batch, _layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        given = next(tensors_in(args))
        rows, mask = given.reshape(-1, given.shape[-1]), mask_of(batch)
        if mask is not None and mask.numel() == len(rows):
            rows = rows[mask.flatten()]
        kept[name].append(rows[:: -(-len(rows) // most) or 1].float())

    for batch in data.batches:
        with ExitStack() as stack:
            for site in found:
                hook = module.get_submodule(site.up).register_forward_pre_hook(partial(note, site.name, batch))
                stack.callback(hook.remove)
            data.forward(module, batch)
    return {name: torch.cat(parts) for name, parts in kept.items()}


def _seen(module: nn.Module, site: Site, x: Tensor) -> Seen:
    dtype = module.get_submodule(site.up).get_parameter("weight").dtype
    return Seen(x, site.hidden(module, x.to(dtype)).float(), rows_of(module.get_submodule(site.down)).float())
