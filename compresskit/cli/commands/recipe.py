"""``compresskit recipe`` alone: says which commands there are."""

from __future__ import annotations

import typer

from compresskit.cli.commands import COMMANDS, SUBCOMMANDS


def command(ctx: typer.Context) -> None:
    """Show the help."""
    typer.echo(ctx.get_help())
    raise typer.Exit(2)


_below = "\n\n".join(f"compresskit recipe {name}: {line}" for name, line in SUBCOMMANDS["recipe"].items())
command.__doc__ = f"""{COMMANDS["recipe"]}

{_below}
"""
