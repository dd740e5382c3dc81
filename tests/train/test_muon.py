"""Orthogonalized momentum: what it does to a matrix, to a kernel, and to what is neither."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.train.muon import MOMENTUM, REST, Muon, hidden_matrices, orthogonalized


def gradients(module: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def deep(*middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), *middle, nn.Linear(6, 2))


@pytest.mark.parametrize("shape", [(5, 40), (40, 5), (16, 16), (1, 9)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, int]) -> None:
    u, _, v = torch.linalg.svd(torch.randn(shape, generator=torch.Generator().manual_seed(0)), full_matrices=False)
    matrix = u * torch.linspace(1, 4, len(v)) @ v
    inside = u.T @ orthogonalized(matrix) @ v.T
    assert (inside.diagonal() > 0.65).all() and (inside.diagonal() < 1.25).all()
    torch.testing.assert_close(inside, inside.diagonal().diag(), atol=1e-4, rtol=0)


def test_nothing_comes_of_nothing() -> None:
    assert not orthogonalized(torch.zeros(3, 4)).any()


@pytest.mark.parametrize("shape", [(12, 30), (30, 12)])
def test_a_matrix_moves_as_under_torchs_own(shape: tuple[int, int]) -> None:
    module = deep(nn.Linear(shape[1], shape[0], bias=False))
    weight = module[1].weight
    start = weight.detach().clone()
    other = nn.Parameter(start.clone())
    mine = Muon(module, 0.1, weight_decay=0.01)
    theirs = torch.optim.Muon([other], lr=0.1, weight_decay=0.01, momentum=MOMENTUM)
    for step in range(4):
        gradients(module, step)
        other.grad = weight.grad
        mine.step()
        theirs.step()
    # Torch's own iterates in bfloat16, of which eight bits are exact.
    moved = other.detach() - start
    assert (weight.detach() - other.detach()).norm() < 0.02 * moved.norm()


def test_a_kernel_moves_as_its_matrix() -> None:
    one, other = deep(nn.Conv2d(4, 6, 3, bias=False)), deep(nn.Linear(36, 6, bias=False))
    with torch.no_grad():
        other[1].weight.copy_(one[1].weight.flatten(1))
    optimizers = [Muon(module, 0.1) for module in (one, other)]
    for step in range(3):
        gradients(other, step)
        one[1].weight.grad = other[1].weight.grad.reshape(6, 4, 3, 3)
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(one[1].weight.flatten(1), other[1].weight)


def test_the_rest_moves_by_plain_momentum() -> None:
    module, other = deep(nn.Linear(6, 6)), deep(nn.Linear(6, 6))
    other.load_state_dict(module.state_dict())
    mine = Muon(module, 0.1)
    theirs = torch.optim.SGD(other.parameters(), REST * 0.1, momentum=MOMENTUM, nesterov=True)
    for step in range(3):
        for net in (module, other):
            gradients(net, step)
        mine.step()
        theirs.step()
    moved = dict(other.named_parameters())
    for name, parameter in module.named_parameters():
        same = torch.allclose(parameter, moved[name], atol=1e-6)
        assert same == (name != "1.weight"), name


def test_a_model_without_hidden_matrices_is_refused() -> None:
    for module in (deep(), deep(nn.Linear(6, 6).requires_grad_(False))):
        with pytest.raises(InputError, match="muon has no weights to move"):
            Muon(module, 0.1)


class Tied(nn.Module):
    """A language model's parts: the last layer is the embedding's matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(7, 4), nn.Parameter(torch.zeros(1, 3, 4))
        self.blocks = nn.ModuleList(nn.MultiheadAttention(4, 2) for _ in range(2))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 7)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_hidden_are_matrices_between_the_first_and_the_last_layer() -> None:
    def names(module: nn.Module) -> list[str]:
        found = {id(p) for p in hidden_matrices(module)}
        return [name for name, p in module.named_parameters() if id(p) in found]

    net = deep(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ConvTranspose2d(3, 4, 2), nn.Linear(4, 4))
    assert names(net) == ["1.weight", "3.weight", "4.weight"]
    net[1].requires_grad_(False)
    assert names(net) == ["3.weight", "4.weight"]
    assert names(deep(nn.Conv2d(4, 4, 3, groups=4), nn.Linear(4, 4))) == ["2.weight"]
    assert names(Tied()) == ["blocks.0.out_proj.weight", "blocks.1.in_proj_weight", "blocks.1.out_proj.weight"]
