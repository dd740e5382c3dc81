"""Which hidden units of a feed-forward layer become shared, and which ones an expert together.

Units that add the most variance to the output are shared: what is missing where an expert isn't chosen is the distance
from its mean. The others are clustered by the tokens for which they are among the strongest, into groups of one size
(CMoE's balanced K-means, here with a greedy assignment). The router predicts from the layer's input, by ridge
regression, how far from their mean the units of each expert are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compresskit.ops.route.feed_forward import Split
from compresskit.ops.structure.units import ENERGY

_ROUNDS = 10
_RIDGE = 1e-3
"""Added to the diagonal of the second moments, as a share of its mean."""


@dataclass(frozen=True)
class Seen:
    """What tokens gave in a layer.

    Attributes:
        x: Its inputs, float32 ``(tokens, inputs)``.
        hidden: What its activation gave, float32 ``(tokens, units)``.
        down: The weight that reads the units, float32 ``(outputs, units)``.
    """

    x: Tensor
    hidden: Tensor
    down: Tensor

    def part(self, rows: slice) -> Seen:
        """Some of the tokens."""
        return Seen(self.x[rows], self.hidden[rows], self.down)

    @property
    def gives(self) -> Tensor:
        """The norm of what each unit adds to the output, ``(tokens, units)``."""
        found: Tensor = self.hidden.abs() * self.down.norm(dim=0)
        return found


@dataclass(frozen=True)
class Sizes:
    """Of a split: units that are shared, experts, units of an expert, and experts of a token."""

    shared: int
    experts: int
    size: int
    top: int

    @property
    def active(self) -> int:
        """Units that a token goes through."""
        return self.shared + self.top * self.size


def sizes(hidden: int, keep: float, shared: float, experts: int) -> Sizes | None:
    """Sizes for shares of the hidden units; None where so many experts are too many.

    Args:
        hidden: Units.
        keep: Share of them that a token goes through.
        shared: Share of them that all tokens go through.
        experts: Into how many the rest is split.
    """
    size = round(hidden * (1 - shared)) // experts
    common = hidden - size * experts
    top = round((keep * hidden - common) / max(1, size))
    return Sizes(common, experts, size, top) if size and common and 0 < top < experts else None


def density(seen: Seen) -> float:
    """The mean share of the units that hold 90 % of the squares of what a token's units give."""
    squares = seen.gives.square().sort(1, descending=True).values
    total = squares.sum(1, keepdim=True)
    holding = (squares.cumsum(1) < ENERGY * total).sum(1) + 1
    return float(holding[total[:, 0] > 0].float().mean()) / squares.shape[1]


def shared_units(seen: Seen, sizes: Sizes) -> tuple[Tensor, Tensor]:
    """The units that all tokens go through, and the others, each in order.

    They are those that add the most variance.
    """
    order = (seen.hidden.var(0, correction=0) * seen.down.square().sum(0)).argsort(descending=True)
    return order[: sizes.shared].sort().values, order[sizes.shared :].sort().values


def clustered(seen: Seen, rest: Tensor, sizes: Sizes, seed: int) -> Tensor:
    """Units that are strong for the same tokens together, ``(experts, size)``.

    Args:
        seen: Tokens.
        rest: The units that are not shared.
        sizes: Of the split.
        seed: Of the first centres.
    """
    patterns = torch.nn.functional.normalize(_strongest(seen, sizes.active)[:, rest].float(), dim=0)
    centres = _spread(patterns, sizes.experts, seed)
    found = torch.zeros(len(rest), dtype=torch.int64)
    for _ in range(_ROUNDS):
        before, found = found, _balanced(patterns.mT @ centres, sizes.size)
        if torch.equal(before, found):
            break
        sums = torch.zeros_like(centres).index_add_(1, found, patterns)
        centres = torch.nn.functional.normalize(sums, dim=0)
    return rest[found.argsort(stable=True)].reshape(sizes.experts, sizes.size)


def drawn(rest: Tensor, sizes: Sizes, seed: int) -> Tensor:
    """Units at random, ``(experts, size)``."""
    order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))
    return rest[order].reshape(sizes.experts, sizes.size)


def routed(seen: Seen, shared: Tensor, experts: Tensor, top: int) -> Split:
    """A split with its router, and with what each expert gives where it isn't chosen.

    Args:
        seen: Tokens.
        shared: Units that all of them go through.
        experts: ``(experts, size)``.
        top: Experts of a token.
    """
    off = seen.hidden - seen.hidden.mean(0)
    mass = torch.stack([(off[:, own] @ seen.down[:, own].mT).norm(dim=1) for own in experts], 1)
    middle, level = seen.x.mean(0), mass.mean(0)
    x = seen.x - middle
    gram = x.mT @ x
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean() + 1e-12)
    weight = torch.linalg.solve(gram, x.mT @ (mass - level)).mT
    split = Split(shared, experts, weight, level - weight @ middle, torch.zeros(len(experts), len(seen.down)))
    away = (~_chosen(split, seen.x, top)).float()
    share = away / away.sum(0).clamp_min(1)
    absent = torch.stack([(share[:, e] @ seen.hidden[:, own]) @ seen.down[:, own].mT for e, own in enumerate(experts)])
    return Split(shared, experts, split.weight, split.bias, absent)


def error(seen: Seen, split: Split, top: int) -> float:
    """The norm of the error of a layer's output over that of the output, without the bias."""
    away = (~_chosen(split, seen.x, top)).float()
    off = torch.zeros(len(seen.x), len(seen.down))
    for number, own in enumerate(split.experts):
        off += away[:, number, None] * (seen.hidden[:, own] @ seen.down[:, own].mT - split.absent[number])
    return float(off.norm() / (seen.hidden @ seen.down.mT).norm().clamp_min(1e-30))


def always(seen: Seen, sizes: Sizes) -> Split:
    """No routing: as many units as a token would go through are always on, those that give the most."""
    order = seen.gives.square().mean(0).argsort(descending=True)
    experts = order[sizes.shared :].reshape(sizes.experts, sizes.size)
    same, bias = torch.zeros(sizes.experts, seen.x.shape[1]), torch.arange(sizes.experts, 0, -1.0)
    mean = seen.hidden.mean(0)
    absent = torch.stack([mean[own] @ seen.down[:, own].mT for own in experts])
    return Split(order[: sizes.shared], experts, same, bias, absent)


def _chosen(split: Split, x: Tensor, top: int) -> Tensor:
    """Whether each token goes through each expert, ``(tokens, experts)``."""
    scores = x @ split.weight.mT + split.bias
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.topk(top, dim=1).indices, True)


def _strongest(seen: Seen, count: int) -> Tensor:
    """Whether each unit is among so many of a token that give the most, and gives anything: ``(tokens, units)``."""
    gives = seen.gives
    return torch.zeros_like(gives, dtype=torch.bool).scatter_(1, gives.topk(count, dim=1).indices, True) & (gives > 0)


def _spread(patterns: Tensor, count: int, seed: int) -> Tensor:
    """Columns that are far from each other, ``(tokens, count)``: the first is drawn, each next one is the farthest."""
    start = int(torch.randint(patterns.shape[1], (1,), generator=torch.Generator().manual_seed(seed)))
    picked = [start]
    nearest = patterns.mT @ patterns[:, start]
    while len(picked) < count:
        nearest[picked] = 2.0
        picked.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, patterns.mT @ patterns[:, picked[-1]])
    return patterns[:, picked].clone()


def _balanced(likeness: Tensor, size: int) -> Tensor:
    """The cluster of each unit, equally many in each: the most alike pairs first.

    Args:
        likeness: ``(units, clusters)``.
        size: Units of a cluster.
    """
    count = likeness.shape[1]
    room, found = [size] * count, [-1] * len(likeness)
    for pair in likeness.flatten().argsort(descending=True, stable=True).tolist():
        unit, cluster = divmod(pair, count)
        if found[unit] < 0 and room[cluster]:
            found[unit], room[cluster] = cluster, room[cluster] - 1
    return torch.tensor(found)
