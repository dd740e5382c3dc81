"""Commands that are a word for others: ``recipe``, ``cache``."""

from __future__ import annotations

from collections.abc import Callable

import typer

from compresskit.cli.commands import COMMANDS, SUBCOMMANDS


def group(name: str) -> Callable[[typer.Context], None]:
    """The command called ``name`` alone: it says which words may follow."""

    def command(ctx: typer.Context) -> None:
        typer.echo(ctx.get_help())
        raise typer.Exit(2)

    below = "\n\n".join(f"compresskit {name} {word}: {line}" for word, line in SUBCOMMANDS[name].items())
    command.__doc__ = f"{COMMANDS[name]}\n\n{below}\n"
    command.__annotations__ = {"ctx": typer.Context, "return": None}
    return command
