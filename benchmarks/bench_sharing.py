"""Sharing: palettes on ResNet-20, digits turned by quarters, and MiniLM with tied layers.

Palettes: ResNet-20 on CIFAR-10 with weights as palettes of 4 and 3 bits, against rounding to nearest at equal bytes, by
``compresskit quantize``: accuracy of the shipped ONNX file on the test images. Palettes see 512 training images without
labels; rounding sees none. Nothing is trained. Bytes are those of the file.

Digits: the demo's network at half its width, trained for ten epochs on 1,400 of scikit-learn's upright digits, made
symmetric under quarter turns by ``compresskit share --method symmetrize`` (averaged outputs, or tied kernels), and
trained on the same upright digits against itself and the labels. The other 397 are measured upright and turned by 90,
180 and 270 degrees; invariance is that of the ONNX file's logits, the norm of their change over their norm.

MiniLM: pairs of its six layers tied by ``compresskit share``, then one epoch on lines and single sentences of
WikiText-2's validation split against the whole model, one thread. Cosine of pooled embeddings on 200 lines of the test
split, Spearman on STS-B's test part.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
from bench_distill_minilm import sentences
from bench_minilm import LINES, TOKENS, plain_lines
from cifar import NORMALIZE
from harness import Bench, cli, figure, interval, megabytes, minilm, workplace

LEAST = {4: 91.3, 3: 89.5}
SAMPLES = 512
PALETTES, TURNED, TIED = "palette", "digits turned by quarters", "MiniLM in pairs"
TRAIN, WIDTH = 1400, 48
MOST_CHANGED, LEAST_OF_UPRIGHT, MOST_MINUTES, MOST_BYTES = 1e-5, 95, 5, 60


def main() -> None:
    bench = Bench("Sharing", __doc__ or "", data=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if bench.wants(PALETTES):
        for bits in (4, 3):
            palettes(bench, bits)
    if bench.wants(TURNED):
        turned(bench)
    if bench.wants(TIED):
        tied(bench)
    bench.end()


def palettes(bench: Bench, bits: int) -> None:
    samples = 32 if bench.quick else SAMPLES
    given = ("--data", bench.data("cifar10", "train.npz"), "--samples", samples)
    found, size, minutes = quantized(bench, "palette", bits, *given)
    rounded, rounded_size, _ = quantized(bench, "rtn", bits)
    name, least = f"ResNet-20 palette of {bits} bits, {SAMPLES} images", LEAST[bits]
    bench.row(
        f"{name}, accuracy", f"≥ {least} %", f"{found.value:.3f} %", found.n,
        f"{interval(found)}; {size / 1e3:.0f} kB, {minutes:.1f} min", found.value >= least,
    )  # fmt: skip
    bench.row(
        f"{name}, over rtn", "> 0 pt at equal bytes", f"{found.value - rounded.value:+.3f} pt", found.n,
        f"rtn {rounded.value:.3f} %, {rounded_size / size:.3f} of the bytes",
        found.value > rounded.value and size <= 1.01 * rounded_size,
    )  # fmt: skip


def quantized(bench: Bench, method: str, bits: int, *options: object):
    """Accuracy of the shipped file, its bytes, and minutes of the command."""
    with workplace() as folder:
        start = time.perf_counter()
        report = cli(
            "quantize", bench.data("models", "resnet20.th"), "--arch", "examples/cifar_resnet.py:resnet20",
            "--input-shape", "1,3,32,32", "--method", method, "--bits", bits, *options,
            "--eval-data", bench.data("cifar10", "test.npz"), "--normalize", NORMALIZE, "--no-bench",
            "-o", folder / "out",
        )  # fmt: skip
        minutes = (time.perf_counter() - start) / 60
    return figure(report, "accuracy"), report.models[-1].bytes, minutes


def turned(bench: Bench) -> None:
    """Averaged outputs and tied kernels, each without and with training."""
    with workplace() as folder:
        known = ("--input-shape", "1,1,8,8", "--arch", "compresskit.train.digits_net:Net")
        known += ("--arch-args", json.dumps({"width": WIDTH}))
        digits(folder, 1 if bench.quick else 10)
        cli("export", folder / "net.pt", *known, "-o", folder / "net.onnx")
        first, later = (score(folder / "net.onnx", folder / f"{name}.npz") for name in ("upright", "around"))
        bench.row(f"{TURNED}, the original, accuracy", "", f"{later:.2f} %", 3 * 397, f"upright {first:.2f} %")
        for form, epochs, options in (("average", 3, ("--lr", 0.02)), ("tie", 20, ("--lr", 0.05, "--recalibrate"))):
            training = ("--epochs", 1 if bench.quick else epochs, "--batch-size", 64, *options)
            for name, more in (("no training", ()), (f"{epochs} epochs", training)):
                start = time.perf_counter()
                cli(
                    "share", folder / "net.pt", *known, "--method", "symmetrize", "--group", "c4", "--form", form,
                    "--data", folder / "train.npz", *more, "--no-bench", "-o", folder / form, "--force",
                )  # fmt: skip
                minutes = (time.perf_counter() - start) / 60
                least = LEAST_OF_UPRIGHT * first / 100 if more and minutes <= MOST_MINUTES else None
                symmetric(bench, f"{TURNED}, {form}, {name}", folder, form, least)
            speed = figure(cli("bench", folder / "net.onnx", folder / form, "--threads", 1), "speedup")
            bench.row(f"{TURNED}, {form}, speed", "", f"{speed.value:.2f}×", speed.n, interval(speed))


def symmetric(bench: Bench, case: str, folder: Path, form: str, least: float | None) -> None:
    """Accuracy on turned digits, and how much turns change the logits."""
    found, straight = (score(folder / form, folder / f"{name}.npz") for name in ("around", "upright"))
    change = changed(folder / form / "model.onnx", folder / "upright.npz")
    bar = "" if least is None else f"≥ {LEAST_OF_UPRIGHT} % of the upright original's"
    bench.row(
        f"{case}, accuracy", bar, f"{found:.2f} %", 3 * 397, f"upright {straight:.2f} %",
        None if least is None else found >= least,
    )  # fmt: skip
    bench.row(
        f"{case}, change of the logits", f"≤ {MOST_CHANGED:g}", f"{change:.1e}", 3 * 397, "the largest",
        change <= MOST_CHANGED,
    )  # fmt: skip


def digits(folder: Path, epochs: int) -> None:
    """A trained network as net.pt; files of upright test digits, of turned ones (around), and of training digits."""
    import torch
    from sklearn.datasets import load_digits
    from torch.nn.functional import cross_entropy

    from compresskit.train.digits_net import Net
    from compresskit.train.loop import fit
    from compresskit.train.settings import Training

    torch.set_num_threads(1)
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    x = (found.images[order, None] / 8 - 1).astype(np.float32)
    y = found.target[order].astype(np.int64)
    torch.manual_seed(0)
    module, parts = Net(WIDTH), [torch.from_numpy(x[:TRAIN]), torch.from_numpy(y[:TRAIN])]
    fit(module, parts, lambda net, part: cross_entropy(net(part[0]), part[1]), training=Training(epochs, seed=0))
    torch.save(module.state_dict(), folder / "net.pt")
    test, names = x[TRAIN:], ("upright", "around", "train")
    moved = np.concatenate([np.rot90(test, k, (2, 3)) for k in (1, 2, 3)])
    labels = (y[TRAIN:], np.tile(y[TRAIN:], 3), y[:TRAIN])
    for name, images, classes in zip(names, (test, moved, x[:TRAIN]), labels, strict=True):
        np.savez(folder / f"{name}.npz", x=images, y=classes)


def score(model: Path, data: Path) -> float:
    """Accuracy in percent."""
    return figure(cli("evaluate", model, "--data", data), "accuracy").value


def changed(model: Path, data: Path) -> float:
    """The largest relative change of an ONNX file's logits by a quarter turn, a half one and one back."""
    import onnxruntime

    session, x = onnxruntime.InferenceSession(model), np.load(data)["x"]
    name = session.get_inputs()[0].name
    plain, *others = (session.run(None, {name: np.ascontiguousarray(np.rot90(x, k, (2, 3)))})[0] for k in range(4))
    size = np.linalg.norm(plain, axis=1)
    return max(float((np.linalg.norm(other - plain, axis=1) / size).max()) for other in others)


def tied(bench: Bench) -> None:
    """Size, cosine and STS-B of MiniLM with each two of its layers made one, distilled."""
    model, pairs = minilm(), bench.data("text", "stsb-en-test.csv")
    with workplace() as folder:
        train, lines, out = folder / "train.txt", folder / "lines.txt", folder / "out"
        texts = plain_lines(bench.data("text", "wikitext2_valid.txt"))[: 64 if bench.quick else None]
        train.write_text("\n".join([*texts, *sentences(texts)]), encoding="utf-8")
        test = plain_lines(bench.data("text", "wikitext2_test.txt"))[: 20 if bench.quick else LINES]
        lines.write_text("\n".join(test), encoding="utf-8")
        whole = folder / "minilm.onnx"
        cli("export", model, "-o", whole)
        start = time.perf_counter()
        cli(
            "share", model, "--method", "tie", "--epochs", 1, "--batch-size", 32, "--lr", 5e-4, "--precision",
            "bfloat16", "--data", train, "--sequence", TOKENS, "--no-bench", "-o", out,
        )  # fmt: skip
        minutes = (time.perf_counter() - start) / 60
        percent = 100 * megabytes(out / "model.onnx") / megabytes(whole)
        told = f"{megabytes(out / 'model.onnx'):.1f} MB, {minutes:.1f} min"
        bench.row(
            f"{TIED}, size of model.onnx", f"≤ {MOST_BYTES} %", f"{percent:.0f} %", 1, told, percent <= MOST_BYTES
        )
        cosine = figure(cli("compare", model, out, "--data", lines, "--sequence", TOKENS, "--no-bench"), "cosine")
        bench.row(f"{TIED}, mean cosine of pooled embeddings", "", f"{cosine.value:.4f}", cosine.n, interval(cosine, 4))
        if not bench.quick:
            found = figure(cli("compare", model, out, "--data", pairs, "--no-bench"), "spearman")
            bench.row(f"{TIED}, STS-B test, Spearman ×100", "", f"{found.value:.2f}", found.n, interval(found))


if __name__ == "__main__":
    main()
