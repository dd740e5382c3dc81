"""Rotated weights against plain ones: KL divergence from float32 of stories260k and a trained Llama.

The Llama of 5.8 M parameters is that of ``bench_language.py`` (``--keep`` names the folder where it lies). Both models
share the weight of embeddings and head, and rotation parts them: so a third model is measured, whose head has a weight
of its own and that isn't rotated. Its value is the bar of the rotated one. Divergence is the mean over the next tokens
of all positions, in windows of 256 tokens; modules run in torch with the values of their codes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from harness import Bench, workplace
from small_llama import trained

STEPS, WINDOWS, LENGTH = 900, 40, 256
SEEDS = (0, 1, 2)
CASES = [
    ("rtn", 4, 32), ("rtn", 3, 32), ("rtn", 2, 32), ("gptq", 4, 32), ("gptq", 3, 32), ("gptq", 2, 32), ("rtn", 4, 0),
    ("gptq", 4, 0),
]  # fmt: skip


def main() -> None:
    bench = Bench("rotation", __doc__ or "", data=True, keep=True)
    stories = wanted(bench, "stories260k")
    if stories:
        tokens = np.load(bench.data("text", "tinystories_eval.npz"))["input_ids"]
        calibration = bench.data("text", "tinystories_calib.npz")
        measure(bench, stories, bench.data("models", "stories260k"), tokens[:WINDOWS], calibration)
    larger = wanted(bench, "trained Llama")
    if larger:
        from transformers import AutoTokenizer

        with bench.kept() as place:
            model = trained(place, bench.data("text"), 2 if bench.quick else STEPS)
            text = (place / "held_out.txt").read_text(encoding="utf-8")
            tokens = np.array(AutoTokenizer.from_pretrained(model)(text)["input_ids"])
            windows = tokens[: len(tokens) // LENGTH * LENGTH].reshape(-1, LENGTH)
            windows = windows[:: len(windows) // WINDOWS][:WINDOWS]
            measure(bench, larger, model, windows, place / "learnt.txt")
    bench.end()


def wanted(bench: Bench, name: str) -> dict[str, tuple[str, int, int]]:
    """The cases of a model that are to be run, by what they are called."""
    named = {f"{name}, {m} {bits} bit, {f'group {g}' if g else 'a scale a row'}": (m, bits, g) for m, bits, g in CASES}
    found = {case: how for case, how in named.items() if bench.wants(case)}
    return dict(list(found.items())[: 1 if bench.quick else None])


def measure(
    bench: Bench, cases: dict[str, tuple[str, int, int]], folder: Path, windows: np.ndarray, calibration: Path
) -> None:
    """Some cases of a model."""
    import torch

    import compresskit

    ids = torch.from_numpy(windows[: 4 if bench.quick else None]).long()
    original = scores(compresskit.load(folder).module, ids)
    for case, (method, bits, group) in cases.items():

        def divergence(seed: int | None, *, untied: bool = False) -> float:
            options = {"bits": bits, "group_size": group, "rotate": seed is not None}  # noqa: B023
            module = quantized(folder, method, options, calibration, seed or 0, untied=untied)  # noqa: B023
            return float((original.exp() * (original - scores(module, ids))).sum(-1).mean())

        bench.row(f"{case}, KL divergence, plain", "", f"{divergence(None):.4f}", len(ids))
        parted = divergence(None, untied=True)
        bench.row(f"{case}, KL divergence, plain with a head of its own", "", f"{parted:.4f}", len(ids))
        found = [divergence(seed) for seed in SEEDS]
        spread = f"{min(found):.4f} to {max(found):.4f}, {len(found)} seeds"
        mean = float(np.mean(found))
        bench.row(f"{case}, KL divergence, rotated", f"< {parted:.4f}", f"{mean:.4f}", len(ids), spread, mean < parted)


def scores(module: Any, ids: Any) -> Any:
    """Log probabilities of the next token, float32 ``(windows, tokens, vocabulary)``."""
    import torch

    with torch.inference_mode():
        return torch.cat([module(input_ids=window[None]).logits.log_softmax(-1) for window in ids])


def quantized(folder: Path, method: str, options: dict[str, Any], calibration: Path, seed: int, *, untied: bool) -> Any:
    """A module with packed layers."""
    from torch import nn

    import compresskit
    from compresskit.data.opening import open_source
    from compresskit.stage import Context

    model = compresskit.load(folder)
    module: Any = model.module
    if untied:
        module.lm_head.weight = nn.Parameter(module.lm_head.weight.detach().clone())
    data = None
    if method == "gptq":
        data = open_source(
            str(calibration), tokenizer=folder, sequence=LENGTH, inputs=model.card.inputs, task="causal-lm"
        )
    with workplace() as work:
        return compresskit.method(f"quantize.{method}", **options).run(model, Context(work, data, seed=seed)).module


if __name__ == "__main__":
    main()
