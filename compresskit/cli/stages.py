"""The bridge: a stage's fields become the options of its command."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from compresskit import registry
from compresskit.cli import options as shared
from compresskit.cli.help import OWN
from compresskit.cli.inputs import value_of
from compresskit.errors import UsageError, as_flags
from compresskit.stage import Stage
from compresskit.stages.recovery import Recovery

_TRAINING = "Training"


def stage_command(stage: str, arguments: list[str]) -> Callable[..., None]:
    """The callback of a stage's command, with the options of the method that the arguments ask for.

    Args:
        stage: ``quantize`` …
        arguments: What follows the command's name; only ``--method`` and what decides it are read.

    Raises:
        UsageError: No such method.
    """
    known, kind = registry.methods(stage), registry.kind(stage)
    if kind is None:
        raise UsageError(f"there is no stage '{stage}'", f"choose {', '.join(registry.kind_names())}")
    flagged = next((name for name in kind.flags if f"--{name}" in arguments), None)
    method = value_of(arguments, "--method") or flagged or known[0]
    if flagged is not None and method != flagged:
        raise UsageError(f"--{flagged} means --method {flagged}, found --method {method} too", "give one of them")
    if method not in known:
        raise UsageError(f"--method {method}: {stage} has no such method", f"choose {', '.join(known)}")
    cls = registry.get(f"{stage}.{method}")

    def callback(method: str, **values: Any) -> None:
        from compresskit.cli.distributed import sharing
        from compresskit.cli.run_stage import run_stage

        for flag in kind.flags:
            values.pop(flag, None)
        stage = make(cls, {name: values.pop(name) for name in cls.model_fields if name in values})
        limited = values["max_drop"] is not None or values["max_size"] is not None
        with sharing(stage, data=values["data"] is not None, limited=limited) as ranks:
            run_stage(stage, values.pop("model"), ranks, **values)

    parameters = [
        inspect.Parameter("model", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=shared.ModelArg),
        _method_option(stage, method),
        *map(_flag_option, kind.flags),
        *(_option(name, field) for name, field in _own_first(cls)),
        *_shared_options(),
    ]
    callback.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    callback.__annotations__ = {p.name: p.annotation for p in parameters}
    callback.__doc__ = _help(cls)
    return callback


def _own_first(cls: type[Stage]) -> list[tuple[str, FieldInfo]]:
    """A method's options in the order of the help: those that all training has come last."""
    return sorted(cls.model_fields.items(), key=lambda item: item[0] in Recovery.model_fields)


def make(cls: type[Stage], values: dict[str, Any]) -> Stage:
    """A stage from the options of the command line.

    Raises:
        UsageError: Names the option, what it takes and what it was given.
    """
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    try:
        return cls(**given)
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else "the options"
        message = as_flags(str(first["msg"])).removeprefix("Value error, ").removeprefix("Input should be ")
        raise UsageError(
            f"{option} {first['input']}: expected {message}", f"see: compresskit {cls.kind.name} --help"
        ) from error


def _help(cls: type[Stage]) -> str:
    from compresskit.cli.commands import SUBCOMMANDS

    stage = cls.kind.name
    body = as_flags(inspect.cleandoc(cls.__doc__ or ""))
    others = [m for m in registry.methods(stage) if m != cls.method]
    more = (
        f"\n\nOther methods: {', '.join(others)}. Options of one: compresskit {stage} --method NAME --help"
        if others
        else ""
    )
    below = "".join(f"\n\ncompresskit {stage} {name}: {line}" for name, line in SUBCOMMANDS.get(stage, {}).items())
    return f"{cls.kind.summary}\n\nMethod {cls.method}. {body}{more}{below}"


def _method_option(stage: str, method: str) -> inspect.Parameter:
    text = f"Algorithm. The options below belong to {method}."
    option = typer.Option(
        "--method", metavar="|".join(registry.methods(stage)), help=text, rich_help_panel=OWN, show_default=False
    )
    return inspect.Parameter(
        "method", inspect.Parameter.KEYWORD_ONLY, default=method, annotation=Annotated[str, option]
    )


def _flag_option(name: str) -> inspect.Parameter:
    option = typer.Option(f"--{name}", help=f"The same as --method {name}.", rich_help_panel=OWN, show_default=False)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, option])


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    """One field as a typer option; ranges and choices stay pydantic's to check."""
    kind, metavar = _plain(field.annotation)
    flag = "--" + name.replace("_", "-")
    declared = f"{flag}/--no-{name.replace('_', '-')}" if kind in (bool, bool | None) else flag
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    option = typer.Option(
        declared,
        metavar=metavar,
        help=as_flags(field.description or ""),
        rich_help_panel=_TRAINING if name in Recovery.model_fields else OWN,
        show_default=default not in (None, [], False),
    )
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def _plain(annotation: Any) -> tuple[Any, str | None]:
    """The type that typer parses, and what the help shows for it."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return type(args[0]), "|".join(map(str, args))
    if origin is tuple:
        return list[args[0]], None  # type: ignore[valid-type]
    if origin in (Union, types.UnionType):
        inner = next(a for a in args if a is not type(None))
        kind, metavar = _plain(inner)
        return kind | None, metavar
    return annotation, None


def _shared_options() -> list[inspect.Parameter]:
    """Those that every stage has, in the order of the help."""
    from compresskit.cli.run_stage import run_stage

    signature = inspect.signature(run_stage, eval_str=True)
    return [p for p in signature.parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
