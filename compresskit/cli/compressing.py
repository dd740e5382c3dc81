"""What ``compress`` does with what was typed."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import yaml

from compresskit.cli.console import check_output, drawing, progressing, tell
from compresskit.cli.inputs import command_line, default_output, parse_args, parse_axes, parse_shape
from compresskit.errors import UsageError
from compresskit.recipe.plan import Recipe, axes_document
from compresskit.runner.cache import Cache
from compresskit.search import compress as searching
from compresskit.search.request import Cluster, Request, prepared
from compresskit.search.space_file import read_space
from compresskit.search.tried import Goal, Pick
from compresskit.stage import say_nothing, silent

if TYPE_CHECKING:
    from compresskit.cli.commands.compress import Asked, Samples
    from compresskit.cli.option_groups import Bounds, Reading, Showing

_UNITS = {"s": 1, "m": 60, "h": 3600}


def search(
    model: Path | None, samples: Samples, bounds: Bounds, asked: Asked, reading: Reading, showing: Showing
) -> int:
    """Search as it was asked for; returns the exit code.

    Raises:
        CompressKitError: See :func:`compresskit.search.compress.compress`.
    """
    cache = Cache(asked.cache) if asked.cache is not None else Cache.default()
    told = say_nothing if showing.quiet else tell
    if asked.join is not None:
        given = {"MODEL": model, "--data": samples.data, "--study": asked.study, "--output": asked.output}
        if extra := [name for name, value in given.items() if value is not None]:
            raise UsageError(f"{extra[0]} with --join: a search that is joined brings its own", f"remove {extra[0]}")
        with progressing(showing.quiet) as progress:
            count = searching.join(asked.join, cache, searching.Showing(progress, told))
        told(f"tried {count} candidate{'s' * (count != 1)}")
        return 0
    if model is None:
        raise UsageError("MODEL is missing", "give one, or --join STORAGE to take part in a search")
    target = asked.output or default_output(model, "compressed")
    request = _request(model, target, samples, bounds, asked, reading)
    if asked.dry_run:
        return _show_space(request, cache)
    inputs = (model, samples.data, samples.eval_data, samples.select_data, reading.arch, asked.metric)
    for pick in request.picks:
        check_output(searching.place_of(target, request.picks, pick), inputs, force=asked.force)
    showing.check(inputs, target, beside=not asked.no_html)
    draw = None if asked.no_html else drawing(interactive=showing.interactive)
    try:
        with progressing(showing.quiet) as progress:
            how = searching.Showing(progress, told, draw, command_line(), asked.force)
            report = searching.compress(request, cache, how)
    except searching.Stopped as stopped:
        showing.finish(stopped.report, str(target))
        return stopped.code
    return showing.finish(report, str(target))


def _request(model: Path, target: Path, samples: Samples, bounds: Bounds, asked: Asked, reading: Reading) -> Request:
    bench = not asked.no_bench
    bounds.limits().check(evaluated=samples.eval_data is not None, benched=bench)
    if samples.data is None:
        raise UsageError("a search needs samples for calibration and selection", "give --data FILE")
    goals = _goals(asked.minimize, bench)
    usual: dict[tuple[Goal, ...], Pick] = {("size",): "size", ("latency",): "latency"}
    picks = tuple(_several("--pick", asked.pick, get_args(Pick))) if asked.pick else (usual.get(goals, "knee"),)
    if asked.num_workers is not None and asked.on is None:
        raise UsageError("--num-workers is for --on", "give --on ray, or start workers with --join")
    recipe = Recipe(
        "compress", (), model=str(model), arch=reading.arch, arch_args=parse_args(reading.arch_args),
        input_shape=parse_shape(reading.input_shape), key=reading.key, data=samples.data, eval_data=samples.eval_data,
        normalize=asked.normalize, sequence=asked.sequence, metric=asked.metric, threads=asked.threads,
        seed=asked.seed, allow_nonfinite=reading.allow_nonfinite,
        batch_axis=axes_document(parse_axes(reading.batch_axis)),
        **asdict(bounds),
    )  # fmt: skip
    kinds = tuple(word.strip() for word in asked.steps.split(",")) if asked.steps else ()
    space = None if asked.space is None else read_space(asked.space)
    return Request.of(
        recipe, target, asked.study, samples.select_data, goals=goals, picks=picks, seconds=parse_time(asked.time),
        most=asked.trials, kinds=kinds, space=space, bench=bench, num_workers=asked.num_workers,
        on=None if asked.on is None else _one_of("--on", asked.on, get_args(Cluster)),
    )  # fmt: skip


def _show_space(request: Request, cache: Cache) -> int:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="compresskit-") as work:
        found = prepared(request, cache, silent, Path(work))
    yaml.safe_dump(found.space.document(), sys.stdout, sort_keys=False, allow_unicode=True)
    return 0


def _goals(text: str, bench: bool) -> tuple[Goal, ...]:
    words = _several("--minimize", text, get_args(Goal))
    if not bench and words == ["latency"]:
        raise UsageError("--minimize latency needs the speed measured", "remove --no-bench")
    return tuple(word for word in words if bench or word != "latency")


def _several(option: str, text: str, known: tuple[Any, ...]) -> list[Any]:
    return list(dict.fromkeys(_one_of(option, word.strip(), known) for word in text.split(",")))


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
