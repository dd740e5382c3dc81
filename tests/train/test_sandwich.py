"""The loss of a supernet: the whole, the smallest and drawn subnets, against one answer of the teacher."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from compresskit.ops.prune.elastic import Subnet
from compresskit.train.sandwich import sandwiched
from compresskit.train.task import Task
from compresskit.train.teaching import by_classes


@dataclass
class Noting:
    """Stands for what can be left out of a module: notes what is asked for, and leaves out nothing."""

    blocks: tuple[str, ...] = ("a", "b", "c")
    asked: list[Subnet] = field(default_factory=list)

    @contextmanager
    def only(self, _module: nn.Module, subnet: Subnet) -> Iterator[None]:
        self.asked.append(subnet)
        yield


class Counting(nn.Linear):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_each_step_has_the_whole_the_smallest_and_drawn_ones(count: int, share: float) -> None:
    torch.manual_seed(0)
    student, teacher, parts = Counting(6, 4), Counting(6, 4), Noting()
    task = Task(["x"], lambda module, batch: module(batch["x"]), "classes", True, share)
    loss = sandwiched(task, teacher, by_classes(4, 2.0, standardize=False)[0], parts, 0.25, count)  # type: ignore[arg-type]
    part = [torch.randn(8, 6), torch.arange(8) % 4]
    whole = loss(student.eval(), part)
    assert (student.calls, teacher.calls, parts.asked) == (1, int(share > 0), [])
    torch.testing.assert_close(loss(student.train(), part), whole)  # all subnets are the whole here
    assert student.calls == 3 + count and teacher.calls == 2 * int(share > 0)
    assert parts.asked[0] == Subnet(0.25, 3) and len(parts.asked) == 1 + count


def test_drawn_subnets_reach_every_depth_and_all_widths() -> None:
    student, parts = nn.Linear(6, 4), Noting()
    task = Task(["x"], lambda module, batch: module(batch["x"]), "classes", True, 0.0)
    loss = sandwiched(task, student, by_classes(4, 2.0, standardize=False)[0], parts, 0.5, 100)  # type: ignore[arg-type]
    torch.manual_seed(0)
    loss(student.train(), [torch.randn(8, 6), torch.arange(8) % 4])
    drawn = parts.asked[1:]
    assert {subnet.drop for subnet in drawn} == {0, 1, 2, 3}
    widths = [subnet.width for subnet in drawn]
    assert min(widths) >= 0.5 and max(widths) <= 1.0 and max(widths) - min(widths) > 0.4
    torch.manual_seed(0)
    loss(student, [torch.randn(8, 6), torch.arange(8) % 4])
    assert parts.asked[102:] == drawn
