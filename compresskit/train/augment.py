"""Changes of training images that leave their class as it is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Augment = Callable[[Tensor, torch.Generator], Tensor]


def crop_and_flip(images: Tensor, generator: torch.Generator, margin: int = 4, flip: bool = True) -> Tensor:
    """Images ``(n, c, h, w)`` moved by up to ``margin`` pixels over zeros; with ``flip`` half of them mirrored.

    "Deep Residual Learning for Image Recognition" (He et al., 2016), section 4.2.
    """
    count, _, height, width = images.shape
    padded = nn.functional.pad(images, (margin,) * 4)
    down, right = torch.randint(2 * margin + 1, (2, count), generator=generator)
    mirrored = torch.rand(count, generator=generator) < (0.5 if flip else 0.0)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: only the chosen windows are copied
    moved = windows[torch.arange(count), :, down, right]
    return torch.where(mirrored[:, None, None, None], moved.flip(3), moved)
