"""Layers put together into one compute what they computed before."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.facts.substitute import FoldedFacts
from compresskit.ops.substitute.fold import Folded, fold, replay


class RepVGG(nn.Module):
    """Branches of 3×3, 1×1 and nothing, each with a batch normalization."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.dense = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups, bias=False), nn.BatchNorm2d(outputs)
        )
        self.point = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, 0, groups=groups), nn.BatchNorm2d(outputs))
        self.same = nn.BatchNorm2d(outputs) if inputs == outputs and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        rest = 0 if self.same is None else self.same(x)
        return torch.relu(self.dense(x) + self.point(x) + rest)


class Rows(nn.Module):
    """Layers one behind the other, in the module's own code."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.inner = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.inner:
            x = layer(x)
        return torch.sigmoid(x)


class Scaled(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8) if len(shape) == 1 else nn.Conv2d(8, 8, 3, padding=1)
        self.gamma = nn.Parameter(torch.rand(shape))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.gamma * self.layer(x) * 0.5)


class Twice(nn.Module):
    """One layer whose output two others read, a layer that is called twice, and one whose weight another one has."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.d, self.e, self.f = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.e.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = torch.relu(self.b(x)) + torch.tanh(self.c(x))
        return torch.relu(self.f(self.e(torch.relu(self.d(torch.relu(self.d(x)))))))


CONV, NORM = nn.Conv2d, nn.BatchNorm2d
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, int]]] = {
    "branches": (lambda: nn.Sequential(RepVGG(8, 8), RepVGG(8, 16, 2), RepVGG(16, 16)), (8, 9, 9), {"Conv2d": 3}),
    "branches of groups": (lambda: nn.Sequential(RepVGG(8, 8, groups=4)), (8, 9, 9), {"Conv2d": 1}),
    "norms": (lambda: Rows(CONV(8, 4, 3), NORM(4), nn.Dropout(), NORM(4)), (8, 9, 9), {"Conv2d": 1}),
    "depthwise norm": (lambda: Rows(CONV(8, 8, 3, groups=8), nn.BatchNorm2d(8)), (8, 9, 9), {"Conv2d": 1}),
    "point behind": (lambda: Rows(CONV(8, 16, 3, 2, 1), CONV(16, 4, 1)), (8, 9, 9), {"Conv2d": 1}),
    "point before": (lambda: Rows(CONV(8, 8, 1, bias=False), CONV(8, 4, 3, 2, 1)), (8, 9, 9), {"Conv2d": 1}),
    "linear": (lambda: Rows(nn.Linear(8, 32), nn.Identity(), nn.Linear(32, 6)), (8,), {"Linear": 1}),
    "batch norm of vectors": (lambda: Rows(nn.Linear(8, 32), nn.BatchNorm1d(32)), (8,), {"Linear": 1}),
    "factor": (lambda: nn.Sequential(Scaled((8,))), (8,), {"Linear": 1}),
    "factor of pictures": (lambda: nn.Sequential(Scaled((8, 1, 1))), (8, 5, 5), {"Conv2d": 1}),
}  # fmt: skip
LEFT: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "a bias that padding would cut": (lambda: Rows(CONV(8, 8, 1), CONV(8, 4, 3, 1, 1)), (8, 9, 9)),
    "two windows": (lambda: Rows(CONV(8, 8, 3), CONV(8, 8, 3)), (8, 9, 9)),
    "a bottleneck": (lambda: Rows(nn.Linear(8, 2), nn.Linear(2, 8)), (8,)),
    "depthwise and point": (lambda: Rows(CONV(8, 8, 3, groups=8), CONV(8, 8, 1)), (8, 9, 9)),
    "norm first": (lambda: Rows(nn.BatchNorm2d(8), CONV(8, 8, 3, 1, 1)), (8, 9, 9)),
    "shared": (Twice, (8,)),
}


def shaken(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    module = make()
    for norm in (m for m in module.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))):
        for tensor, low in (
            (norm.running_mean, -0.5),
            (norm.running_var, 0.4),
            (norm.weight.data, 0.4),
            (norm.bias.data, -1),
        ):
            tensor.uniform_(low, 1.5)
    return module.eval()


def counts(module: nn.Module) -> dict[str, int]:
    kinds = [type(m).__name__ for m in module.modules() if m._parameters]
    return {kind: kinds.count(kind) for kind in kinds if kind != "Scaled"}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_the_output_is_the_same_and_a_fresh_module_folds_alike(case: str) -> None:
    make, shape, wanted = CASES[case]
    module, x = shaken(make), torch.randn(4, *shape)
    before = module(x)
    found, left = fold(module, run=lambda m: m(x))
    assert counts(module) == wanted and found and not left
    assert float((module(x) - before).norm() / before.norm()) <= 1e-6
    again = make().eval()
    replay(again, facts_of(found))
    again.load_state_dict(module.state_dict())
    assert torch.equal(again(x), module(x))
    with pytest.raises(InputError, match="other layers to put together"):
        replay(nn.Sequential(nn.Linear(2, 2)), facts_of(found))


def facts_of(found: list[Folded]) -> dict[str, FoldedFacts]:
    return {one.full: FoldedFacts(holder=one.holder, gone=list(one.gone)) for one in found}


@pytest.mark.parametrize("case", LEFT)
@torch.no_grad()
def test_what_would_not_be_exact_or_cheaper_stays(case: str) -> None:
    make, shape = LEFT[case]
    module, x = shaken(make), torch.randn(4, *shape)
    before, state = module(x), {k: v.clone() for k, v in module.state_dict().items()}
    assert fold(module) == ([], {})
    assert torch.equal(module(x), before) and module.state_dict().keys() == state.keys()


def test_a_module_that_looks_at_its_layers_is_left_as_it_was() -> None:
    class Looks(Rows):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = super().forward(x)
            return out * len([m for m in self.modules() if isinstance(m, nn.BatchNorm2d)])

    module = shaken(lambda: nn.Sequential(Looks(nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4))))
    x, kept = torch.randn(2, 8, 6, 6), {name: type(part) for name, part in module.named_modules()}
    found, left = fold(module, run=lambda m: m(x))
    assert not found and left == {"0": "its output would not be the same"}
    assert {name: type(part) for name, part in module.named_modules()} == kept


def test_globs_and_reasons() -> None:
    module = shaken(lambda: nn.Sequential(RepVGG(8, 8), RepVGG(8, 8)))
    found, left = fold(module, lambda name: "excluded" if name.startswith("1") else "")
    assert {one.holder.partition(".")[0] for one in found} == {"0"}
    assert left == dict.fromkeys(("1", "1.dense", "1.point"), "excluded")
