"""Crops and mirrored images."""

from __future__ import annotations

import torch

from compresskit.train.augment import crop_and_flip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_crops_and_mirrors_hold_the_images_pixels() -> None:
    images = torch.arange(1.0, 2 * 3 * 5 * 5 + 1).reshape(2, 3, 5, 5).repeat(20, 1, 1, 1)
    found = crop_and_flip(images, generator(), margin=1)
    assert found.shape == images.shape
    center = images[:, :, 1:-1, 1:-1]
    for before, after in zip(center, found, strict=True):
        windows = after.unfold(1, 3, 1).unfold(2, 3, 1)
        same = [(windows == w[:, None, None]).all(-1).all(-1).all(0).any() for w in (before, before.flip(2))]
        assert any(same)
    still = crop_and_flip(images, generator(), margin=0, flip=False)
    assert torch.equal(still, images)


def test_the_seed_decides() -> None:
    images = torch.randn(16, 3, 8, 8)
    first, again, other = (crop_and_flip(images, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
