"""What a model does on samples: held against models built so that the answer is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compresskit.ops.shrinking import CalibrationData
from compresskit.ops.structure.cells import Look, box, pieces
from compresskit.ops.structure.experts import experts
from compresskit.ops.structure.look import structure
from compresskit.ops.structure.regions import regions
from compresskit.ops.structure.streams import streams
from compresskit.ops.structure.symmetry import symmetry
from compresskit.ops.structure.units import units, upper_bound


def silent(_what: str, _done: int, _total: int) -> None:
    pass


def samples(*shape: int, count: int = 64, size: int = 16, seed: int = 0, scores: bool = False) -> CalibrationData:
    made = torch.Generator().manual_seed(seed)
    batches = [{"x": torch.randn(size, *shape, generator=made)} for _ in range(count // size)]
    return CalibrationData({"x": batches[0]["x"][:2]}, batches, lambda net, batch: net(*batch.values()), scores)


@pytest.mark.parametrize(("planes", "dimensions", "known"), [(5, 1, 6), (5, 2, 16), (8, 2, 37), (6, 3, 42)])
@pytest.mark.parametrize("seed", range(3))
def test_an_arrangement_has_as_many_regions_as_zaslavsky_says(
    planes: int, dimensions: int, known: int, seed: int
) -> None:
    made = torch.Generator().manual_seed(seed)
    weight = torch.randn(planes, dimensions, generator=made, dtype=torch.float64)
    bias = torch.randn(planes, generator=made, dtype=torch.float64)

    def run(points: Tensor, look: Look) -> None:
        look(points @ weight.T + bias)

    found = pieces(box([-1e3] * dimensions, [1e3] * dimensions), run, 10_000)
    assert found.complete
    assert len(found.cells) == known == sum(math.comb(planes, k) for k in range(dimensions + 1))


def test_planes_that_fall_together_count_once() -> None:
    def run(points: Tensor, look: Look) -> None:
        look(torch.cat([points - 0.5, 2 * points - 1, 0.5 - points, points - 0.25], 1))

    assert len(pieces(box([0.0], [1.0]), run, 100).cells) == 3


def test_a_search_that_takes_too_long_is_given_up() -> None:
    def run(points: Tensor, look: Look) -> None:
        look(points - torch.linspace(0.01, 0.99, 50, dtype=torch.float64))

    found = pieces(box([0.0], [1.0]), run, 10)
    assert not found.complete


def deep(seed: int = 1) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3)).eval()


def changes(net: nn.Sequential, start: Tensor, end: Tensor, steps: int = 50_000) -> int:
    """How often any ReLU switches along a line, by small steps."""
    at = torch.linspace(0, 1, steps, dtype=torch.float64)[:, None]
    x, signs = start + at * (end - start), []
    for layer in net:
        if isinstance(layer, nn.ReLU):
            signs.append(x > 0)
        x = layer(x)
    return int((torch.cat(signs, 1).diff(dim=0)).any(1).sum())


@torch.no_grad()
def test_lines_of_a_deep_net_have_the_regions_that_small_steps_find() -> None:
    net, data = deep(), samples(6)
    found = regions(net, data, 1000, 0, silent)
    assert found["exact"] and [line["share"] for line in found["lines"]] == [1.0] * 8
    double, x = deep().double(), data.batches[0]["x"].double()
    counted = [1 + changes(double, x[n], x[n + 1]) for n in range(0, 16, 2)]
    assert [line["regions"] for line in found["lines"]] == counted
    assert found["regions"] == pytest.approx(sum(counted) / 8, abs=0.06)
    assert found["low"] < found["regions"] < found["high"]


def test_a_slice_is_covered_by_its_pieces() -> None:
    drawn = regions(deep(), samples(6, scores=True), 1000, 0, silent)["slice"]
    assert drawn["regions"] == len(drawn["cells"]) == len(drawn["classes"]) > 10
    area = 0.0
    for cell in drawn["cells"]:
        around = zip(cell, [*cell[1:], cell[0]], strict=True)
        area += sum(a[0] * b[1] - b[0] * a[1] for a, b in around) / 2
    assert area == pytest.approx(1.0, abs=0.01)


class Bent(nn.Module):
    """Bent at a place that no activation tells."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) + x.abs().sqrt()


@pytest.mark.parametrize(
    ("net", "shape", "why"),
    [
        (nn.Sequential(nn.Linear(6, 4), nn.GELU()), (6,), "gelu"),
        (nn.Linear(6, 4), (6,), "no ReLU"),
        (Bent(), (6,), "bent elsewhere"),
    ],
)
def test_what_cannot_be_counted_is_said(net: nn.Module, shape: tuple[int, ...], why: str) -> None:
    assert why in regions(net, samples(*shape), 1000, 0, silent)["unknown"]


class Switched(nn.Module):
    """Of eight units two are never on, and three always are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.act, self.last = nn.Linear(5, 8), nn.ReLU(inplace=True), nn.Linear(8, 2)
        with torch.no_grad():
            self.first.bias.copy_(torch.tensor([-90.0] * 2 + [90.0] * 3 + [0.0] * 3))

    def forward(self, x: Tensor) -> Any:
        return self.last(self.act(self.first(x)))


def test_units_that_never_and_always_switch_on_are_counted() -> None:
    found = units(Switched().eval(), samples(5), silent)
    (row,) = found["layers"]
    assert (row["name"], row["units"], row["never"], row["always"]) == ("act", 8, 2, 3)
    assert 2 / 8 < row["sparsity"] < 5 / 8
    assert found["samples"] == 48
    assert found["held_out"] == {"samples": 16, "deviating": 0, "bound": pytest.approx(1 - 0.05 ** (1 / 16), abs=1e-5)}


def test_units_that_deviate_in_other_samples_are_told() -> None:
    data = samples(5)
    data.batches[3]["x"][0] *= 1e4  # of the batch that is held out
    held = units(Switched().eval(), data, silent)["held_out"]
    assert held["deviating"] == 1 and held["bound"] > 1 / 16


@pytest.mark.parametrize(("hits", "of", "bound"), [(0, 10, 0.2589), (1, 10, 0.3942), (5, 10, 0.7776), (10, 10, 1.0)])
def test_the_bound_is_that_of_clopper_and_pearson(hits: int, of: int, bound: float) -> None:
    assert upper_bound(hits, of) == pytest.approx(bound, abs=1e-4)


class Block(nn.Module):
    def __init__(self, bent: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.bent = bent

    def forward(self, x: Tensor) -> Any:
        y = self.one(x)
        return x + self.two(torch.relu(y) if self.bent else y)


def chain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 1), Block(False), Block(True), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


def test_a_linear_block_is_explained_whole_and_a_bent_one_is_not() -> None:
    found = structure(chain(), samples(3, 6, 6), seed=0, progress=silent)
    linear, bent = found["blocks"]
    assert linear["r2"] == linear["by"]["3x3"] == pytest.approx(1, abs=1e-3)
    assert bent["by"]["3x3"] < 0.999 and bent["by"]["1x1"] < bent["by"]["3x3"]
    assert (linear["name"], linear["type"], linear["width"], linear["places"]) == ("1", "Block", 6, "pixels")
    assert 1 < linear["rank"] <= 6
    assert found["regions"]["regions"] > 1


class Turned(nn.Module):
    """Sees a picture and its mirror image alike."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([(x + x.flip(-1)).flatten(1)[:, :4].sum(1), x.flatten(1).sum(1)], 1)


def test_moves_under_which_the_output_stays_are_found() -> None:
    found = {row["move"]: row for row in symmetry(Turned(), samples(1, 4, 4, scores=True), 2)}
    assert found["flip left-right"]["error"] == pytest.approx(0, abs=1e-6) and found["flip left-right"]["same"] == 1
    assert found["quarter turn"]["error"] > 0.1
    assert symmetry(Turned(), samples(8), 2) == []


def test_a_picture_that_is_given_back_turned_has_no_error() -> None:
    torch.manual_seed(0)
    found = symmetry(nn.Conv2d(2, 2, 1), samples(2, 4, 4), 2)
    assert len(found) == 4 and all(row["error"] < 1e-6 for row in found)


class Experts(nn.Module):
    """Called as those of transformers are."""

    num_experts = 4

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        return hidden_states


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = Experts()

    def forward(self, x: Tensor) -> Any:
        index = (x[:, :1] > 0).long()  # the third and the fourth get nothing
        return self.experts(x, index, torch.full((len(x), 1), 0.5))


def test_the_use_of_experts_is_counted() -> None:
    data = samples(3)
    (row,) = experts(Mixture(), data, silent)
    positive = sum(int((batch["x"][:, 0] > 0).sum()) for batch in data.batches) / 64
    assert row["share"] == pytest.approx([1 - positive, positive, 0, 0], abs=1e-4)
    assert row["gate"][:2] == [0.5, 0.5] and row["unused"] == 2 and 1.5 < row["effective"] <= 2
    assert experts(deep(), samples(6), silent) == []


class Twice(nn.Module):
    """Hands tokens on, the second as a copy of the first."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :1], x[:, :1], x[:, 2:]], 1)


def test_ranks_twins_and_likeness_of_blocks() -> None:
    torch.manual_seed(0)
    low = nn.Linear(8, 8, bias=False)
    with torch.no_grad():
        low.weight.copy_(torch.outer(torch.randn(8), torch.randn(8)))
    net = nn.Sequential(Twice(), nn.Linear(8, 8), low)
    told, alike = streams(net, {"0": 0, "1": 0, "2": 0}, samples(6, 8), silent)
    assert told["2"]["rank"] == pytest.approx(1, abs=0.01) and told["2"]["rank99"] == 1
    assert told["0"]["twins"] >= 2 / 6 and told["0"]["rank"] > 6 and told["0"]["places"] == "tokens"
    weights: dict[tuple[str, ...], Any] = {tuple(pair["blocks"]): pair["weights"] for pair in alike}
    assert weights["1", "2"] is None  # one has a bias
    assert all(0 <= pair["outputs"] <= 1 + 1e-9 for pair in alike)
