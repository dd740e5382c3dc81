"""A supernet: its subnets, taken out without training, against the same models trained alone for the same epochs.

``distill --method supernet`` trains the original once, ``prune --method subnet`` takes the subnets out. Each of the
models they are held against is the same cut of the original (channels, blocks and weights), trained on by ``distill
--method kd`` with the same teacher, epochs, batches and rate. Digits: scikit-learn's, 1,400 to train on, 397 to
measure on, the demo's net at a third of its width. ResNet-20 has one seed and 8,000 of the training images. Nothing
was chosen by the test images.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar import NORMALIZE
from harness import ROOT, Bench, workplace
from torch import nn
from torch.nn.functional import cross_entropy

from compresskit import method
from compresskit.checkpoint.load import load
from compresskit.data.opening import open_source
from compresskit.model import Card, InputSpec, Model
from compresskit.stage import Context
from compresskit.train.digits_net import Net
from compresskit.train.loop import fit
from compresskit.train.settings import Training

Accuracy = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Case:
    """One original.

    Attributes:
        subnets: Widths and numbers of dropped blocks.
        bar: Points that a subnet may lack.
        supernet: Options of that training alone.
        training: Those of both.
    """

    subnets: Sequence[tuple[float, int]]
    bar: float
    supernet: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


DIGITS = Case(((0.75, 0), (0.5, 0), (0.25, 0)), 0.5, training={"epochs": 20})
RESNET = Case(
    ((0.5, 3), (0.75, 2)),
    1.5,
    {"min_width": 0.5, "min_depth": 4},
    {"epochs": 5, "train_samples": 8000, "batch_size": 128, "optimizer": "muon", "held_out": 0},
)
SEEDS = 5


def main() -> None:
    bench = Bench("supernet", __doc__ or "", data=True)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    with workplace() as folder:
        if bench.wants("digits"):
            digits(bench, folder)
        if bench.wants("ResNet-20"):
            resnet20(bench, folder)
    bench.end()


def digits(bench: Bench, folder: Path) -> None:
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    x, y = (found.images[order, None] / 8 - 1).astype(np.float32), found.target[order].astype(np.int64)
    np.savez(folder / "digits.npz", x=x[:1400], y=y[:1400])
    inputs = (InputSpec("x", "float32", ("batch", 1, 8, 8)),)
    data = open_source(str(folder / "digits.npz"), inputs=inputs)
    measured = on(torch.from_numpy(x[1400:]), torch.from_numpy(y[1400:]))
    results: list[dict[str, float]] = []
    for seed in range(1 if bench.quick else SEEDS):
        torch.manual_seed(seed)
        net = Net(32)
        train = [torch.from_numpy(x[:1400]), torch.from_numpy(y[:1400])]
        fit(net, train, lambda m, part: cross_entropy(m(part[0]), part[1]), training=Training(10, seed=seed))
        torch.save(net.state_dict(), folder / "digits.pt")
        original = Model(net, Card("torch", inputs=inputs, task="classification"), folder / "digits.pt")
        results.append(compared(original, DIGITS, Context(folder, data, seed=seed), measured))
    rows(bench, "digits", DIGITS, results)


def resnet20(bench: Bench, folder: Path) -> None:
    train, test = bench.data("cifar10", "train.npz"), bench.data("cifar10", "test.npz")
    original = load(
        bench.data("models", "resnet20.th"),
        arch=f"{ROOT / 'examples' / 'cifar_resnet.py'}:resnet20",
        input_shape=(1, 3, 32, 32),
    )
    inputs = original.card.inputs
    batches = list(open_source(str(test), normalize=NORMALIZE, inputs=inputs).batches(1000))
    pictures = torch.cat([torch.from_numpy(next(iter(batch.inputs.values()))) for batch in batches])
    labels = torch.cat([torch.from_numpy(batch.targets) for batch in batches if batch.targets is not None])
    data = open_source(str(train), normalize=NORMALIZE, inputs=inputs)
    kept = os.environ.get("SUPERNET_STATE")  # a folder, from which a killed run goes on
    case = RESNET
    if bench.quick:
        case = replace(case, training=case.training | {"epochs": 1, "train_samples": 2000})
    result = compared(original, case, Context(folder, data), on(pictures, labels), Path(kept) if kept else None)
    rows(bench, "ResNet-20", case, [result])


def on(x: torch.Tensor, y: torch.Tensor) -> Accuracy:
    """Measures a module in eval mode: accuracy in %."""

    def accuracy(module: nn.Module) -> float:
        with torch.no_grad():
            right = sum(int((module(a).argmax(1) == b).sum()) for a, b in zip(x.split(500), y.split(500), strict=True))
        return 100 * right / len(y)

    return accuracy


def compared(
    original: Model, case: Case, ctx: Context, measured: Accuracy, state: Path | None = None
) -> dict[str, float]:
    """Accuracies and minutes of one seed, by what was measured."""

    def trained(name: str, model: Model, context: Context, **options: Any) -> tuple[Model, float]:
        begun = time.monotonic()
        where = {"checkpoint": state / name} if state else {}
        way = "supernet" if name == "supernet" else "kd"
        found = method(f"distill.{way}", **case.training, **options, **where).run(model, context)
        return found, (time.monotonic() - begun) / 60

    found = {"original": measured(original.module.eval())}
    supernet, minutes = trained("supernet", copied(original), ctx, **case.supernet)
    found |= {"whole": measured(supernet.module), "supernet minutes": minutes}
    print(f"  {found}", flush=True)
    for width, drop in case.subnets:
        stage = method("prune.subnet", width=width, drop=drop)
        subnet = stage.run(copied(supernet), ctx)
        name = f"width {width:g}" + (f", {drop} blocks fewer" if drop else "")
        same = stage.run(copied(replace(original, card=supernet.card)), ctx)
        alone, minutes = trained(name, same, replace(ctx, teacher=copied(original)), teacher="original")
        found |= {
            f"{name}, taken out": measured(subnet.module), f"{name}, alone": measured(alone.module),
            f"{name}, macs": subnet.card.history[-1].facts["share"]["macs"], f"{name}, minutes": minutes,
        }  # fmt: skip
        print(f"  {found}", flush=True)
    return found


def copied(model: Model) -> Model:
    """The same with a module of its own."""
    return replace(model, body=copy.deepcopy(model.module))


def rows(bench: Bench, name: str, case: Case, results: list[dict[str, float]]) -> None:
    """The figures of all seeds."""
    samples = case.training.get("train_samples")
    length = f"{case.training['epochs']} epochs" + (f" of {samples:,} images" if samples else "")

    def values(key: str) -> list[float]:
        return [result[key] for result in results]

    bench.row(
        f"{name}, original", "", f"{np.mean(values('original')):.2f} %", len(results), deviation(values("original"))
    )
    about = f"{np.mean(values('supernet minutes')):.1f} min"
    bench.row(f"{name}, {length}, whole supernet", "", f"{np.mean(values('whole')):.2f} %", len(results), about)
    for key in [key.removesuffix(", alone") for key in results[0] if key.endswith(", alone")]:
        taken, alone = values(f"{key}, taken out"), values(f"{key}, alone")
        lacks = [b - a for a, b in zip(taken, alone, strict=True)]
        about = f"{100 * results[0][f'{key}, macs']:.0f} % of the MACs; sd {np.std(lacks, ddof=len(lacks) > 1):.2f}"
        bench.row(f"{name}, {length}, {key}, taken out", "", f"{np.mean(taken):.2f} %", len(taken), deviation(taken))
        bench.row(
            f"{name}, {length}, {key}, trained alone", "", f"{np.mean(alone):.2f} %", len(alone), deviation(alone)
        )
        lack = float(np.mean(lacks))
        bench.row(
            f"{name}, {length}, {key}, lacks",
            f"≤ {case.bar} pt",
            f"{lack:+.2f} pt",
            len(lacks),
            about,
            lack <= case.bar,
        )


def deviation(values: list[float]) -> str:
    return f"sd {np.std(values, ddof=1):.2f}" if len(values) > 1 else "one seed"


if __name__ == "__main__":
    main()
