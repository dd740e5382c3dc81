"""``compresskit compress``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from compresskit.cli import options as shared
from compresskit.cli.option_groups import Bounds, Reading, Showing, grouped

_SEARCH = "Search"
ModelArg = Annotated[
    Path | None,
    typer.Argument(metavar="MODEL", help="State dict, Hugging Face folder, bundle or .onnx file.", show_default=False),
]
Time = Annotated[
    str,
    typer.Option(
        "--time", metavar="30m", help="Time limit of search and verdict, as 90s, 30m or 2h.", rich_help_panel=_SEARCH
    ),
]
Minimize = Annotated[
    str,
    typer.Option(
        "--minimize", metavar="GOALS", help="What to minimize: size, latency, or both.", rich_help_panel=_SEARCH
    ),
]
PickOne = Annotated[
    str,
    typer.Option(
        "--pick",
        metavar="WHAT",
        help="Which passing model to keep: the smallest (size), the fastest (latency), the most accurate (quality), "
        "or the best product of size and speed-up (knee). Several with commas: the first is written to OUT, each other "
        "one to OUT-WHAT.",
        rich_help_panel=_SEARCH,
    ),
]
Trials = Annotated[
    int | None, typer.Option("--trials", min=1, help="Maximum number of candidates.", rich_help_panel=_SEARCH)
]
SelectData = Annotated[
    str | None,
    typer.Option(
        "--select-data",
        metavar="PATH",
        help="Samples for choosing between candidates, in the same formats as --data. (a held-out part of --data)",
        rich_help_panel=_SEARCH,
    ),
]
Steps = Annotated[
    str | None,
    typer.Option(
        "--steps",
        metavar="KINDS",
        help="Use only these kinds of steps, for example prune,quantize.",
        rich_help_panel=_SEARCH,
    ),
]
SpaceFile = Annotated[
    Path | None,
    typer.Option(
        "--space",
        metavar="FILE",
        help="YAML file with the search space, as printed by --dry-run.",
        rich_help_panel=_SEARCH,
    ),
]
StudyPlace = Annotated[
    str | None,
    typer.Option(
        "--study",
        metavar="FOLDER|URL",
        help="Storage of the search, for resuming it: a folder, postgresql:// or redis://. (OUT.study)",
        rich_help_panel=_SEARCH,
        show_default=False,
    ),
]
On = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="ray",
        help="Start workers on the Ray cluster at RAY_ADDRESS, or on the one that runs on this machine.",
        rich_help_panel=_SEARCH,
        show_default=False,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--num-workers",
        min=1,
        help="Number of workers that --on starts. (one for each node)",
        rich_help_panel=_SEARCH,
        show_default=False,
    ),
]
Join = Annotated[
    str | None,
    typer.Option(
        "--join",
        metavar="FOLDER|URL",
        help="Join a running search in this storage as another worker. Model and data are those of the search.",
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
    on: On = None
    num_workers: Workers = None
    cache: shared.CacheFolder = None
    dry_run: shared.DryRun = False
    no_bench: shared.NoBench = False
    threads: shared.Threads = 0
    seed: shared.Seed = 0
    output: shared.Output = None
    no_html: shared.NoHtml = False
    force: shared.Force = False


@grouped
def command(
    model: ModelArg = None, *, samples: Samples, bounds: Bounds, reading: Reading, asked: Asked, showing: Showing
) -> None:
    """Find the smallest and fastest model that meets your limits.

    The search tries recipes of pruning, factorization, distillation and quantization within --time. It selects
    candidates on samples that no step has used, judges the best ones on --eval-data, and writes the result together
    with its recipe. Ctrl-C stops the search and judges the best candidates so far. The same command resumes a stopped
    search.
    """
    from compresskit.cli.compressing import search

    raise typer.Exit(search(model, samples, bounds, asked, reading, showing))
