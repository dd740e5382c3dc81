"""Features between layers: seen in a student and its teacher, projected, and compared."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresskit.errors import InputError
from compresskit.ops.calibration.trace import tensors_in
from compresskit.ops.distill.outputs import relative_distance


class Tapped(nn.Module):
    """A module that gives the outputs of some of its layers beside its own, each through a projection.

    Called as the module is; gives ``(output, features)``. The projections are trained with it and thrown away.

    Args:
        module: Any module.
        names: Dotted names of its layers; each is called once in a forward pass, or its last call counts.
        projections: One a layer; None leaves the features as they are.
    """

    def __init__(self, module: nn.Module, names: Sequence[str], projections: Sequence[nn.Module] | None = None) -> None:
        super().__init__()
        self.module = module
        self.config = getattr(module, "config", None)  # callers of a language model look for its switches there
        self.names = tuple(names)
        self.projections = nn.ModuleList(projections or [nn.Identity() for _ in names])

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, list[Tensor]]:
        """One pass of the module, and what its layers gave.

        Raises:
            InputError: A layer was not called, or gives no tensor.
        """
        seen: dict[str, Tensor] = {}
        handles = [
            self.module.get_submodule(name).register_forward_hook(partial(_keep, seen, name)) for name in self.names
        ]
        try:
            out = self.module(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        missing = next((name for name in self.names if name not in seen), None)
        if missing is not None:
            raise InputError(f"the layer '{missing}' gives no tensor in a forward pass", "pair another layer")
        return out, [project(seen[name]) for name, project in zip(self.names, self.projections, strict=True)]


def _keep(seen: dict[str, Tensor], name: str, _layer: nn.Module, _given: Any, out: Any) -> None:
    tensor = next(tensors_in(out), None)
    if tensor is not None:
        seen[name] = tensor


class Projection(nn.Module):
    """Brings features to the teacher's width with one matrix.

    "FitNets: Hints for Thin Deep Nets" (Romero et al., 2015).

    Args:
        given: Width of the features.
        wanted: The teacher's; where it is the same, features pass as they are.
        maps: Features are images ``(n, width, …)``; else ``(…, width)``.
    """

    def __init__(self, given: int, wanted: int, *, maps: bool) -> None:
        super().__init__()
        self.maps = maps
        self.align: nn.Module = nn.Identity() if given == wanted else nn.Linear(given, wanted, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Features in the teacher's width, in the layout they came in."""
        if isinstance(self.align, nn.Identity) or not self.maps:
            return self.align(features)  # type: ignore[no-any-return]
        return self.align(features.movedim(1, -1)).movedim(-1, 1)  # type: ignore[no-any-return]


class Generator(nn.Module):
    """Makes the teacher's features from the student's with some of them hidden.

    A student whose features tell what stands beside them has learnt more than one that copies: "Masked Generative
    Distillation" (Yang et al., 2022), whose masks of positions are taken for all kinds of features.

    Args:
        given: Width of the features.
        wanted: The teacher's.
        hidden: Share of the positions that is hidden in training, from 0 to below 1.
        maps: Features are images ``(n, width, h, w)``, and neighbours are looked at; else ``(…, width)``.
    """

    def __init__(self, given: int, wanted: int, hidden: float, *, maps: bool) -> None:
        super().__init__()
        self.project = Projection(given, wanted, maps=maps)
        self.hidden, self.maps = hidden, maps
        layers = [nn.Conv2d(wanted, wanted, 3, padding=1) if maps else nn.Linear(wanted, wanted) for _ in range(2)]
        self.generate = nn.Sequential(layers[0], nn.ReLU(), layers[1])

    def forward(self, features: Tensor) -> Tensor:
        """What the teacher's features should be."""
        features = self.project(features)
        if self.training and self.hidden:
            shape = (len(features), 1, *features.shape[2:]) if self.maps else (*features.shape[:-1], 1)
            features = features * (torch.rand(shape, device=features.device) >= self.hidden)
        return self.generate(features)  # type: ignore[no-any-return]


def projections(
    student: Sequence[Tensor], teacher: Sequence[Tensor], names: Sequence[tuple[str, str]], hidden: float | None = None
) -> list[nn.Module]:
    """What brings each of the student's features to the form of the teacher's.

    Args:
        student: Features of one batch: images ``(n, width, h, w)``, tokens ``(n, L, width)`` or vectors ``(n, width)``.
        teacher: The teacher's of the same batch, in the same order and of the same number of axes.
        names: What they are called, for the message.
        hidden: Share of the positions that a :class:`Generator` is not shown; None takes a plain :class:`Projection`.

    Raises:
        InputError: Features of different kinds, or tokens of different numbers.
    """
    found: list[nn.Module] = []
    for mine, wanted, (one, other) in zip(student, teacher, names, strict=True):
        maps = mine.dim() == 4
        fits = mine.dim() == wanted.dim() in (2, 3, 4) and (mine.dim() != 3 or mine.shape[1] == wanted.shape[1])
        if not fits:
            raise InputError(
                f"features of the student's '{one}' are {tuple(mine.shape)}, of the teacher's '{other}' "
                f"{tuple(wanted.shape)}",
                "pair layers of the same kind with `layer_pairs` STUDENT=TEACHER",
            )
        axis = 1 if maps else -1
        sizes = mine.shape[axis], wanted.shape[axis]
        found.append(Projection(*sizes, maps=maps) if hidden is None else Generator(*sizes, hidden, maps=maps))
    return found


def feature_distance(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
    """Mean over the layers of the squared distance, in units of the teacher's own spread.

    Args:
        student: Projected features, as :func:`projections` takes them.
        teacher: The teacher's; images of another size are averaged to the student's.
        mask: Boolean ``(n, L)``, true at tokens, for features ``(n, L, width)``; None is everywhere.

    Returns:
        A scalar of at least 0.
    """
    distances = []
    for mine, wanted in zip(student, teacher, strict=True):
        if mine.dim() == 4:
            height, width = mine.shape[2:]
            resized = F.adaptive_avg_pool2d(wanted, (height, width))
            distances.append(relative_distance(mine.movedim(1, -1), resized.movedim(1, -1)))
        else:
            distances.append(relative_distance(mine, wanted, mask if mine.dim() == 3 else None))
    return torch.stack(distances).mean()
