"""The library's call for a search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compresskit.errors import UsageError
from compresskit.recipe.plan import Recipe, axes_document
from compresskit.report import Report
from compresskit.runner.cache import Cache
from compresskit.runner.timing import SEQUENCE
from compresskit.search.compress import Showing
from compresskit.search.compress import compress as search
from compresskit.search.request import Cluster, Request
from compresskit.search.space_file import read_space
from compresskit.search.tried import Goal, Pick
from compresskit.stage import Progress, silent


def compress(
    model: str | Path,
    output: str | Path,
    *,
    data: str | Path,
    eval_data: str | Path | None = None,
    select_data: str | Path | None = None,
    arch: str | None = None,
    arch_args: dict[str, Any] | None = None,
    input_shape: tuple[int, ...] | None = None,
    batch_axis: dict[str, int | None] | None = None,
    key: str | None = None,
    allow_nonfinite: bool = False,
    normalize: str | None = None,
    sequence: int = SEQUENCE,
    metric: str | None = None,
    max_drop: str | None = None,
    max_size: str | None = None,
    min_speedup: float | None = None,
    seconds: float = 600.0,
    trials: int | None = None,
    minimize: tuple[Goal, ...] = ("size", "latency"),
    pick: Pick | tuple[Pick, ...] = "knee",
    steps: tuple[str, ...] = (),
    space: str | Path | None = None,
    study: str | None = None,
    cache: str | Path | None = None,
    bench: bool = True,
    on: Cluster | None = None,
    num_workers: int | None = None,
    threads: int = 0,
    seed: int = 0,
    force: bool = False,
    progress: Progress = silent,
) -> Report:
    """Find the smallest and fastest model that meets the limits: ``compresskit compress``.

    Args:
        model: A path.
        output: The folder to write; holds ``recipe.yaml``, which makes the result again.
        data: What steps calibrate and train on; a fifth is held out to choose by, unless ``select_data`` is given.
        eval_data: Evaluation data for the verdict; never used to choose a candidate.
        select_data: Samples for choosing between candidates.
        arch: ``FILE.py:NAME`` or ``package.module:NAME`` of what builds the module. Its code is executed.
        arch_args: Keyword arguments of ``arch``.
        input_shape: Shape of the model's input; the first axis is the batch axis.
        batch_axis: Batch axis by input of an ONNX file; None for an input that all samples share.
        key: Which state dict of the file to read.
        allow_nonfinite: Accept NaN and infinities among the weights.
        normalize: For images: ``MEAN/STD`` a channel, or ``imagenet``.
        sequence: Maximum tokens of a text sample, and tokens of a timed sample.
        metric: Name or ``FILE.py:NAME``; chosen by the data if not given.
        max_drop: Maximum loss of quality: ``0.5pt`` or ``1%``.
        max_size: Maximum file size: ``20MB``.
        min_speedup: Minimum speed-up.
        seconds: Time limit of search and verdict, in seconds.
        trials: Maximum number of candidates.
        minimize: What to minimize: ``size``, ``latency`` or both.
        pick: Which passing model to keep: ``size``, ``latency``, ``quality`` or ``knee``. Of several, the first is
            written to ``output`` and each other one to ``OUTPUT-PICK``.
        steps: Only steps of these kinds, as ``("prune", "quantize")``; empty is all.
        space: YAML file with the search space.
        study: Storage of the search, for resuming it. None is ``OUTPUT.study``.
        cache: Folder of the step cache; None is the user's cache folder.
        bench: Measure the speed.
        on: ``ray`` starts workers on an existing Ray cluster.
        num_workers: Number of those; None is one for each node.
        threads: Threads per operator; 0 uses all cores.
        seed: Random seed.
        force: Overwrite an existing output.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        The report of the result; ``report.search`` describes the search.

    Raises:
        UsageError: Options that don't fit together, or a study of another search.
        InputError: The model or the data doesn't allow it.
        MachineError: Optuna isn't installed, or the disk is full.
    """
    if not seconds > 0:
        raise UsageError(f"`seconds` must be above 0, found {seconds}")
    named = {name: None if value is None else str(value) for name, value in
             {"data": data, "eval_data": eval_data, "select_data": select_data}.items()}  # fmt: skip
    recipe = Recipe(
        "compress", (), model=str(model), arch=arch, arch_args=arch_args or {}, input_shape=input_shape, key=key,
        batch_axis=axes_document(batch_axis),
        allow_nonfinite=allow_nonfinite,
        data=named["data"], eval_data=named["eval_data"],
        normalize=normalize, sequence=sequence, metric=metric, max_drop=max_drop, max_size=max_size,
        min_speedup=min_speedup, threads=threads, seed=seed,
    )  # fmt: skip
    request = Request.of(
        recipe, Path(output), study, named["select_data"], goals=tuple(minimize), seconds=seconds,
        picks=(pick,) if isinstance(pick, str) else tuple(dict.fromkeys(pick)),
        most=trials, kinds=tuple(steps), space=None if space is None else read_space(Path(space)), bench=bench, on=on,
        num_workers=num_workers,
    )  # fmt: skip
    request.limits.check(evaluated=eval_data is not None, benched=bench)
    kept = Cache.default() if cache is None else Cache(Path(cache))
    return search(request, kept, Showing(progress=progress, force=force))
