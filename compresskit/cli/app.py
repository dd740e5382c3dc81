"""The commands, each imported when it is run: the top help needs none of them."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from compresskit import registry
from compresskit.cli.commands import COMMANDS, SUBCOMMANDS
from compresskit.cli.distributed import refuse_several
from compresskit.cli.guides import guide_of
from compresskit.cli.help import HelpAll, HelpCommand, introduction, row, section, terminal_width
from compresskit.cli.inputs import value_of
from compresskit.errors import MachineError, UsageError
from compresskit.render.plain import set_plain


@cache
def summaries() -> dict[str, str]:
    """One line of help for each command: the kinds of stages first; a plugin's kind can't replace a command."""
    return {name: _summary(name) for name in _names()}


def _names() -> list[str]:
    """All commands; no plugin is imported for that."""
    return [*(name for name in registry.kind_names() if name not in COMMANDS), *COMMANDS]


def _summary(name: str) -> str:
    told = COMMANDS.get(name, "")
    if told and name not in registry.kind_names():
        return told
    try:
        found = registry.kind(name)
    except MachineError as error:  # a broken plugin must not take the help away
        return f"{told} {error.message}".strip()
    return found.summary if found is not None else ""


class Group(TyperGroup):
    """Knows the names of its commands, and builds the one that is run."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands, each with its line."""
        width = terminal_width()
        lines = [
            *introduction(f"{ctx.command_path} COMMAND [OPTIONS]", self.help, width),
            *section("Commands", summaries().items(), width),
            *section("Options", map(row, self.get_params(ctx)), width),
            "\nHelp of a command: compresskit COMMAND --help",
        ]
        formatter.write("".join(f"{line}\n" for line in lines))

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order in which one meets them."""
        return _names()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A stand-in that has a name and one line of help."""
        known = cmd_name in COMMANDS or cmd_name in _names()
        return TyperCommand(cmd_name, help=_summary(cmd_name)) if known else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The real command for these arguments.

        Raises:
            UsageError: There is none of that name; the nearest one is given.
        """
        if args and args[0] not in COMMANDS and args[0] not in _names():
            near = get_close_matches(args[0], _names(), 1)
            hint = f"did you mean '{near[0]}'?" if near else "see: compresskit --help"
            raise UsageError(f"there is no command '{args[0]}'", hint)
        name, stub, rest = super().resolve_command(ctx, args)
        if stub is None or not name:
            return name, stub, rest
        if name in COMMANDS or (rest and rest[0] in SUBCOMMANDS.get(name, ())):
            refuse_several(name)
        if rest and not rest[0].startswith("-") and name in SUBCOMMANDS and name in COMMANDS:
            known = SUBCOMMANDS[name]
            if rest[0] not in known:
                near = get_close_matches(rest[0], known, 1)
                hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(known)}"
                raise UsageError(f"{name} has no command '{rest[0]}'", hint)
        if rest and rest[0] in SUBCOMMANDS.get(name, ()):
            return f"{name} {rest[0]}", build(name, rest), rest[1:]
        return name, build(name, rest), rest


def build(name: str, arguments: list[str]) -> Any:
    """The command called ``name``; that of a stage has the options of the method that the arguments ask for.

    Where the first argument is one of the command's own subcommands, it is that one.
    """
    if arguments and arguments[0] in SUBCOMMANDS.get(name, ()):
        function = import_module(f"compresskit.cli.commands.{name}_{arguments[0]}").command
        name = f"{name} {arguments[0]}"
    elif name not in COMMANDS:
        from compresskit.cli.stages import stage_command

        function = stage_command(name, arguments)
    else:
        function = import_module(f"compresskit.cli.commands.{name}").command
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    single.command(name, cls=HelpCommand)(function)
    command: Any = typer.main.get_command(single)
    command.name = name
    command.params += _everywhere()
    method = value_of(arguments, "--method") if name in registry.kind_names() else None
    command.guide, command.named = guide_of(name, method), method is not None
    return command


Plain = Annotated[
    bool,
    typer.Option(
        "--plain",
        help="Plain output for logs: no colour, no wrapping, one line per progress step.",
        rich_help_panel="Output",
        callback=set_plain,
        is_eager=True,
        expose_value=False,
    ),
]


def _everywhere() -> list[Any]:
    """The options that every command has, whatever its function takes."""

    def holder(plain: Plain = False, help_all: HelpAll = False) -> None: ...

    single = typer.Typer(add_completion=False)
    single.command()(holder)
    return list(typer.main.get_command(single).params)


def _version(wanted: bool) -> None:
    if wanted:
        from compresskit import __version__

        typer.echo(__version__)
        raise typer.Exit


def app() -> Any:
    """The whole command line."""
    top = typer.Typer(
        cls=Group,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["--help", "-h"]},
    )

    @top.callback()
    def compresskit(
        version: Annotated[
            bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_version)
        ] = False,
        debug: Annotated[
            bool,
            typer.Option("--debug", help="Show the traceback of an error. May be given anywhere on the command line."),
        ] = False,
    ) -> None:
        """Compress a trained PyTorch or ONNX model, and measure the result against the original.

        MODEL is a state dict (.pt, .pth, .th, .safetensors), a Hugging Face folder, a bundle that compresskit wrote,
        or an .onnx file.

        Start with: compresskit compress MODEL --data TRAIN --eval-data TEST --max-drop 1pt
        """

    return typer.main.get_command(top)
