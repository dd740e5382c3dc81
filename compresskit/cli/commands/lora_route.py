"""``compresskit lora route``: the stage ``lora.route``, its adapters behind MODEL."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from compresskit.cli.commands import SUBCOMMANDS
from compresskit.cli.stages import stage_command

_stage: Any = stage_command("lora", ["--method", "route"])
_Adapters = Annotated[
    list[Path],
    typer.Argument(metavar="A B [C...]", help="Folders of LoRA adapters in PEFT's format.", show_default=False),
]


def command(model: Path, adapters: list[Path], **values: Any) -> None:
    """Call the stage's command."""
    _stage(method="route", model=model, adapters=adapters, **values)


_own = [p for name, p in inspect.signature(_stage).parameters.items() if name not in ("method", "adapters")]
_place = inspect.Parameter("adapters", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=_Adapters)
command.__signature__ = inspect.Signature([_own[0], _place, *_own[1:]])  # type: ignore[attr-defined]
command.__annotations__ = {p.name: p.annotation for p in (_own[0], _place, *_own[1:])}
command.__doc__ = f"""{SUBCOMMANDS["lora"]["route"]}

MODEL is the base of the adapters. Without --data an adapter is chosen by the direction of inputs that it changes most.
With --data, samples labelled with the number of their adapter from 0, each layer gets a gate. Compare the result with
the merged adapters: compresskit compare MODEL merged routed --data TEST.
"""
