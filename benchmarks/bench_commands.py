"""CPU seconds of whole commands: against a trace by torch and onnxruntime's quantizer, and again on the same model."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
from harness import ROOT, Bench, command, minilm, ratio, spread, workplace

PAIR = """\
import sys, torch, transformers
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
import onnx

folder, out = sys.argv[1:]
model = transformers.AutoModel.from_pretrained(folder).eval()
model.config.use_cache = False
ids = torch.ones(2, 11, dtype=torch.int64)
axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=512)}
names = ["input_ids", "attention_mask", "token_type_ids"]
torch.onnx.export(
    model, (), out, kwargs=dict.fromkeys(names, ids), dynamic_shapes=dict.fromkeys(names, axes), dynamo=True,
    input_names=names, external_data=False,
)
quantizer = MatMulNBitsQuantizer(onnx.load(out), block_size=32, is_symmetric=True, accuracy_level=4)
quantizer.process()
quantizer.model.save_model_to_file(out)
"""
"""What comes nearest to ``quantize --bits 4`` with two libraries alone; nothing is proven or measured there."""


def main() -> None:
    bench = Bench("commands", __doc__ or "", data=True)
    rounds = 1 if bench.quick else 5
    with workplace() as place:
        os.environ |= {"COMPRESSKIT_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1"}
        if bench.wants("MiniLM"):
            _minilm(bench, place, rounds)
        if bench.wants("resnet20"):
            _resnet20(bench, place, rounds)
        if bench.wants("wrong"):
            times = [_cpu(command("quantize", "no-such-model", "--bits", 5)) for _ in range(max(3, rounds))]
            _row(bench, "a quantize that fails on its options", times, 1.0)
    bench.end()


def _minilm(bench: Bench, place: Path, rounds: int) -> None:
    times: dict[str, list[float]] = {"pair": [], "first": [], "again": []}
    for number in range(rounds):
        cache = {"COMPRESSKIT_CACHE": str(place / f"cache{number}")}
        words = command(
            "quantize", minilm(), "--bits", 4, "--no-bench", "--threads", 1, "--quiet", "--force", "-o", place / "out"
        )  # fmt: skip
        times["pair"].append(_cpu([sys.executable, "-c", PAIR, str(minilm()), str(place / "pair.onnx")]))
        times["first"].append(_cpu(words, cache))
        times["again"].append(_cpu(words, cache))
    for name in times:
        _row(bench, f"MiniLM 4 bit, {name}", times[name])
    for name, bar in (("first", 1.0), ("again", 0.35)):
        value, half = ratio(times[name], times["pair"])
        bench.row(
            f"MiniLM 4 bit, {name}, over the pair", f"≤ {bar:g}×", f"{value:.2f}×", rounds, half, value <= bar
        )  # fmt: skip


def _resnet20(bench: Bench, place: Path, rounds: int) -> None:
    model = bench.data("models", "resnet20.th")
    arch = ("--arch", "examples/cifar_resnet.py:resnet20", "--input-shape", "1,3,32,32")
    for name, more, bar in (("with the bench", (), 20.0), ("without", ("--no-bench",), 10.0)):
        times = []
        for number in range(rounds):
            words = command(
                "quantize", model, *arch, "--bits", 4, *more, "--threads", 1, "--quiet", "--force", "-o", place / "out"
            )  # fmt: skip
            times.append(_cpu(words, {"COMPRESSKIT_CACHE": str(place / f"{name}{number}")}))
        _row(bench, f"resnet20 4 bit, {name}", times, bar)


def _row(bench: Bench, case: str, times: list[float], bar: float | None = None) -> None:
    middle = float(np.median(times))
    shown = "" if bar is None else f"≤ {bar:g} s"
    bench.row(case, shown, f"{middle:.1f} s", len(times), spread(times), None if bar is None else middle <= bar)


def _cpu(words: list[str], more: dict[str, str] | None = None) -> float:
    """CPU seconds of a process and of all that it starts; how it ends doesn't matter."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with Path(os.devnull).open("w") as nowhere:
        subprocess.run(words, cwd=ROOT, env=os.environ | (more or {}), stdout=nowhere, stderr=nowhere, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
