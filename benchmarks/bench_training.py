"""An epoch of ResNet-20 on CIFAR-10 in CompressKit's training loop, against a bare PyTorch loop of the same steps.

The bare loop takes rows of tensors in memory, a step of SGD with Nesterov momentum and a step of the cosine, and
nothing else. CompressKit's crops and mirrors the images too, looks at each loss, clips, and calls for progress. Both
train in this process, in turns, each on a fresh network of the same weights; the ratio is of paired turns.
"""

from __future__ import annotations

import sys
import time

import torch
from cifar import NORMALIZE
from harness import ROOT, Bench, ratio, spread
from torch import Tensor
from torch.nn.functional import cross_entropy

from compresskit.data.opening import open_source
from compresskit.train.augment import crop_and_flip
from compresskit.train.loop import fit
from compresskit.train.settings import Optimizing, Training

sys.path.insert(0, str(ROOT / "examples"))
from cifar_resnet import resnet20

BATCH, LR, DECAY, CLIP = 128, 0.1, 1e-4, 10.0
QUICK = 24 * BATCH
MOST = 1.15


def main() -> None:
    bench = Bench("training", __doc__ or "", data=True)
    source = open_source(str(bench.data("cifar10", "train.npz")), normalize=NORMALIZE)
    batch = next(source.batches(QUICK if bench.quick else len(source)))
    tensors = [torch.from_numpy(next(iter(batch.inputs.values()))), torch.from_numpy(batch.targets)]
    times: dict[str, list[float]] = {"bare": [], "own": []}
    for turn in range(3):
        for name in ("bare", "own") if turn % 2 == 0 else ("own", "bare"):
            torch.manual_seed(0)
            module = resnet20()
            start = time.perf_counter()
            (bare if name == "bare" else own)(module, tensors)
            times[name].append(time.perf_counter() - start)
    found, middle = ratio(times["own"], times["bare"])
    case = f"epoch of ResNet-20, {len(tensors[0])} images, over a bare loop without augmentation"
    bench.row(case, f"≤ {MOST}×", f"{found:.3f}×", len(times["own"]), middle, found <= MOST)
    seconds = sorted(times["own"])[1]
    bench.row("the same, time of an epoch", "", f"{seconds:.1f} s", len(times["own"]), spread(times["own"], 1))
    bench.end()


def bare(module: torch.nn.Module, tensors: list[Tensor]) -> None:
    x, y = tensors
    optimizer = torch.optim.SGD(module.parameters(), lr=LR, momentum=0.9, nesterov=True, weight_decay=DECAY)
    steps = torch.randperm(len(x))[: len(x) // BATCH * BATCH].split(BATCH)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(steps))
    module.train()
    for rows in steps:
        optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(module(x[rows]), y[rows]))
        optimizer.step()
        scheduler.step()


def own(module: torch.nn.Module, tensors: list[Tensor]) -> None:
    training = Training(1, BATCH, Optimizing(LR, "sgd", "cosine", weight_decay=DECAY), clip=CLIP)
    fit(
        module, tensors, lambda net, part: cross_entropy(net(part[0]), part[1]), training=training,
        augment=crop_and_flip,
    )  # fmt: skip


if __name__ == "__main__":
    main()
