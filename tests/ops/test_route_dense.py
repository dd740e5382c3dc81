"""Dense feed-forward layers as shared units and routed experts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresskit.errors import InputError
from compresskit.exporter.onnx_export import export_onnx
from compresskit.exporter.parity import parity
from compresskit.facts.route import SplitFacts
from compresskit.model import InputSpec
from compresskit.ops.calibration.trace import trace
from compresskit.ops.route.clusters import Seen, Sizes, clustered, density, drawn, error, routed, shared_units, sizes
from compresskit.ops.route.dense import Wanted, add_experts
from compresskit.ops.route.feed_forward import RoutedFeedForward, filled, place, replay, sites
from compresskit.ops.shrinking import CalibrationData, ShrinkSettings

KINDS, WIDTH, HIDDEN = 4, 16, 64


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(WIDTH, HIDDEN, bias=False) for _ in range(2))
        self.down_proj, self.act_fn = nn.Linear(HIDDEN, WIDTH, bias=False), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """The parts of a feed-forward layer lie in two modules, as in BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleDict({"dense": nn.Linear(WIDTH, HIDDEN), "act": nn.GELU()})
        self.second = nn.ModuleDict({"dense": nn.Linear(HIDDEN, WIDTH), "drop": nn.Dropout(0.1)})
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        made = self.first["act"](self.first["dense"](x))
        return self.norm(x + self.second["drop"](self.second["dense"](made)))


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Dropout(0.5), nn.Linear(HIDDEN, WIDTH), nn.Tanh())


BUILDS = {"plain": plain, "bert": Block, "gated": lambda: nn.Sequential(Gated(), nn.LayerNorm(WIDTH))}


class Planted(nn.Module):
    """Each kind of input switches its own quarter of the hidden units on, and eight units vary for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(WIDTH, HIDDEN + 8), nn.ReLU(), nn.Linear(HIDDEN + 8, WIDTH)
        kinds = torch.arange(HIDDEN)[torch.randperm(HIDDEN)] % KINDS
        with torch.no_grad():
            self.up.weight[:HIDDEN, :KINDS] = 3 * F.one_hot(kinds, KINDS).float()
            self.up.weight[HIDDEN:, :KINDS] = 0.0
            self.up.weight[HIDDEN:, KINDS:] *= 30
            self.up.bias[:HIDDEN], self.up.bias[HIDDEN:] = -2.0, 5.0
        self.kinds = kinds

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))


def made(build: Any) -> Any:
    torch.manual_seed(0)
    return build().eval()


def inputs(count: int = 512, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = 0.1 * torch.randn(count, *shape, WIDTH, generator=generator)
    kinds = torch.randint(KINDS, (count, *shape), generator=generator)
    return x + F.pad(F.one_hot(kinds, KINDS).float(), (0, WIDTH - KINDS))


def data(*shape: int) -> CalibrationData:
    batches = [{"x": part} for part in inputs(512, *shape).split(32)]
    return CalibrationData(batches[0], batches, lambda module, batch: module(batch["x"]))


def experts(module: nn.Module, known: CalibrationData, **options: Any) -> Any:
    wanted = Wanted(**{"keep": 0.4, "shared": 0.11, "experts": KINDS, "random": False, **options})
    return add_experts(module, known, wanted, ShrinkSettings(), lambda *_: None)


@torch.no_grad()
def test_planted_experts_are_found_and_beat_random_ones() -> None:
    module = made(Planted)
    x, kinds, wanted = inputs(), module.kinds, module(inputs())
    found = experts(module, data())
    fact = found.layers["down"]
    assert (fact.shared, fact.size, fact.experts, fact.top) == (8, 16, KINDS, 1)
    assert fact.error < 0.01 and fact.random > 0.2 and found.distance["clustered"] < 0.01 * found.distance["random"]
    layer = module.down
    assert isinstance(layer, RoutedFeedForward) and isinstance(module.up, nn.Identity)
    rows = {tuple(row.tolist()) for row in layer.shared.up.weight}
    original = made(Planted)
    assert rows == {tuple(row.tolist()) for row in original.up.weight[HIDDEN:]}
    for expert in layer.experts:
        own = [int((original.up.weight == row).all(1).nonzero()[0]) for row in expert.up.weight]
        assert len(set(kinds[own].tolist())) == 1
    assert float((module(x) - wanted).norm() / wanted.norm()) < 0.01


@pytest.mark.parametrize("build", BUILDS)
@torch.no_grad()
def test_all_experts_together_are_the_dense_layer(build: str) -> None:
    module, known = made(BUILDS[build]), data()
    x = inputs(64)
    (site,) = sites(module, trace(module, lambda: known.run(module)))
    seen = Seen(x, site.hidden(module, x), module.get_submodule(site.down).weight)
    size = Sizes(16, 4, 12, 4)
    shared, rest = shared_units(seen, size)
    fact = SplitFacts(
        up=site.up, activation=site.activation, down=site.down, gate=site.gate, shared=16, size=12, experts=4, top=4
    )
    split = routed(seen, shared, clustered(seen, rest, size, 0), 2)
    wanted = module(x)
    twin = copy.deepcopy(module)
    place(twin, site.name, fact, filled(module, site.name, fact, split))
    assert (twin(x) - wanted).abs().max() <= 1e-6
    again = made(BUILDS[build])
    replay(again, [(site.name, fact)])
    again.load_state_dict(twin.state_dict())
    assert torch.equal(again(x), twin(x))


@torch.no_grad()
def test_the_error_of_a_layer_is_what_it_says() -> None:
    module, x = made(plain), inputs(64)
    seen = Seen(x, torch.relu(module[0](x)), module[3].weight)
    size = Sizes(16, 4, 12, 2)
    shared, rest = shared_units(seen, size)
    split = routed(seen, shared, drawn(rest, size, 0), 2)
    fact = SplitFacts(up="0", activation="1", down="3", shared=16, size=12, experts=4, top=2)
    wanted = module[3](seen.hidden)
    found = filled(module, "3", fact, split)(x)
    away = float((found - wanted).norm() / (wanted - module[3].bias).norm())
    assert error(seen, split, 2) == pytest.approx(away, rel=1e-4)
    assert 0 < away < 1


def test_units_are_split_evenly_and_each_once() -> None:
    seen = Seen(inputs(64), inputs(64, 4).flatten(1), torch.ones(3, HIDDEN))
    size = sizes(HIDDEN, 0.5, 0.25, 8)
    assert size == Sizes(16, 8, 6, 3) and size.active == 34
    shared, rest = shared_units(seen, size)
    groups = clustered(seen, rest, size, 0)
    assert sorted([*shared.tolist(), *groups.flatten().tolist()]) == list(range(HIDDEN))
    assert sizes(HIDDEN, 0.5, 0.25, 64) is None and sizes(HIDDEN, 0.3, 0.28, 8) is None


def test_density_is_the_share_of_units_that_hold_the_squares() -> None:
    hidden = torch.zeros(2, 10)
    hidden[0, 0], hidden[1, :5] = 1.0, 1.0
    assert density(Seen(hidden, hidden, torch.ones(1, 10))) == pytest.approx((0.1 + 0.5) / 2)


@torch.no_grad()
def test_a_layer_that_is_not_sparse_is_refused_with_its_figure() -> None:
    module = made(lambda: nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 4)))
    module[0].bias.add_(5)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(InputError, match=r"2: not sparse: [789]\d % of the hidden units hold 90 %"):
        experts(module, data(), keep=0.5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_clusters_that_are_no_better_are_refused_with_both_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compresskit.ops.route.dense.clustered", lambda seen, rest, size, seed: drawn(rest, size, 9))
    module = made(plain)
    module[0].weight.data[:, :KINDS] = 0  # nothing tells the kinds apart
    names = list(module.state_dict())
    monkeypatch.setattr("compresskit.ops.route.dense._DRAWS", 1)
    monkeypatch.setattr("compresskit.ops.route.dense.drawn", lambda rest, size, seed: drawn(rest, size, 9))
    with pytest.raises(InputError, match=r"no better than random ones here: the output moves by \S+, with random"):
        experts(module, data(), keep=0.6)
    assert list(module.state_dict()) == names
    experts(module, data(), keep=0.6, random=True)


def test_what_has_no_such_layer_is_refused() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(F.relu(self.up(x)))

    with pytest.raises(InputError, match="no dense feed-forward layer") as caught:
        experts(made(Functional), data())
    assert "an activation that is a module" in (caught.value.hint or "")


def test_layers_with_a_part_in_common_are_split_once() -> None:
    layers = [layer for _ in range(3) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    module = nn.Sequential(*layers).eval()
    found = sites(module, trace(module, lambda: module(inputs(2))))
    assert [(site.up, site.name) for site in found] == [("0", "2")]


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        *((build, ()) for build in BUILDS),
        *(pytest.param(build, (5,), marks=pytest.mark.slow if build != "bert" else ()) for build in BUILDS),
    ],
)
def test_the_file_gathers_tokens_and_never_masks(tmp_path: Path, build: str, shape: tuple[int, ...]) -> None:
    import onnx

    module = made(BUILDS[build])
    experts(module, data(*shape), keep=0.7, random=True)
    spec = (InputSpec("x", "float32", ("batch", *("sequence" for _ in shape), WIDTH)),)
    exported = export_onnx(module, spec, tmp_path / "m.onnx")
    assert parity(module, tmp_path / "m.onnx", spec).passed and not exported.limits
    used = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
    assert used.count("NonZero") == KINDS and used.count("ScatterND") == 1 and "Where" not in used


def test_a_card_whose_experts_do_not_add_up_is_refused() -> None:
    fact = SplitFacts(up="0", activation="1", down="3", shared=16, size=13, experts=4, top=2)
    with pytest.raises(InputError, match="don't add up to its 64 hidden units"):
        replay(made(plain), [("3", fact)])
    with pytest.raises(InputError, match="no layer '9'"):
        replay(made(plain), [("9", SplitFacts(up="0", activation="1", down="9", shared=16, size=12, experts=4, top=2))])
