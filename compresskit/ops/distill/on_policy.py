"""Distillation of causal language models on what the student itself writes.

A student that only sees texts of others meets, once it writes on its own, prefixes that it never learnt from:
"On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes" (Agarwal et al., 2024). Leaves out
its mixture with reinforcement learning.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresskit.ops.distill.logits import divergence, masked_mean

# What transformers calls kept keys and values, as argument and in the output: from 5.24 on, and before.
CACHES = ("cache", "past_key_values")


def jensen_shannon(found: Tensor, wanted: Tensor, beta: float, mask: Tensor | None = None) -> Tensor:
    """Generalized Jensen-Shannon divergence of student and teacher.

    Args:
        found: The student's logits, floating point ``(…, classes)``.
        wanted: The teacher's, same shape.
        beta: Weight of the teacher in the mixture that both are compared with, 0 to 1. At the ends it is the
            Kullback-Leibler divergence: 0 covers all that the teacher would say, 1 what the student says.
        mask: Boolean ``(…)``, true where a position counts; None is everywhere.

    Returns:
        A scalar of at least 0: the mean over the positions that count.
    """
    student, teacher = F.log_softmax(found, dim=-1), F.log_softmax(wanted, dim=-1)
    if beta in (0, 1):
        return masked_mean(divergence(student, teacher) if beta else divergence(teacher, student), mask)
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return masked_mean(beta * divergence(teacher, mixture) + (1 - beta) * divergence(student, mixture), mask)


@torch.no_grad()
def continue_prompts(
    module: nn.Module, prompts: Tensor, count: int, *, temperature: float = 1.0, end: Sequence[int] = ()
) -> tuple[Tensor, Tensor]:
    """Let a causal language model write on, each token drawn from its own distribution.

    Args:
        module: Takes token ids ``(n, L)`` and gives logits ``(n, L, vocabulary)``, bare or as ``.logits``; one of
            transformers that can keep keys and values does so. Its mode is left as it is.
        prompts: int64 ``(n, L)``, without padding.
        count: Tokens to write, 1 or more.
        temperature: Of the distribution that is drawn from, above 0.
        end: The tokens that end a text; none: texts have no end.

    Returns:
        Prompts and what follows, int64 ``(n, L + count)``; and boolean ``(n, L + count)``, true at the written tokens
        up to each text's end.
    """
    name = cache_argument(module)
    tokens, given, kept = prompts, prompts, None
    running = torch.ones(len(prompts), dtype=torch.bool, device=prompts.device)
    written = [torch.zeros_like(prompts, dtype=torch.bool)]
    for _ in range(count):
        out = module(given, use_cache=True, **{name: kept}) if name else module(tokens)
        last = logits_of(out)[:, -1] / temperature
        drawn = torch.multinomial(last.softmax(-1), 1)
        tokens, given = torch.cat([tokens, drawn], 1), drawn
        kept = getattr(out, name) if name else None
        written.append(running[:, None])
        for token in end:
            running = running & (drawn[:, 0] != token)
    return tokens, torch.cat(written, 1)


def cache_argument(module: nn.Module) -> str | None:
    """The name under which a model takes and gives back keys and values, None if it can't keep them."""
    if not hasattr(getattr(module, "config", None), "use_cache"):
        return None
    takes = inspect.signature(module.forward).parameters
    return next((name for name in CACHES if name in takes), None)


def drawn_divergence(found: Tensor, wanted: Tensor, counts: Tensor, beta: float) -> Tensor:
    """The divergence at the positions from which the counted tokens are drawn.

    Args:
        found: The student's logits, floating point ``(n, L, vocabulary)``.
        wanted: The teacher's, same shape.
        counts: Boolean ``(n, L)``, true at the tokens that count; the first token has no position before it.
        beta: See :func:`jensen_shannon`.

    Returns:
        A scalar of at least 0.
    """
    return jensen_shannon(found[:, :-1], wanted[:, :-1], beta, counts[:, 1:])


def logits_of(out: Any) -> Tensor:
    """The logits in what a language model gives."""
    found: Tensor = out if isinstance(out, Tensor) else out["logits"] if hasattr(out, "keys") else out[0]
    return found
