"""``compresskit lora combine``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compresskit.cli import options as shared

_HELP = "LoRA adapter in PEFT's format, or a bundle with one."
First = Annotated[Path, typer.Argument(metavar="A", help=_HELP, show_default=False)]
Second = Annotated[Path, typer.Argument(metavar="B", help=_HELP, show_default=False)]
Weights = Annotated[
    tuple[float, float], typer.Option("--weights", metavar="A B", help="Weights of the first and the second adapter.")
]
Way = Annotated[str, typer.Option("--method", metavar="cat|svd|ties|dare", help="Method of combining.")]
Rank = Annotated[
    int | None,
    typer.Option(
        "--rank", min=1, help="Rank of the result, except for cat. (the higher rank of the two)", show_default=False
    ),
]
Density = Annotated[
    float, typer.Option("--density", min=0.01, max=1, help="Fraction of changes that ties and dare keep.")
]
Into = Annotated[Path, typer.Option("-o", "--output", help="Output folder.", show_default=False)]


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
    """Combine two adapters into one.

    cat sums the changes exactly; its rank is the sum of both ranks. svd truncates that sum to --rank. ties drops small
    changes and resolves conflicting signs first. dare drops changes at random and rescales the rest. Both then truncate
    to --rank. The adapters must have the same base model, which is not needed here.
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
