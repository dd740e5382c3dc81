"""``compresskit compress``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from compresskit.cli import options as shared
from compresskit.cli.option_groups import Bounds, Showing, grouped

_SEARCH = "Search"
ModelArg = Annotated[
    Path | None,
    typer.Argument(metavar="MODEL", help="State dict, Hugging Face folder, bundle or .onnx file.", show_default=False),
]
Time = Annotated[
    str,
    typer.Option("--time", metavar="30m", help="Time for search and verdict: 90s, 30m, 2h.", rich_help_panel=_SEARCH),
]
Minimize = Annotated[
    str,
    typer.Option(
        "--minimize", metavar="GOALS", help="What is to be small: size, latency, or both.", rich_help_panel=_SEARCH
    ),
]
PickOne = Annotated[
    str,
    typer.Option(
        "--pick",
        metavar="WHAT",
        help="Which of the models that pass: size, latency, quality, or knee (size and latency together).",
        rich_help_panel=_SEARCH,
    ),
]
Trials = Annotated[
    int | None, typer.Option("--trials", min=1, help="Most candidates that are tried.", rich_help_panel=_SEARCH)
]
SelectData = Annotated[
    str | None,
    typer.Option(
        "--select-data",
        metavar="PATH",
        help="Samples by which candidates are chosen; forms as --data. (a part of --data is held out)",
        rich_help_panel=_SEARCH,
    ),
]
Steps = Annotated[
    str | None,
    typer.Option(
        "--steps", metavar="KINDS", help="Only steps of these kinds: prune,quantize.", rich_help_panel=_SEARCH
    ),
]
SpaceFile = Annotated[
    Path | None,
    typer.Option("--space", metavar="FILE", help="What may be tried, as --dry-run prints it.", rich_help_panel=_SEARCH),
]
StudyPlace = Annotated[
    str | None,
    typer.Option(
        "--study",
        metavar="FOLDER|URL",
        help="Where the search is kept, so that it can go on: a folder, postgresql:// or redis://. (OUT.study)",
        rich_help_panel=_SEARCH,
        show_default=False,
    ),
]
Join = Annotated[
    str | None,
    typer.Option(
        "--join",
        metavar="FOLDER|URL",
        help="Take part in the search that is kept there, from this machine too; MODEL and data are those it names.",
        rich_help_panel=_SEARCH,
        show_default=False,
    ),
]


@dataclass(frozen=True)
class Samples:
    """What candidates are made with, chosen by and judged on."""

    data: shared.Data = None
    eval_data: shared.EvalData = None
    select_data: SelectData = None


@dataclass(frozen=True)
class Asked:
    """The other options of a search."""

    metric: shared.MetricName = None
    normalize: shared.Normalize = None
    sequence: shared.Sequence = 128
    time: Time = "10m"
    minimize: Minimize = "size,latency"
    pick: PickOne = ""
    trials: Trials = None
    steps: Steps = None
    space: SpaceFile = None
    study: StudyPlace = None
    join: Join = None
    cache: shared.CacheFolder = None
    dry_run: shared.DryRun = False
    arch: shared.Arch = None
    arch_args: shared.ArchArgs = None
    input_shape: shared.InputShape = None
    batch_axis: shared.BatchAxis = None
    key: shared.Key = None
    allow_nonfinite: shared.AllowNonfinite = False
    no_bench: shared.NoBench = False
    threads: shared.Threads = 0
    seed: shared.Seed = 0
    output: shared.Output = None
    no_html: shared.NoHtml = False
    force: shared.Force = False


@grouped
def command(model: ModelArg = None, *, samples: Samples, bounds: Bounds, asked: Asked, showing: Showing) -> None:
    """Find the smallest and fastest model that keeps your bars.

    Tries recipes of pruning, factorizing, distilling and quantizing within --time, chooses by samples that no step has
    seen, judges the best on --eval-data, and writes the result with the recipe that makes it. Stopped by Ctrl-C it
    judges the best so far; the same command goes on where the search was.
    """
    from compresskit.cli.compressing import search

    raise typer.Exit(search(model, samples, bounds, asked, showing))
