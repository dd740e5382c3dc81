"""The commands as tools for a program: a JSON schema of what each takes, and the words that call it."""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Union, get_args, get_origin

from compresskit import registry
from compresskit.cli.app import build
from compresskit.cli.commands import COMMANDS
from compresskit.errors import UsageError

_READING = ("inspect", "bench", "evaluate", "compare", "check", "predict")
"""Commands that write nothing unless an option names a file."""
_WRITING = ("compress", "run", "export", "report")
_OURS = {"json", "quiet", "plain", "format", "markdown", "help", "help_all", "show_completion", "install_completion"}
"""Options about the terminal, which the server sets itself."""
_TYPES: dict[Any, str] = {bool: "boolean", int: "integer", float: "number"}


@dataclass(frozen=True)
class Tool:
    """A command.

    Attributes:
        name: Of the command.
        description: The first paragraph of its help.
        schema: JSON schema of its arguments, an object.
        reads_only: It writes nothing unless an option names a file.
    """

    name: str
    description: str
    schema: dict[str, Any]
    reads_only: bool


def tools() -> list[Tool]:
    """The commands that read models, change them or judge them; those of plugins too."""
    kinds = [name for name in registry.kind_names() if name not in COMMANDS]
    return [_tool(name) for name in (*_READING, *_WRITING, *kinds)]


def words(name: str, arguments: Mapping[str, Any]) -> list[str]:
    """The command line of a call, without the program's name.

    Args:
        name: Of one of :func:`tools`.
        arguments: By the names in its schema; those of another method of the command too.

    Raises:
        UsageError: There is no such tool, argument or value.
    """
    if name not in {*_READING, *_WRITING, *registry.kind_names()}:
        raise UsageError(f"there is no tool '{name}'")
    method = arguments.get("method")
    command = build(name, [] if method is None else [f"--method={method}"])
    known = {option.name: option for option in command.params if option.name not in _OURS}
    if strange := [key for key in arguments if key not in known]:
        raise UsageError(f"{name} has no argument '{strange[0]}'", f"there are: {', '.join(known)}")
    options: list[str] = []
    places: list[str] = []
    for key, option in known.items():
        if (value := arguments.get(key)) is None:
            continue
        if option.param_type_name == "argument":
            places += map(str, value if isinstance(value, list) else [value])
        elif option.is_flag:
            options += _flag(option, value)
        else:
            options += [f"{_long(option)}={one}" for one in (value if isinstance(value, list) else [value])]
    told = {option.name for option in command.params} & {"json", "format"}
    quiet = ["--quiet"] if any(option.name == "quiet" for option in command.params) else []
    document = ["--json=-"] if "json" in told else ["--format=json"] if "format" in told else []
    # What comes behind two dashes is no option, whatever it begins with.
    return [name, *options, *document, *quiet, *(["--", *places] if places else [])]


def _long(option: Any) -> str:
    """``--output`` of ``-o`` and ``--output``: a short one takes no ``=``."""
    return next((name for name in option.opts if name.startswith("--")), str(option.opts[0]))


def _flag(option: Any, value: object) -> Sequence[str]:
    if not isinstance(value, bool):
        raise UsageError(f"{option.name} is true or false, found {value!r}")
    if value:
        return [_long(option)]
    return option.secondary_opts[:1] if option.default else []


def _tool(name: str) -> Tool:
    command = build(name, [])
    shown = [option for option in command.params if option.name not in _OURS and not getattr(option, "hidden", False)]
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {option.name: _property(option) for option in shown},
        "required": [option.name for option in shown if option.required],
    }
    about = inspect.cleandoc(command.help or "").partition("\n\n")[0].replace("\n", " ")
    if "method" in schema["properties"]:
        about += " The arguments are those of the default method; those of another method may be given with `method`."
    return Tool(name, about, schema, name in _READING)


def _property(option: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"description": option.help} if getattr(option, "help", None) else {}
    if option.name == "method" and option.metavar:
        return {"type": "string", "enum": option.metavar.split("|"), **found}
    if getattr(option, "is_flag", False):
        return {"type": "boolean", **found}
    annotation = _plain(option.type_descriptor.annotation)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        single: dict[str, Any] = {"enum": [one.value for one in annotation]}
    else:
        single = {"type": _TYPES.get(annotation, "string")}
        bounds = {"minimum": getattr(option, "min", None), "maximum": getattr(option, "max", None)}
        single |= {key: value for key, value in bounds.items() if value is not None and single["type"] != "string"}
    many = getattr(option, "multiple", False) or option.nargs != 1
    return {"type": "array", "items": single, **found} if many else {**single, **found}


def _plain(annotation: Any) -> Any:
    """The type itself, of ``X | None`` and of ``list[X]``."""
    while get_origin(annotation) in (Union, types.UnionType, list, tuple):
        annotation = next((one for one in get_args(annotation) if one is not type(None)), str)
    return annotation
