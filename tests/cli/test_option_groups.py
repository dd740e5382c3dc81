"""Options that are declared once for several commands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from compresskit.cli.option_groups import grouped


@dataclass(frozen=True)
class Pair:
    left: Annotated[int, typer.Option("--left", min=0)] = 1
    right: Annotated[str | None, typer.Option("--right")] = None


def run(*words: str) -> str:
    app = typer.Typer()

    @app.command()
    @grouped
    def command(
        first: Annotated[str, typer.Option()] = "f", *, pair: Pair, last: Annotated[bool, typer.Option()] = False
    ) -> None:
        """Told in the help."""
        typer.echo(f"{first} {pair} {last}")

    found = CliRunner().invoke(app, list(words))
    return found.output if found.exit_code == 0 else f"exit {found.exit_code}"


@pytest.mark.parametrize(
    ("words", "pair"),
    [((), Pair()), (("--right", "r", "--left", "7"), Pair(7, "r")), (("--left", "0", "--last"), Pair(0))],
)
def test_a_command_gets_what_was_typed_as_a_group(words: tuple[str, ...], pair: Pair) -> None:
    assert run(*words) == f"f {pair} {'--last' in words}\n"


def test_an_option_of_a_group_keeps_its_range() -> None:
    assert run("--left", "-1") == "exit 2"


def test_the_help_lists_a_group_where_it_stands() -> None:
    text = run("--help")
    places = [text.index(name) for name in ("Told in the help", "--first", "--left", "--right", "--last")]
    assert places == sorted(places)
