"""Which layer of the student learns from which of the teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from compresskit.errors import InputError, UsageError, listing
from compresskit.ops.calibration.trace import chain, trace
from compresskit.ops.globs import matches

Pairs = list[tuple[str, str]]


def even_pairs(student: Sequence[str], teacher: Sequence[str]) -> Pairs:
    """Blocks at the same share of the way through; the last of one meets the last of the other.

    "TinyBERT: Distilling BERT for Natural Language Understanding" (Jiao et al., 2020), its uniform mapping.

    Args:
        student: Names of the student's blocks, in order; not empty.
        teacher: The teacher's; where there are fewer of them, each has one student block, and the others have none.
    """
    fewer = min(len(student), len(teacher))

    def pick(names: Sequence[str]) -> list[str]:
        return [names[(step + 1) * len(names) // fewer - 1] for step in range(fewer)]

    return list(zip(pick(student), pick(teacher), strict=True))


def blocks_of(module: nn.Module, forward: Callable[[], Any], whose: str) -> list[str]:
    """The names of a module's blocks, in order; a module without a chain of blocks is refused.

    Where the chain is of single layers, those that hand their output to a layer with weights stand for blocks.

    Args:
        module: In eval mode.
        forward: Calls it once; gradients should be off.
        whose: ``student`` or ``teacher``, for the message.

    Raises:
        InputError: No chain of blocks was found.
    """
    found = chain(module, trace(module, forward))
    blocks = [name for name in found if any(True for _ in module.get_submodule(name).children())]
    blocks = blocks or [name for name, following in pairwise(found) if _multiplies(module.get_submodule(following))]
    if not blocks:
        raise InputError(
            f"the {whose} has no chain of blocks to match", "name layers with `layer_pairs` STUDENT=TEACHER"
        )
    return blocks


def _multiplies(layer: nn.Module) -> bool:
    return any(parameter.dim() > 1 for parameter in layer.parameters())


def named_pairs(patterns: Sequence[str], student: nn.Module, teacher: nn.Module) -> Pairs:
    """Pairs as the user wrote them: ``layer?=encoder.layer.*``, equally many on both sides, in order.

    Raises:
        UsageError: Not of that form, a side matches nothing, or the sides match different numbers of layers.
    """
    found: Pairs = []
    for pattern in patterns:
        left, equals, right = pattern.partition("=")
        if not (left and equals and right):
            raise UsageError(f"`layer_pairs` {pattern}: expected STUDENT=TEACHER", "for example layer1=layer1")
        sides = [_matching(left, student, "student"), _matching(right, teacher, "teacher")]
        if len(sides[0]) != len(sides[1]):
            raise UsageError(
                f"`layer_pairs` {pattern}: {len(sides[0])} layers of the student ({listing(sides[0])}) "
                f"and {len(sides[1])} of the teacher ({listing(sides[1])})",
                "as many on both sides are needed",
            )
        found += zip(*sides, strict=True)
    return found


def _matching(pattern: str, module: nn.Module, whose: str) -> list[str]:
    known = [name for name, _ in module.named_modules() if name]
    found = [name for name in known if matches(name, (pattern,))]
    if not found:
        raise UsageError(f"`layer_pairs`: no layer of the {whose} matches '{pattern}'", f"it has {listing(known, 6)}")
    return found
