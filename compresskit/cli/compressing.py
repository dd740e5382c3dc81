"""What ``compress`` does with what was typed."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

from compresskit.cli.console import check_output, drawing, progressing, tell
from compresskit.cli.inputs import command_line, default_output, parse_args, parse_shape
from compresskit.cli.option_groups import Showing
from compresskit.errors import UsageError
from compresskit.recipe.limits import Limits
from compresskit.recipe.plan import Recipe
from compresskit.runner.cache import Cache
from compresskit.search import compress as searching
from compresskit.search.request import HOLD_OUT, Request, prepared
from compresskit.search.space import read_space
from compresskit.search.tried import Goal, Pick
from compresskit.stage import say_nothing, silent

_UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Asked:
    """The options, as they were typed."""

    model: Path | None
    data: str | None
    eval_data: str | None
    select_data: str | None
    max_drop: str | None
    max_size: str | None
    min_speedup: float | None
    metric: str | None
    normalize: str | None
    sequence: int
    time: str
    minimize: str
    pick: str
    trials: int | None
    steps: str | None
    space: Path | None
    study: str | None
    join: str | None
    cache: Path | None
    dry_run: bool
    arch: str | None
    arch_args: str | None
    input_shape: str | None
    key: str | None
    bench: bool
    threads: int
    seed: int
    output: Path | None
    json: str | None
    html: Path | None
    pages: bool
    markdown: bool
    quiet: bool
    force: bool


def search(asked: Asked) -> int:
    """Search as it was asked for; returns the exit code.

    Raises:
        CompressKitError: See :func:`compresskit.search.compress.compress`.
    """
    cache = Cache(asked.cache) if asked.cache is not None else Cache.default()
    if asked.join is not None:
        return _join(asked, asked.join, cache)
    if asked.model is None:
        raise UsageError("MODEL is missing", "give one, or --join STORAGE to take part in a search")
    target = asked.output or default_output(asked.model, "compressed")
    request = _request(asked, asked.model, target)
    if asked.dry_run:
        return _show_space(request, cache)
    inputs = (asked.model, asked.data, asked.eval_data, asked.select_data, asked.arch, asked.metric)
    check_output(target, inputs, force=asked.force)
    showing = Showing(asked.json, asked.html, asked.markdown, asked.quiet)
    showing.check(inputs, target)
    draw = drawing() if asked.pages else None
    told = say_nothing if asked.quiet else tell
    try:
        with progressing(asked.quiet) as progress:
            how = searching.Showing(progress, told, draw, command_line(), asked.force)
            report = searching.compress(request, cache, how)
    except searching.Stopped as stopped:
        showing.finish(stopped.report, str(target))
        return stopped.code
    return showing.finish(report, str(target))


def _join(asked: Asked, place: str, cache: Cache) -> int:
    """Take part in a search.

    Raises:
        UsageError: MODEL or data are given too: the search names its own.
    """
    given = {"MODEL": asked.model, "--data": asked.data, "--study": asked.study, "--output": asked.output}
    if extra := [name for name, value in given.items() if value is not None]:
        raise UsageError(f"{extra[0]} with --join: the search that is joined names its own", f"leave {extra[0]} away")
    with progressing(asked.quiet) as progress:
        told = say_nothing if asked.quiet else tell
        count = searching.join(place, cache, searching.Showing(progress, told))
    told(f"tried {count} candidate{'s' * (count != 1)}")
    return 0


def _request(asked: Asked, model: Path, target: Path) -> Request:
    limits = Limits(asked.max_drop, asked.max_size, asked.min_speedup)
    limits.check(evaluated=asked.eval_data is not None, benched=asked.bench)
    if asked.data is None:
        raise UsageError("a search needs samples to calibrate on and to choose by", "give --data FILE")
    goals = _goals(asked.minimize, asked.bench)
    picks: dict[tuple[Goal, ...], Pick] = {("size",): "size", ("latency",): "latency"}
    pick = _one_of("--pick", asked.pick, get_args(Pick)) if asked.pick else picks.get(goals, "knee")
    recipe = Recipe(
        "compress", (), model=str(model), arch=asked.arch, arch_args=parse_args(asked.arch_args),
        input_shape=parse_shape(asked.input_shape), key=asked.key, data=asked.data,
        hold_out=None if asked.select_data else HOLD_OUT, eval_data=asked.eval_data, normalize=asked.normalize,
        sequence=asked.sequence, metric=asked.metric, max_drop=asked.max_drop, max_size=asked.max_size,
        min_speedup=asked.min_speedup, threads=asked.threads, seed=asked.seed,
    )  # fmt: skip
    kinds = tuple(word.strip() for word in asked.steps.split(",")) if asked.steps else ()
    return Request(
        recipe, target, asked.study or f"{target}.study", asked.select_data, goals, pick, parse_time(asked.time),
        asked.trials, kinds, None if asked.space is None else read_space(asked.space), asked.bench,
    )  # fmt: skip


def _show_space(request: Request, cache: Cache) -> int:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="compresskit-") as work:
        found = prepared(request, cache, silent, Path(work))
    yaml.safe_dump(found.space.document(), sys.stdout, sort_keys=False, allow_unicode=True)
    return 0


def _goals(text: str, bench: bool) -> tuple[Goal, ...]:
    words = [_one_of("--minimize", word.strip(), get_args(Goal)) for word in text.split(",")]
    if not bench and words == ["latency"]:
        raise UsageError("--minimize latency needs the speed measured", "leave --no-bench away")
    return tuple(word for word in dict.fromkeys(words) if bench or word != "latency")


def _one_of(option: str, word: str, known: tuple[Any, ...]) -> Any:
    if word not in known:
        raise UsageError(f"{option} is one of {', '.join(known)}, found '{word}'")
    return word


def parse_time(text: str) -> float:
    """``90s``, ``30m``, ``1.5h`` or plain seconds, in seconds.

    Raises:
        UsageError: Anything else.
    """
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([smh]?)\s*", text, re.ASCII)
    seconds = float(match[1]) * _UNITS[match[2] or "s"] if match else 0.0
    if not 0 < seconds < math.inf:
        raise UsageError(f"--time is a number and a unit as 90s, 30m or 2h, found '{text}'")
    return seconds
