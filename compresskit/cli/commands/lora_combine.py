"""``compresskit lora combine``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compresskit.cli import options as shared

_HELP = "An adapter of the kind LoRA in PEFT's format, or a bundle with one."
First = Annotated[Path, typer.Argument(metavar="A", help=_HELP, show_default=False)]
Second = Annotated[Path, typer.Argument(metavar="B", help=_HELP, show_default=False)]
Weights = Annotated[tuple[float, float], typer.Option("--weights", metavar="A B", help="Of the first and the second.")]
Way = Annotated[str, typer.Option("--method", metavar="cat|svd|ties|dare", help="How the two become one.")]
Rank = Annotated[
    int | None,
    typer.Option("--rank", min=1, help="Of the result, but for cat. (the higher of both)", show_default=False),
]
Density = Annotated[float, typer.Option("--density", min=0.01, max=1, help="Share of changes that ties and dare keep.")]
Into = Annotated[Path, typer.Option("-o", "--output", help="Folder to write.", show_default=False)]


def command(
    a: First,
    b: Second,
    output: Into,
    weights: Weights = (0.5, 0.5),
    method: Way = "cat",
    rank: Rank = None,
    density: Density = 0.5,
    seed: shared.Seed = 0,
    quiet: shared.Quiet = False,
    force: shared.Force = False,
) -> None:
    """Make one adapter of two.

    cat sums their changes exactly, at the sum of their ranks. svd cuts that sum to --rank. ties drops small changes
    and settles signs first, dare drops changes at random and scales up the rest; both are then cut to --rank. Both
    adapters must be for the same base. The base isn't needed.
    """
    from compresskit.checkpoint.atomic import new_folder, refuse_same
    from compresskit.errors import UsageError
    from compresskit.ops.lora.combine import METHODS, combine
    from compresskit.ops.lora.folder import about, is_adapter, read_adapter, write_adapter

    if method not in METHODS:
        raise UsageError(f"--method {method}: combine has no such method", f"choose {', '.join(METHODS)}")
    for source in (a, b):
        refuse_same(source, output)
    config, tensors, base = combine(
        [read_adapter(a), read_adapter(b)], weights, method, rank=rank, density=density, seed=seed
    )
    with new_folder(output, force=force, ours=is_adapter) as folder:
        write_adapter(folder, config, tensors, base)
    if not quiet:
        from compresskit.render.adapter_view import print_adapter

        print_adapter(about(read_adapter(output)), title=str(output))
