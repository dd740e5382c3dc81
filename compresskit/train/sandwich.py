"""One training after which parts of a model work alone: narrower ones, and ones of fewer blocks.

"Universally Slimmable Networks and Improved Training Techniques" (Yu & Huang, 2019) trains the largest, the smallest
and some random widths in each step, its sandwich rule. "Once-for-All: Train One Network and Specialize it for Efficient
Deployment" (Cai et al., 2020) orders channels by importance and varies depth too. Here the uncompressed model teaches
all of them, where in the first the largest teaches the others; kernel sizes and resolutions don't vary, and width and
depth shrink from the first step on, not in phases.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compresskit.ops.prune.elastic import Elastic, Subnet
from compresskit.train.task import Loss, Task
from compresskit.train.teaching import Distance, against, asks


def sandwiched(
    task: Task, teacher: nn.Module, distance: Distance, parts: Elastic, least: float, count: int
) -> Loss:  # fmt: skip
    """The mean loss of the whole model, its smallest subnet and some that are drawn; in eval mode of the whole alone.

    Args:
        task: Knows what is in a batch, and which share of the loss is the teacher's.
        teacher: Called as the student is; asked once a step.
        distance: Between outputs.
        parts: What can be left out.
        least: The narrowest share of the channels, above 0 to 1.
        count: Subnets that are drawn in each step, at least 0.
    """
    smallest = Subnet(least, len(parts.blocks))

    def drawn() -> Subnet:
        width, depth = torch.rand(2).tolist()
        return Subnet(least + (1 - least) * width, int(depth * (len(parts.blocks) + 1)))

    def loss(module: nn.Module, part: Sequence[Tensor]) -> Tensor:
        wanted = task.wanted(teacher, part) if asks(task) else None
        total = against(task, task.output(module, part), wanted, distance, part)
        if not module.training:
            return total
        for subnet in [smallest, *(drawn() for _ in range(count))]:
            with parts.only(module, subnet):
                total = total + against(task, task.output(module, part), wanted, distance, part)
        return total / (count + 2)

    return loss
