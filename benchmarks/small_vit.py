"""Trains the vision transformer of ``examples/cifar_vit.py`` on CIFAR-10: 24 minutes on one core.

It learns from the labels and, as DeiT does, from a convolutional teacher, ResNet-20, which sees the same crops. In the
first epochs half of the patches are left out at random, which halves the time (Liu et al., "PatchDropout", 2023); in
the last ones it sees them all. A state is kept after each epoch, where a killed training goes on.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
HALF, EPOCHS, BATCH, RATE = 4, 5, 128, 1.5e-3
"""Epochs on half of the patches, and all; images a step; the largest learning rate."""
_MEAN, _STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def trained(data: Path, teacher: Path, out: Path) -> Path:
    """The file of a trained model; what was trained before is not trained again.

    Args:
        data: ``x`` as uint8 ``(n, 32, 32, 3)`` and the labels ``y``.
        teacher: ResNet-20's state dict.
        out: Folder where the model and the training's state lie.
    """
    from cifar_vit import vit

    model, state = out / "vit.pt", out / "state.pt"
    if model.exists():
        return model
    out.mkdir(parents=True, exist_ok=True)
    with np.load(data) as arrays:
        x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"]).long()
    torch.manual_seed(0)
    student: Any = vit()
    steps = EPOCHS * (len(x) // BATCH)
    optimizer: Any = torch.optim.AdamW(student.parameters(), lr=RATE, weight_decay=0.05, betas=(0.9, 0.98))
    schedule: Any = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.27)
    start = 0
    if state.exists():
        found = torch.load(state, weights_only=True)
        for part, value in zip((student, optimizer, schedule), found["parts"], strict=True):
            part.load_state_dict(value)
        start = found["epoch"]
        torch.manual_seed(start)
    shown = _teacher(teacher)
    for epoch in range(start, EPOCHS):
        made = torch.Generator().manual_seed(epoch)
        since, losses = time.process_time(), []
        order = torch.randperm(len(x), generator=made)
        few = student.blocks[0].register_forward_pre_hook(_half) if epoch < HALF else None
        for rows in torch.split(order[: len(x) // BATCH * BATCH], BATCH):
            losses.append(_step(student, shown, _augmented(x[rows], made), y[rows], optimizer))
            schedule.step()
        if few is not None:
            few.remove()
        seconds = time.process_time() - since
        print(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.3f}, {seconds:.0f} s of CPU time", flush=True)
        parts = [part.state_dict() for part in (student, optimizer, schedule)]
        torch.save({"epoch": epoch + 1, "parts": parts}, state)
    torch.save(student.state_dict(), model)
    return model


def _teacher(path: Path) -> nn.Module:
    from cifar_resnet import resnet20

    module = resnet20()
    stored = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    module.load_state_dict({name.removeprefix("module."): value for name, value in stored.items()})
    return module.eval()


def _half(_block: nn.Module, given: tuple[Tensor]) -> Tensor:
    """The class token and a random half of the patches, the same for all images of a step."""
    tokens = given[0].shape[1]
    return given[0][:, torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(tokens - 1)[: tokens // 2]])]


def _augmented(x: Tensor, made: torch.Generator) -> Tensor:
    """Each image moved by up to four pixels, and half of them mirrored."""
    images = F.pad((x / 255 - _MEAN).div(_STD).permute(0, 3, 1, 2), (4, 4, 4, 4))
    n = len(x)
    down, right = torch.randint(9, (2, n, 1), generator=made) + torch.arange(32)
    right = torch.where(torch.rand(n, 1, generator=made) < 0.5, right, right.flip(1))
    return images[torch.arange(n)[:, None, None], :, down[:, :, None], right[:, None, :]].permute(0, 3, 1, 2)


def _step(student: nn.Module, teacher: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer) -> float:
    x = x.contiguous()
    # the fused kernel's gradient is slow on CPUs
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        with torch.no_grad():
            shown = teacher(x).float()
        scores = student(x)
    scores = scores.float()
    soft = F.kl_div(F.log_softmax(scores / 2, 1), F.log_softmax(shown / 2, 1), log_target=True, reduction="batchmean")
    loss = F.cross_entropy(scores, y) + 4 * soft
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    return loss.item()


if __name__ == "__main__":
    shared, kept = map(Path, sys.argv[1:])
    trained(shared / "cifar10" / "train.npz", shared / "models" / "resnet20.th", kept)
