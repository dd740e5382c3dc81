"""Whether language models go on from the same prompts with the same tokens, each taking the likeliest one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from compresskit.benchmark.machine import environment
from compresskit.data.opening import open_source
from compresskit.errors import InputError, UsageError
from compresskit.model import portable
from compresskit.quality import intervals
from compresskit.report import Measurement, Report, Verdict
from compresskit.runner.candidate import Candidate
from compresskit.runner.generating import Request, open_writer
from compresskit.runtimes.text import kind_of
from compresskit.stage import Progress, silent

_AROUND = 64
"""Tokens of the context beyond prompt and continuation."""
_MOST = 1 << 16
"""Samples that prompts are chosen from."""


def compare_continuations(
    paths: Sequence[Path],
    data: str,
    prompt: int,
    new: int,
    *,
    prompts: int = 20,
    threads: int = 0,
    command: str = "",
    progress: Progress = silent,
) -> Report:
    """Let models go on from the same prompts, and count the tokens that are the first model's.

    Args:
        paths: .gguf files, folders for onnxruntime-genai, bundles or Hugging Face folders; the first, which has a
            tokenizer.json, is the original.
        data: A .txt, .jsonl, .csv or .npz; prompts are the first tokens of samples that are spread over all of it.
        prompt: Most tokens of a prompt, from 2.
        new: Tokens that follow, from 1.
        prompts: How many there are at most.
        threads: Of one operator; 0 is each program's choice.
        command: How the user asked for this.
        progress: Called after each prompt.

    Returns:
        A report without gates. For each model but the first: ``greedy_agreement``, the share of equal tokens at equal
        places in %, with its interval over prompts; and ``first_difference``, the median over prompts of how many
        tokens are equal before the first that isn't.

    Raises:
        UsageError: Fewer than two models, or two of one name.
        InputError: No prompts in the data, or a program refuses a file.
        MachineError: A program isn't installed.
    """
    names = [path.name for path in paths]
    if len(paths) < 2 or len(set(names)) < len(names):
        raise UsageError("two models or more of different names can be compared", "the original first")
    asked = _prompts(data, paths[0], prompt, prompts)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        progress("generating", done, len(paths) * len(asked))

    original = _continued(paths[0], asked, new, threads, step)
    measurements, notes = [], [f"{len(asked)} prompts of {portable(data)}, {new} new tokens each, greedy"]
    for path in paths[1:]:
        own = _continued(path, asked, new, threads, step)
        same = [equal_tokens(a, b, new) for a, b in zip(original, own, strict=True)]
        shares = np.array([100 * each.mean() for each in same])
        first = [int(np.argmin(each)) if not each.all() else new for each in same]
        low, high = intervals.mean(shares) or (None, None)
        runtime, n = kind_of(path), len(asked)
        measurements += [
            Measurement(
                model=path.name, name="greedy_agreement", value=float(shares.mean()), unit="%", n=n, runtime=runtime,
                low=None if low is None else max(0.0, low), high=None if high is None else min(100.0, high),
            ),
            Measurement(
                model=path.name, name="first_difference", value=float(median(first)), unit="tokens", n=n,
                runtime=runtime,
            ),
        ]  # fmt: skip
        whole = sum(bool(each.all()) for each in same)
        notes.append(f"{path.name} under {runtime}: {whole} of {n} continuations are the original's to the end")
    return Report(
        command=command, verdict=Verdict.UNVERIFIED, measurements=measurements, notes=notes,
        models=[Candidate(path.name, path, portable(path)).entry() for path in paths], environment=environment(threads),
    )  # fmt: skip


def _prompts(data: str, first: Path, length: int, count: int) -> list[list[int]]:
    """Token ids of prompts, spread over the samples."""
    source = open_source(
        data, tokenizer=first if first.is_dir() else first.parent, sequence=length, task="causal-lm"
    )  # fmt: skip
    found: list[list[int]] = []
    for batch in source.batches(256, _MOST):
        ids = batch.inputs.get("input_ids")
        if source.kind != "tokens" or ids is None:
            raise UsageError(f"{data} holds no text to go on from", "give a .txt, or an .npz with input_ids")
        mask = batch.inputs.get("attention_mask", np.ones_like(ids))
        found += [row[real != 0][:length].tolist() for row, real in zip(ids, mask, strict=True)]
    found = [ids for ids in found if len(ids) > 1]
    if not found:
        raise InputError(f"{data} holds no prompt of 2 tokens or more")
    return [found[at] for at in np.unique(np.linspace(0, len(found) - 1, count).astype(int))]


def _continued(
    path: Path, prompts: Sequence[Sequence[int]], new: int, threads: int, step: Callable[[], None]
) -> list[tuple[int, ...]]:
    """What a model writes after each prompt, up to what ends a text."""
    writer = open_writer(path, threads=threads, context=max(map(len, prompts)) + new + _AROUND)
    found = []
    for prompt in prompts:
        made = writer.write(Request(prompt, new, ids=True), lambda text: None)
        found.append(made.ids or ())
        step()
    return found


def equal_tokens(a: Sequence[int], b: Sequence[int], count: int) -> np.ndarray:
    """Which of the first tokens of two continuations are equal, ``(count,)`` bools.

    Places behind the ends of both are equal. Some programs tell the token that ends a text, others don't: one more
    token in one of them is that.
    """
    shorter, longer = sorted((tuple(a), tuple(b)), key=len)
    if len(longer) - len(shorter) == 1 and longer[:-1] == shorter:
        longer = shorter
    rows = [np.array([*ids, *[-1] * count][:count]) for ids in (shorter, longer)]
    same: np.ndarray = rows[0] == rows[1]
    return same
