"""``compresskit lora merge``: the stage ``lora.merge``, its adapter in the second place."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from compresskit.cli.commands import SUBCOMMANDS
from compresskit.cli.stages import stage_command

_stage: Any = stage_command("lora", ["--method", "merge"])
_Adapter = Annotated[
    Path | None,
    typer.Argument(
        metavar="[ADAPTER]",
        help="Folder of an adapter in PEFT's format. (the adapter stored with MODEL)",
        show_default=False,
    ),
]


def command(model: Path, adapter: Path | None = None, **values: Any) -> None:
    """Call the stage's command."""
    _stage(method="merge", model=model, adapter=adapter, **values)


_own = [p for name, p in inspect.signature(_stage).parameters.items() if name not in ("method", "adapter")]
_place = inspect.Parameter("adapter", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=_Adapter)
command.__signature__ = inspect.Signature([_own[0], _place, *_own[1:]])  # type: ignore[attr-defined]
command.__annotations__ = {p.name: p.annotation for p in (_own[0], _place, *_own[1:])}
command.__doc__ = f"""{SUBCOMMANDS["lora"]["merge"]}

MODEL is the base of the adapter, or a bundle of lora that holds adapters; then ADAPTER is not given. The result is a
plain model, which all other commands accept. Packed or shared weights are refused.
"""
