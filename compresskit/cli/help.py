"""The help of a command: the options that most people need, then examples; ``--help-all`` has the rest in groups."""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperCommand

from compresskit.cli.guides import Guide

_WIDEST, _NAMES, _LONGEST_CHOICES = 120, 26, 22
_VALUES = {int: "N", float: "X", Path: "PATH"}
_ALL = "help_all"
OWN = "Method"


def _show_all(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        ctx.meta[_ALL] = True
        typer.echo(ctx.get_help())
        raise typer.Exit


HelpAll = Annotated[
    bool,
    typer.Option(
        "--help-all", help="Show all options and exit.", callback=_show_all, is_eager=True, expose_value=False
    ),
]


class HelpCommand(TyperCommand):
    """A command whose help fits the terminal.

    Attributes:
        guide: What the short help shows.
        named: A method was named: the short help shows its own options whole.
    """

    guide: Guide = Guide()
    named: bool = False

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the short help, or the whole one after ``--help-all``."""
        whole = bool(ctx.meta.get(_ALL)) or not self.guide.first
        formatter.write("".join(f"{line}\n" for line in self._lines(ctx, terminal_width(), whole)))

    def _lines(self, ctx: Any, width: int, whole: bool) -> Iterator[str]:
        arguments: list[Any] = [p for p in self.params if p.param_type_name == "argument"]
        yield from introduction(f"{ctx.command_path} [OPTIONS] {' '.join(map(_metavar, arguments))}", self.help, width)
        if arguments:
            yield from section("Arguments", ((_metavar(p), p.help or "") for p in arguments), width)
        options: list[Any] = [p for p in self.params if p.param_type_name == "option"]
        if whole:
            yield from self._groups(options, width)
        else:
            shown = sorted(
                (p for p in options if p.name in self.guide.first or (self.named and p.rich_help_panel == OWN)),
                key=lambda p: self.guide.first.index(p.name) if p.name in self.guide.first else len(options),
            )
            yield from section("Options", map(row, shown), width)
            yield f"\nMore options ({len(options) - len(shown)}): {ctx.command_path} --help-all"
        if self.guide.examples:
            yield "\nExamples:"
            for example in self.guide.examples:
                yield from _command(f"compresskit {example}", width)

    def _groups(self, options: list[Any], width: int) -> Iterator[str]:
        panels: dict[str, list[Any]] = {}
        for option in options:
            panels.setdefault(option.rich_help_panel or "Options", []).append(option)
        for title, found in sorted(panels.items(), key=lambda item: item[0] != OWN):
            yield from section(f"{title} options" if title != "Options" else title, map(row, found), width)


def terminal_width() -> int:
    """Columns of a help text."""
    return min(shutil.get_terminal_size().columns, _WIDEST)


def introduction(usage: str, text: str | None, width: int) -> Iterator[str]:
    """How a command is typed, and its description; line breaks of the source don't count, empty lines do."""
    yield f"Usage: {usage}".rstrip()
    for paragraph in inspect.cleandoc(text or "").split("\n\n"):
        yield ""
        yield from textwrap.wrap(" ".join(paragraph.split()), width, break_on_hyphens=False)


def section(title: str, rows: Iterable[tuple[str, str]], width: int) -> Iterator[str]:
    """A heading, and rows in two columns; a name that is too long has its text below it."""
    rows = list(rows)
    room = min(_NAMES, max(len(name) for name, _ in rows)) + 4
    yield f"\n{title}:"
    for name, text in rows:
        lines = textwrap.wrap(text, width - room, break_on_hyphens=False, break_long_words=False) or [""]
        if len(name) + 4 > room:
            yield f"  {name}"
        else:
            yield f"  {name:{room - 2}}{lines.pop(0)}".rstrip()
        yield from (f"{'':{room}}{line}" for line in lines)


def row(option: Any) -> tuple[str, str]:
    """The spelling of an option and its text, with choices, range and default."""
    choices = (option.metavar or "").split("|")
    names = ", ".join(sorted((*option.opts, *option.secondary_opts), key=lambda flag: flag.startswith("--")))
    text = option.help or ""
    if not option.is_flag:
        long = len(option.metavar or "") > _LONGEST_CHOICES and len(choices) > 2
        names += " NAME" if long else f" {_metavar(option)}"
        text += f" One of: {', '.join(choices)}." if long else ""
        text += _range(option)
    return names, text + _default(option)


def _default(option: Any) -> str:
    value = ", ".join(option.default) if isinstance(option.default, list) else option.default
    if not option.show_default or value is None or value is False or value == "":
        return ""
    return f" [default: {'on' if value is True else value}]"


def _metavar(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = str(parameter.metavar or parameter.name.upper())
        return name if parameter.required or name.startswith("[") else f"[{name}]"
    if parameter.metavar:
        return str(parameter.metavar)
    kind = parameter.type_descriptor.annotation
    return next((name for of, name in _VALUES.items() if of in (kind, *get_args(kind))), "TEXT")


def _range(option: Any) -> str:
    low, high = option.min, option.max
    if low is None and high is None:
        return ""
    return (
        f" [{low} to {high}]" if None not in (low, high) else f" [at least {low}]" if high is None else f" [≤ {high}]"
    )


def _command(typed: str, width: int) -> Iterator[str]:
    """A command line, continued with backslashes where it is too long."""
    lines = textwrap.wrap(typed, width - 8, break_on_hyphens=False, break_long_words=False)
    for place, line in enumerate(lines):
        end = " \\" if place < len(lines) - 1 else ""
        yield f"  {'  ' if place else ''}{line}{end}"
