"""Zeros: as many as asked for, where they may lie, and as good as the data allow."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from calibration_models import Blocks, batches, forward
from torch import Tensor, nn

from compresskit.errors import InputError, UsageError
from compresskit.ops.calibration.moments import Moments, output_error
from compresskit.ops.prune.magnitude import prune_magnitude, prune_together
from compresskit.ops.prune.masks import Pattern, keep_zeros, kept, zeros
from compresskit.ops.prune.refit import refit
from compresskit.ops.prune.sparsegpt import prune_sparsegpt
from compresskit.ops.prune.unstructured import Calibrated, facts_of, plan_layers, prune_calibrated, prune_free
from compresskit.ops.prune.wanda import prune_wanda

HALF, TWO_OF_FOUR, ONE_OF_EIGHT = Pattern(0.5), Pattern.grouped(2, 4), Pattern.grouped(1, 8)
PATTERNS = [Pattern(0.3), HALF, Pattern(0.9), TWO_OF_FOUR, ONE_OF_EIGHT]
SHAPES = [(24, 96), (24, 320), (16, 8, 3, 3), (16, 8, 5)]


def weight_of(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def moments_of(weight: Tensor, parts: int = 1) -> Moments:
    """Of inputs that lie along a few directions, some columns far larger than others."""
    columns = weight[0].numel()
    generator = torch.Generator().manual_seed(columns)
    sizes = torch.logspace(-1, 0.5, columns)[torch.randperm(columns, generator=generator)]
    mix = torch.randn(parts, columns, columns, generator=generator) * sizes
    x = torch.randn(parts, 4 * columns, columns, generator=generator) @ mix
    return Moments(x.mT @ x / x.shape[1], x.mean(1), x.shape[1])


def even(weight: Tensor, parts: int = 1) -> Moments:
    columns = weight[0].numel()
    return Moments(3.0 * torch.eye(columns).repeat(parts, 1, 1), torch.zeros(parts, columns), 100)


def check(weight: Tensor, pattern: Pattern) -> None:
    if pattern.of:
        groups = weight.movedim(1, -1).reshape(-1, pattern.of)
        assert ((groups != 0).sum(1) == pattern.kept).all()
    else:
        assert int((weight == 0).sum()) == round(pattern.sparsity * weight.numel())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_there_are_as_many_zeros_as_asked_for(pattern: Pattern, shape: tuple[int, ...]) -> None:
    weight = weight_of(*shape)
    check(prune_magnitude(weight, pattern), pattern)
    check(prune_sparsegpt(weight, pattern, moments_of(weight)), pattern)
    found = prune_wanda(weight, pattern, moments_of(weight))
    if pattern.of:
        check(found, pattern)
    else:
        each = (found.flatten(1) == 0).sum(1)
        assert (each == round(pattern.sparsity * weight[0].numel())).all()
    assert torch.equal(found[found != 0], weight[found != 0])


def test_magnitude_keeps_the_largest_also_of_equal_ones() -> None:
    weight = torch.tensor([[3.0, -1.0, 2.0, 0.5], [1.0, 1.0, 1.0, 1.0]])
    assert prune_magnitude(weight, TWO_OF_FOUR).tolist() == [[3, 0, 2, 0], [0, 0, 1, 1]]
    assert int(kept(weight, Pattern(0.25)).sum()) == 6


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_with_a_gram_of_the_identity_sparsegpt_is_magnitude(pattern: Pattern, shape: tuple[int, ...]) -> None:
    weight = weight_of(*shape)
    wanted = prune_magnitude(weight, pattern)
    found = prune_sparsegpt(weight, pattern, even(weight))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(refit(found, weight, even(weight), rounds=3), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pattern", [HALF, TWO_OF_FOUR], ids=str)
def test_what_looks_at_the_data_is_better_and_moved_weights_are_best(pattern: Pattern) -> None:
    weight = weight_of(48, 128)
    moments = moments_of(weight)
    ours = prune_sparsegpt(weight, pattern, moments)
    ways = [prune_magnitude(weight, pattern), prune_wanda(weight, pattern, moments), ours]
    ways.append(refit(ours, weight, moments, rounds=30))
    free, wanda, sparsegpt, best = (float(output_error(weight, way, moments).sum()) for way in ways)
    assert max(wanda, sparsegpt) < 0.5 * free
    assert best < 0.9 * min(wanda, sparsegpt)


def test_the_refit_is_the_least_squares_solution_of_what_stays() -> None:
    weight = weight_of(6, 24)
    moments = moments_of(weight)
    found = refit(prune_magnitude(weight, HALF), weight, moments, rounds=60, damping=1e-6)
    gram = moments.gram[0].double()
    for row, aim in zip(found, weight, strict=True):
        stays = row != 0
        exact = torch.linalg.solve(gram[stays][:, stays], gram[stays] @ aim.double())
        torch.testing.assert_close(row[stays].double(), exact, rtol=1e-2, atol=1e-2)


def test_groups_of_a_convolution_lie_along_its_inputs() -> None:
    weight = torch.arange(1.0, 4 * 4 * 9 + 1).reshape(4, 4, 3, 3)
    found = prune_magnitude(weight, TWO_OF_FOUR)
    assert (found[:, :2] == 0).all() and (found[:, 2:] != 0).all()


def test_a_grouped_convolution_keeps_its_parts_apart() -> None:
    weight = weight_of(12, 4, 3, 3)
    check(prune_sparsegpt(weight, TWO_OF_FOUR, moments_of(weight, 3)), TWO_OF_FOUR)
    check(prune_sparsegpt(weight, HALF, moments_of(weight, 3)), HALF)


def test_ranked_together_layers_of_small_weights_lose_more() -> None:
    layers = {"small": nn.Linear(16, 16), "large": nn.Linear(16, 16)}
    with torch.no_grad():
        layers["large"].weight.mul_(10)
    prune_together(layers, 0.5)
    assert zeros(layers.values()) == 256
    assert zeros([layers["small"]]) > 5 * zeros([layers["large"]])


def test_ranked_by_output_each_output_loses_as_many() -> None:
    layer = nn.Linear(16, 6)
    with torch.no_grad():
        layer.weight[:3].mul_(10)
    prune_free({"": layer}, HALF, scope="output", progress=lambda *_: None)
    assert (layer.weight == 0).sum(1).tolist() == [8] * 6


def pruned(pattern: Pattern, way: Callable[[Tensor, Tensor, Moments], Tensor], drift: float = 1.0) -> float:
    """How far the outputs of a small model move, relative to those of the original."""
    module, data = Blocks(depth=3), batches(4, masked=True)
    before = [forward(module, b)[b["attention_mask"].bool()] for b in data]
    plan = plan_layers(module, pattern, (), ("unused",))
    left = prune_calibrated(module, plan.layers, pattern, Calibrated(way, drift), data, forward, lambda *_: None)
    assert not left
    for layer in plan.layers.values():
        check(layer.get_parameter("weight").detach(), pattern)
    after = [forward(module, b)[b["attention_mask"].bool()] for b in data]
    return float(sum((a - b).square().sum() for a, b in zip(after, before, strict=True)))


@torch.no_grad()
def test_over_a_whole_model_making_up_for_earlier_layers_pays() -> None:
    def sparsegpt(_weight: Tensor, target: Tensor, moments: Moments) -> Tensor:
        return refit(prune_sparsegpt(target, HALF, moments), target, moments, rounds=20)

    def wanda(weight: Tensor, _target: Tensor, moments: Moments) -> Tensor:
        return prune_wanda(weight, HALF, moments)

    found = [pruned(HALF, sparsegpt), pruned(HALF, sparsegpt, 0.0), pruned(HALF, wanda, 0.0)]
    assert found == sorted(found)


def test_what_is_left_alone_is_told_with_the_reason() -> None:
    plan = plan_layers(Blocks(), HALF, (), ("*.q",))
    assert "shares its weight with the embedding 'embed'" in plan.skipped["head"]
    assert "embedding" in plan.skipped["embed"]
    assert plan.skipped["layers.0.q"] == "excluded"
    mixed = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    assert plan_layers(mixed, TWO_OF_FOUR, (), ()).skipped == {"0": "its 3 inputs don't fill groups of 4"}


def test_layers_that_share_a_weight_are_pruned_once() -> None:
    module = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    module[2].weight = module[0].weight
    plan = plan_layers(module, HALF, (), ())
    assert list(plan.layers) == ["0"]
    assert "shares its weight with '0'" in plan.skipped["2"]


def test_facts_count_the_zeros_there_are() -> None:
    module = nn.Sequential(nn.Linear(8, 10), nn.Linear(10, 4))
    layers = plan_layers(module, Pattern(0.25), (), ()).layers
    prune_free(layers, Pattern(0.25), progress=lambda *_: None)
    assert facts_of(layers)["zeros"] == 30
    assert facts_of(layers)["layers"]["1"] == {"about": "at 25.0 % zeros", "zeros": 10}


def test_zeros_survive_training() -> None:
    layer = nn.Linear(16, 16)
    prune_free({"": layer}, HALF, progress=lambda *_: None)
    where = layer.weight.detach() == 0
    again = keep_zeros({"": layer})
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(8, 16)).square().sum().backward()
        optimizer.step()
        again()
    assert torch.equal(layer.weight == 0, where)


def test_bad_input_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="no layer matches 'nothing\\*'"):
        plan_layers(Blocks(), HALF, ("nothing*",), ())
    with pytest.raises(InputError, match="nothing to prune"):
        plan_layers(nn.ReLU(), HALF, (), ())
    with pytest.raises(InputError, match="none of 1 layers can be pruned; '0': an embedding"):
        plan_layers(nn.Sequential(nn.Embedding(4, 4)), HALF, (), ())
    layer = nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="layer 'here': the weight holds NaN"):
        prune_free({"here": layer}, HALF, progress=lambda *_: None)
