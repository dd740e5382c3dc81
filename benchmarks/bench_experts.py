"""A small mixture of experts, trained here on letters, with half of its experts: which half is left out.

Each seed trains a Mixtral of two layers with eight experts, two a token, on the bytes of tinyshakespeare. Half of the
experts of each layer are left out as ``route --method experts`` does, chosen on 64 pieces of the training text: by gate
times norm (REAP: the mean over an expert's tokens; total: the sum), by the number of tokens, or at random (mean of five
draws). Nothing is trained afterwards. Loss is the mean cross entropy in nats on text that was not trained on; a row is
how much it grows.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from harness import Bench
from torch.nn import functional as F

SEEDS, DRAWS = 3, 5
STEPS, BATCH, LENGTH = 600, 16, 64
EXPERTS = 8


def main() -> None:
    bench = Bench("experts", __doc__ or "", data=True)
    torch.set_num_threads(1)
    letters = np.frombuffer(bench.data("text", "tinyshakespeare.txt").read_bytes(), np.uint8).astype(np.int64)
    rows: list[dict[str, float]] = []
    for seed in range(1 if bench.quick else SEEDS):
        rows.append(halved(letters, seed, 20 if bench.quick else STEPS))
        print("  seed", seed, {name: round(value, 4) for name, value in rows[-1].items()}, flush=True)
    best = all(row["reap"] < min(row["frequency"], row["random"]) for row in rows)
    for name in ("reap", "total", "frequency", "random", "merged"):
        found = [row[name] for row in rows]
        bar, passed = ("least in each", best) if name == "reap" else ("", None)
        spread = f"{min(found):.4f} to {max(found):.4f}; whole {np.mean([row['whole'] for row in rows]):.3f} nats"
        bench.row(f"4 of 8 experts, {name}, loss grows", bar, f"{np.mean(found):.4f} nats", len(rows), spread, passed)
    bench.end()


def halved(letters: np.ndarray, seed: int, steps: int) -> dict[str, float]:
    """How much the loss grows by each way to choose half of the experts."""
    from compresskit.ops.route.mixtures import keep_experts, merging, router_of, used

    train, test = (
        torch.from_numpy(letters[: len(letters) * 9 // 10]),
        torch.from_numpy(letters[len(letters) * 9 // 10 :]),
    )
    module = trained(train, seed, steps)
    ends = pieces(test, 128, seed=7)
    whole = loss(module, ends)
    batches = [{"input_ids": part} for part in pieces(train, 64, seed=8).split(16)]
    found = used(module, batches, lambda net, batch: net(**batch), lambda what, done, total: None)

    def cut(by: Any, draw: int = 0, *, merged: bool = False) -> float:
        other = copy.deepcopy(module)
        for number, (name, use) in enumerate(found.items()):
            kept = sorted(use.scores(by, 100 * draw + number).argsort(descending=True)[: EXPERTS // 2].tolist())
            weights = merging(router_of(other, name), use, kept) if merged else None
            keep_experts(other, name, kept, weights)
        return loss(other, ends) - whole

    drawn = [cut("random", draw) for draw in range(DRAWS)]
    return {
        "whole": whole, "reap": cut("reap"), "total": cut("total"),
        "frequency": cut("frequency"), "random": float(np.mean(drawn)),
        "merged": cut("reap", merged=True),
    }  # fmt: skip


def trained(letters: torch.Tensor, seed: int, steps: int) -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(seed)
    config = MixtralConfig(
        vocab_size=256, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, num_local_experts=EXPERTS, num_experts_per_tok=2, use_cache=False,
    )  # fmt: skip
    module = MixtralForCausalLM(config)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        ids = pieces(letters, BATCH, seed=1000 * seed + step)
        optimizer.zero_grad()
        error(module, ids).backward()
        optimizer.step()
        schedule.step()
    return module.eval()


def pieces(letters: torch.Tensor, count: int, *, seed: int) -> torch.Tensor:
    made = torch.Generator().manual_seed(seed)
    starts = torch.randint(0, len(letters) - LENGTH, (count,), generator=made)
    return torch.stack([letters[start : start + LENGTH] for start in starts])


def error(module: Any, ids: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(module(input_ids=ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def loss(module: Any, ids: torch.Tensor) -> float:
    return float(torch.stack([error(module, part) for part in ids.split(32)]).mean())


if __name__ == "__main__":
    main()
