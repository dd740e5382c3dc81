"""Units that never or always fire are gone, and the output is the same; intervals hold what layers take."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from prune_nets import Depthwise, Grouped, Plain, Residual
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.facts import read_facts
from compresskit.facts.prune import CutFacts
from compresskit.facts.substitute import BypassFacts, FoldedFacts
from compresskit.ops.shrinking import CalibrationData
from compresskit.ops.substitute.bypass import Bypassed
from compresskit.ops.substitute.firing import Fired, replay, without
from compresskit.ops.substitute.fold import fold
from compresskit.ops.substitute.ranges import by_sample, over, reachable


def data_of(*shape: int, count: int = 160) -> CalibrationData:
    """Samples of mean 0."""
    x = 3 * torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))
    return CalibrationData({"x": x[:2]}, [{"x": part} for part in x.split(16)], lambda m, batch: m(batch["x"]))


def mlp(relu: Callable[[], nn.Module] = nn.ReLU, widths: tuple[int, ...] = (8, 32, 16, 3)) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for one, two in pairwise(widths):
        layers += [nn.Linear(one, two), relu()]
    return nn.Sequential(*layers[:-1]).eval()


def moved(module: nn.Module, name: str, shifts: dict[tuple[int, int], float]) -> nn.Module:
    """With other biases for some units of a layer."""
    with torch.no_grad():
        for (start, end), value in shifts.items():
            module.get_submodule(name).get_parameter("bias")[start:end] = value
    return module


def left_alone(_name: str) -> str:
    return ""


def quiet(*_: Any) -> None:
    return None


def facts_of(fired: Fired) -> dict[str, FoldedFacts]:
    cuts = {n: read_facts(CutFacts, {k: v for k, v in fact.items() if k != "about"}) for n, fact in fired.cut.items()}
    names = dict.fromkeys((*cuts, *fired.bypasses))
    return {n: FoldedFacts(cut=cuts.get(n), bypass=fired.bypasses.get(n)) for n in names}


class Convs(nn.Module):
    """A convolution, a ReLU that is a module, and a 1×1 behind it."""

    def __init__(self, padding: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        size = 2 * padding + 1
        self.one, self.relu, self.two = nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 6, size, padding=padding)
        self.end, self.head = nn.ReLU(), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.end(self.two(self.relu(self.one(x)))).mean((2, 3)))
        return out


SOME = {(0, 5): -1e3, (10, 28): 1e3}
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, dict[str, int]]] = {
    "both": (lambda: moved(mlp(), "0", SOME), (8,), 5, {"2": 18}),
    "never in two layers": (lambda: moved(moved(mlp(), "0", {(0, 5): -1e3}), "2", {(3, 5): -1e4}), (8,), 7, {}),
    "all always": (lambda: moved(mlp(widths=(8, 32, 3)), "0", {(0, 32): 1e3}), (8,), 0, {"2": 32}),
    "all never": (lambda: moved(mlp(widths=(8, 32, 3)), "0", {(0, 32): -1e3}), (8,), 32, {}),
    "relu6": (lambda: moved(mlp(nn.ReLU6), "0", {(0, 20): 3.0, (20, 28): 1e3}), (8,), 0, {"2": 20}),
    "convolutions": (lambda: moved(Convs(), "one", SOME), (3, 8, 8), 5, {"two": 14}),
    "a bypass of a convolution": (lambda: moved(Convs(), "one", {(4, 24): 1e3}), (3, 8, 8), 0, {"two": 20}),
}


@torch.no_grad()
def oracle(module: nn.Module, x: Tensor) -> int:
    """How many units a ReLU that is a module never lets through."""
    found = []

    def note(_relu: nn.Module, _args: Any, out: Tensor) -> None:
        found.append(int((out.movedim(1, -1).flatten(0, -2).amax(0) == 0).sum()))

    handles = [m.register_forward_hook(note) for m in module.modules() if isinstance(m, (nn.ReLU, nn.ReLU6))]
    module(x)
    for handle in handles:
        handle.remove()
    return sum(found)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_the_output_is_the_same_and_a_fresh_module_loses_as_much(case: str) -> None:
    make, shape, never, always = CASES[case]
    module, data = make().eval(), data_of(*shape)
    if case == "relu6":  # narrow enough to stay below 6
        module[0].weight[:20] *= 0.01  # type: ignore[index, union-attr]
    x = torch.cat([batch["x"] for batch in data.batches])
    before, size = module(x), sum(p.numel() for p in module.parameters())
    expected = oracle(module, x) - (case == "all never")  # one unit of a layer stays
    fired = without(module, data, left_alone, 0, quiet)
    found = fired.found
    assert found.never == expected and never <= expected + 1
    assert dict.fromkeys(fired.bypasses, found.always) == always
    assert float((module(x) - before).norm() / before.norm()) <= 1e-6 and found.change <= 1e-6
    assert sum(p.numel() for p in module.parameters()) < size
    assert found.deviating == 0 and found.samples + 2 * found.held_out == 160 and 0 < found.bound < 0.2
    assert found.proven >= min(never, expected) + found.always, "these biases are out of reach of the inputs"
    again = make().eval()
    replay(again, facts_of(fired))
    again.load_state_dict(module.state_dict())
    assert torch.equal(again(x), module(x))


@torch.no_grad()
def test_a_margin_keeps_what_comes_near_to_zero() -> None:
    """Of two units that never switch on one comes within a tenth of a standard deviation of 0."""
    data = data_of(8)
    x = torch.cat([batch["x"] for batch in data.batches])

    def made() -> nn.Sequential:
        module = mlp(widths=(8, 32, 3))
        layer = module[0]
        assert isinstance(layer, nn.Linear)
        rows = x @ layer.weight.T
        for unit, far in ((0, 0.05), (1, 0.2)):
            layer.bias[unit] = -rows[:, unit].amax() - far * rows[:, unit].std()
        return module

    assert without(made(), data, left_alone, 0, quiet).found.never == 2
    module = made()
    fired = without(module, data, left_alone, 0, quiet, margin=0.1)
    assert fired.found.never == 1 and fired.cut
    kept = module[0].get_parameter("weight")
    assert torch.equal(kept[0], made()[0].get_parameter("weight")[0]), "the near unit stays"
    assert not without(made(), data, left_alone, 0, quiet, margin=1.0).cut


@torch.no_grad()
def test_what_does_not_pay_or_cannot_be_stays_with_the_reason() -> None:
    few = moved(mlp(widths=(8, 32, 3)), "0", {(0, 2): 1e3})
    padded = moved(Convs(1), "one", {(0, 24): 1e3})
    for module, shape, name, why in (
        (few, (8,), "2", "2 of 32 units are always on: one layer for them would take 24 products in place of 22"),
        (padded, (3, 8, 8), "two", "padding or two windows"),
    ):
        before = {key: value.clone() for key, value in module.state_dict().items()}
        fired = without(module, data_of(*shape), left_alone, 0, quiet)
        assert not fired.bypasses and why in fired.left[name]
        assert before.keys() == module.state_dict().keys()
    skipped = without(
        moved(mlp(widths=(8, 32, 3)), "0", SOME), data_of(8), lambda name: "excluded" if name == "0" else "", 0, quiet
    )
    assert skipped.left["0"] == "excluded" and skipped.found.always == 0 and "0" not in skipped.cut


def test_a_relu_in_code_or_one_that_is_used_twice_stays() -> None:
    class Twice(nn.Module):
        def __init__(self, shared: bool) -> None:
            super().__init__()
            self.a, self.b, self.c, self.relu = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 3), nn.ReLU()
            self.shared = shared

        def forward(self, x: Tensor) -> Tensor:
            relu = self.relu if self.shared else torch.relu
            out: Tensor = self.c(relu(self.b(relu(self.a(x)))))
            return out

    for shared, why in ((True, "of use elsewhere too"), (False, "a function in the model's code")):
        fired = without(moved(Twice(shared), "a", {(0, 32): 1e3}).eval(), data_of(8), left_alone, 0, quiet)
        assert why in fired.left["b"] and not fired.bypasses


@torch.no_grad()
def test_a_unit_that_fires_in_other_samples_stays_or_is_told() -> None:
    module = moved(mlp(), "0", {(0, 6): -1e4})
    module[0].weight[:3] = 0  # type: ignore[index, union-attr]
    module[0].weight[:3, 0] = 1e5  # type: ignore[index, union-attr]
    data = data_of(8)
    for batch in data.batches:
        batch["x"][:, 0] = 0
    batches = [batch["x"] for batch in data.batches]
    batches[3][0, 0] = 1  # of the first held-out batch, in the half that is checked
    fired = without(module, data, left_alone, 0, quiet)
    assert fired.found.never == 3 and fired.found.returned == 3 and fired.found.deviating == 0
    module = moved(mlp(), "0", {(0, 6): -1e4})
    module[0].weight[:3, 0] = 1e5  # type: ignore[index, union-attr]
    batches[3][0, 0], batches[3][12, 0] = 0, 1
    fired = without(module, data, left_alone, 0, quiet)
    assert fired.found.never == 6 and fired.found.deviating == 1 and fired.found.change > 1e-3
    used = torch.cat([x for n, x in enumerate(batches) if n % 4 != 3])
    told = torch.cat([batches[3][8:], batches[7][8:]])
    inside = int(((told >= used.amin(0)) & (told <= used.amax(0))).all(1).sum())
    assert (fired.found.proven, fired.found.within) == (6, inside), "proven for what is within the samples' ranges"


def test_facts_of_another_architecture_are_refused() -> None:
    fact = BypassFacts(first="0", between=["1"], kept=9)
    for module in (mlp(nn.Tanh), mlp(widths=(8, 9, 3))):
        with pytest.raises(InputError, match="can't have been bypassed"):
            replay(module, {"2": FoldedFacts(bypass=fact)})
    with pytest.raises(InputError, match="no layer 'x'"):
        replay(mlp(), {"x": FoldedFacts(bypass=fact)})
    module = mlp()
    replay(module, {"2": FoldedFacts(bypass=fact)})
    assert isinstance(module[2], Bypassed)


@pytest.mark.parametrize("make", [Plain, Depthwise, Grouped, Residual, lambda: mlp(nn.Sigmoid)])
@torch.no_grad()
def test_intervals_hold_what_layers_take(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    module = make().eval()
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        for name in ("weight", "bias", "running_mean"):
            getattr(norm, name).uniform_(-1.0, 1.0)
    data = data_of(*((8,) if isinstance(module, nn.Sequential) else (3, 8, 8)))
    names = [n for n, m in module.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    seen = over(by_sample(module, names, data.batches, data.forward))
    most = reachable(module, names, data.batches)
    assert most
    for name, (low, high) in most.items():
        assert bool((low <= seen[name][0] + 1e-5).all()) and bool((high >= seen[name][1] - 1e-5).all())


@torch.no_grad()
def test_intervals_of_one_layer_are_exact_and_code_that_depends_on_values_has_none() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)).eval()
    module[0].weight.copy_(torch.tensor([[1.0, -2.0], [0.0, 1.0], [3.0, 1.0]]))
    module[0].bias.copy_(torch.tensor([0.5, 0.0, 0.0]))
    x = torch.tensor([[0.0, -1.0], [1.0, 2.0]])
    low, high = reachable(module, ["1"], [{"input": x}])["1"]
    assert low.tolist() == [-3.5, -1.0, -1.0] and high.tolist() == [3.5, 2.0, 5.0]

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) if bool(x.sum() > 0) else x

    assert reachable(Branches(), ["a"], [{"x": x}]) == {}


@torch.no_grad()
def test_channels_that_pass_by_a_shortcut_of_zeros_stay() -> None:
    torch.manual_seed(0)
    module, data = Residual().eval(), data_of(3, 8, 8)
    x = torch.cat([batch["x"] for batch in data.batches])
    module.first.bn1.bias[:4] = -1e3
    before = module(x)
    fold(module)  # without its batch normalizations the channels seem to be moved
    fired = without(module, data, left_alone, 0, quiet)
    assert fired.found.never >= 4 and "first.conv1" in fired.cut
    assert "a shortcut that is filled up with zeros" in fired.left["stem"]
    assert float((module(x) - before).norm() / before.norm()) <= 1e-6
