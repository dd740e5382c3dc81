"""Losses against a teacher: what they are, what they don't see, and what they leave out."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from compresskit.ops.distill.logits import decoupled, soft_cross_entropy, standardized
from compresskit.ops.distill.on_policy import jensen_shannon
from compresskit.ops.distill.outputs import angular_distance, embedding_distance, relative_distance

LABELS = torch.tensor([0, 3, 1, 2, 4, 0])
LOGIT_LOSSES: dict[str, Callable[..., Tensor]] = {
    "kd": soft_cross_entropy,
    "standardized": standardized,
    "dkd": lambda found, wanted, mask=None: decoupled(
        found, wanted, LABELS.expand(found.shape[:-1]) if found.dim() == 2 else torch.zeros(2, 3).long(), mask=mask
    ),
    "jsd": lambda found, wanted, mask=None: jensen_shannon(found, wanted, 0.3, mask),
}


def logits(seed: int, *shape: int) -> Tensor:
    return 3 * torch.randn(*(shape or (6, 5)), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_a_student_that_says_the_same_has_nothing_to_learn(name: str) -> None:
    loss = LOGIT_LOSSES[name]
    found = logits(0).requires_grad_()
    same, other = loss(found, logits(0)), loss(found, logits(1))
    assert abs(float(same.detach())) < 1e-5 < float(other.detach())
    (slope,) = torch.autograd.grad(other, found)
    assert slope.isfinite().all() and slope.abs().max() > 1e-3


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_padded_positions_do_not_count(name: str) -> None:
    loss = LOGIT_LOSSES[name]
    found, wanted = logits(0, 2, 3, 5), logits(1, 2, 3, 5)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    spoilt = wanted.masked_fill(~mask.unsqueeze(-1), 50.0)
    assert loss(found, wanted, mask=mask) == loss(found, spoilt, mask=mask)
    every = loss(found, wanted, mask=torch.ones(2, 3, dtype=torch.bool))
    assert torch.isclose(every, loss(found, wanted))
    assert float(loss(found, wanted, mask=torch.zeros(2, 3, dtype=torch.bool))) == 0


def test_kd_is_the_divergence_of_softened_classes() -> None:
    found, wanted = torch.tensor([[0.0, 0.0]]), torch.tensor([[2 * math.log(3), 0.0]])
    # At temperature 2 the teacher says 3/4 and 1/4, the student 1/2 each.
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert float(soft_cross_entropy(found, wanted, 2.0)) == pytest.approx(expected)


def test_standardized_sees_neither_shift_nor_scale() -> None:
    found, wanted = logits(0), logits(1)
    assert torch.isclose(standardized(found, wanted), standardized(7 * found - 3, 0.1 * wanted + 5), rtol=1e-4)
    assert abs(float(standardized(5 * wanted + 1, wanted))) < 1e-5
    assert not torch.isclose(soft_cross_entropy(found, wanted), soft_cross_entropy(7 * found, wanted), rtol=0.1)


def test_standardized_needs_three_classes_and_stands_constant_logits() -> None:
    with pytest.raises(ValueError, match="three classes"):
        standardized(logits(0, 4, 2), logits(1, 4, 2))
    flat = torch.zeros(6, 5, requires_grad=True)
    (slope,) = torch.autograd.grad(standardized(flat, logits(1)), flat)
    assert slope.isfinite().all()


def test_dkd_with_the_weights_of_the_plain_loss_is_the_plain_loss() -> None:
    """KL = TCKD + (1 − p of the target) · NCKD, which for one sample is a choice of beta."""
    found, wanted, label = logits(0, 1, 5), logits(1, 1, 5), torch.tensor([2])
    rest = 1 - float((wanted / 4).softmax(-1)[0, 2])
    plain = soft_cross_entropy(found, wanted, 4.0)
    assert torch.isclose(decoupled(found, wanted, label, 4.0, alpha=1, beta=rest), plain, rtol=1e-4)
    sure = wanted.clone()
    sure[0, 2] += 100  # a teacher without doubt: the plain loss sees the target only
    assert decoupled(found, sure, label, 4.0, alpha=0, beta=1) > 0.01


def test_jensen_shannon_goes_from_forward_to_reverse() -> None:
    found, wanted = logits(0), logits(1)
    forward, reverse = soft_cross_entropy(found, wanted), soft_cross_entropy(wanted, found)
    assert torch.isclose(jensen_shannon(found, wanted, 0), forward)
    assert torch.isclose(jensen_shannon(found, wanted, 1), reverse)
    middle = jensen_shannon(found, wanted, 0.5)
    assert torch.isclose(middle, jensen_shannon(wanted, found, 0.5)) and float(middle) <= math.log(2)


def test_distances_are_in_units_of_the_teachers_spread() -> None:
    wanted = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    constant = wanted.mean(0).expand_as(wanted)
    assert float(relative_distance(constant, wanted)) == pytest.approx(1, rel=1e-5)
    assert torch.isclose(relative_distance(3 * constant, 3 * wanted), relative_distance(constant, wanted))
    assert float(angular_distance(2 * wanted, wanted)) == pytest.approx(0, abs=1e-6)
    assert float(angular_distance(-wanted, wanted)) == pytest.approx(2)


def test_embeddings_of_padding_do_not_count() -> None:
    generator = torch.Generator().manual_seed(0)
    found, wanted = (torch.randn(2, 4, 8, generator=generator) for _ in range(2))
    mask = torch.tensor([[True, True, True, False], [True, True, False, False]])
    spoilt = wanted.masked_fill(~mask.unsqueeze(-1), 9.0)
    assert torch.isclose(embedding_distance(found, wanted, mask), embedding_distance(found, spoilt, mask))
    assert float(embedding_distance(wanted, wanted, mask)) == pytest.approx(0, abs=1e-6)
    assert float(embedding_distance(found[:, 0], wanted[:, 0])) > 0.1
