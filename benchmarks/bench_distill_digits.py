"""Handwritten digits, 100 of 1,400 with a label: a small student alone, by kd, and by standardized logits.

scikit-learn's 8×8 digits in a fixed shuffled order: 1,400 to train on, 397 to measure on. The teacher knows all labels.
Epochs, batch size and learning rate were chosen on the last 280 training images, two seeds, and are the same for all.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from harness import Bench, workplace
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from compresskit import method
from compresskit.data.opening import open_source
from compresskit.model import Card, InputSpec, Model
from compresskit.stage import Context
from compresskit.train.digits_net import Net
from compresskit.train.loop import fit
from compresskit.train.plan import Training

INPUTS = (InputSpec("input", "float32", ("batch", 1, 8, 8)),)
CARD = Card("torch", inputs=INPUTS, task="classification")
TRAIN, LABELLED = 1400, 100
EPOCHS = 30
CASES = {
    "alone, on the labels": ("kd", {"teacher_share": 0.0, "epochs": EPOCHS * TRAIN // LABELLED}),
    "kd": ("kd", {"epochs": EPOCHS}),
    "standardized": ("standardized", {"epochs": EPOCHS}),
}
KNOWN = {"alone, on the labels": 0.875, "kd": 0.963, "standardized": 0.97}
BAR = 0.97


def student(seed: int) -> nn.Module:
    """Two convolutions, 1.5 thousand parameters."""
    torch.manual_seed(100 + seed)
    layers: list[nn.Module] = []
    for inside, outside in ((1, 8), (8, 16)):
        layers += [nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()]
    return nn.Sequential(
        *layers[:3], nn.MaxPool2d(2), *layers[3:], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    )


def teacher(x: torch.Tensor, y: torch.Tensor, seed: int) -> Model:
    """The demo's net at half its width, on all labels."""
    torch.manual_seed(seed)
    module = Net(48)
    fit(module, [x, y], lambda net, part: cross_entropy(net(part[0]), part[1]), training=Training(10, seed=seed))
    return Model(module, CARD, Path("teacher"))


def accuracy(module: nn.Module | Path, x: torch.Tensor, y: torch.Tensor) -> float:
    assert isinstance(module, nn.Module)
    with torch.no_grad():
        return float((module(x).argmax(1) == y).float().mean())


def main() -> None:
    bench = Bench("digits, 100 labels and 1300 without", __doc__ or "")
    torch.set_num_threads(1)
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x = (digits.images[order, None] / 8 - 1).astype(np.float32)
    y = digits.target[order].astype(np.int64)
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    seeds = range(1 if bench.quick else 5)
    found: dict[str, list[float]] = {"teacher": [], **{case: [] for case in CASES}}
    with workplace() as folder:
        some = np.where(np.arange(TRAIN) < LABELLED, y[:TRAIN], -1)
        np.savez(folder / "all.npz", x=x[:TRAIN], y=some)
        np.savez(folder / "labelled.npz", x=x[:LABELLED], y=y[:LABELLED])
        for seed in seeds:
            taught_by = teacher(inputs[:TRAIN], labels[:TRAIN], seed)
            found["teacher"].append(accuracy(taught_by.body, inputs[TRAIN:], labels[TRAIN:]))
            for case, (name, options) in CASES.items():
                data = folder / ("labelled.npz" if options.get("teacher_share") == 0 else "all.npz")
                ctx = Context(folder, open_source(str(data), inputs=INPUTS), seed=seed, teacher=taught_by)
                stage = method(f"distill.{name}", batch_size=32, **options)
                made = stage.run(Model(student(seed), CARD, Path("student")), ctx)
                found[case].append(accuracy(made.body, inputs[TRAIN:], labels[TRAIN:]))
    means = {case: float(np.mean(values)) for case, values in found.items()}
    ordered = means["alone, on the labels"] < means["kd"] <= means["standardized"]
    for case, values in found.items():
        known = KNOWN.get(case)
        passed = ordered and means[case] >= BAR if case == "standardized" else None
        deviation = f"sd {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
        bar = f"≥ {BAR:g}, last" if case == "standardized" else f"{known:g} known" if known else ""
        bench.row(case, bar, f"{means[case]:.4f}", len(values), deviation, passed)
    bench.end()


if __name__ == "__main__":
    main()
