"""Entry point: runs a command and turns whatever happens into one or two lines and an exit code."""

from __future__ import annotations

import errno
import gc
import os
import sys
from typing import NoReturn

from compresskit.errors import CompressKitError, ExitCode, as_flags, printable
from compresskit.render.plain import forget_odd_sizes

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
_PACKAGES = {
    **dict.fromkeys(("torch", "onnx", "onnxscript", "onnxruntime", "safetensors", "torch_pruning"), "compresskit"),
    **dict.fromkeys(("transformers", "tokenizers", "accelerate"), "compresskit[hf]"),
    "PIL": "compresskit[images]",
}
"""What an install for the edge leaves out, and what brings it."""


def main() -> NoReturn:
    """Run the command line on ``sys.argv`` and leave with its exit code."""
    # Imports and traces make objects by the million, hardly any in a cycle: looking for one after each 700, as Python
    # does by default, is an eighth of a command.
    gc.set_threshold(10_000, 10, 10)
    _open_closed_streams()
    forget_odd_sizes(os.environ)
    arguments = sys.argv[1:]
    debug = bool(os.environ.get("COMPRESSKIT_DEBUG"))
    if "--debug" in arguments:
        # Wherever it stands: who adds it has just seen an error and pressed arrow-up.
        arguments = [a for a in arguments if a != "--debug"]
        debug = True
    try:
        code = run(arguments)
        sys.stdout.flush()
    except BaseException as error:
        if debug and not isinstance(error, SystemExit):
            import traceback

            traceback.print_exception(error)
        code = explain(error)
    _leave(code)


def _open_closed_streams() -> None:
    """Python has no stdout or stderr where the caller closed them (``>&-``): what is said then goes nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 - open to the end


def run(arguments: list[str]) -> int:
    """Run one command; returns its exit code, or raises what went wrong."""
    from compresskit.checkpoint.terminate import terminating_as_exception
    from compresskit.cli.app import app

    with terminating_as_exception():
        result = app()(args=arguments, prog_name="compresskit", standalone_mode=False)
    if result == ExitCode.INTERRUPTED:  # typer makes a number of Ctrl-C, and says nothing
        raise KeyboardInterrupt
    return int(result) if isinstance(result, int) else int(ExitCode.OK)


def command_names() -> list[str]:
    """The commands there are, in the order of the help."""
    from compresskit.cli.app import Group

    return Group().list_commands(None)


def explain(error: BaseException) -> int:
    """Print an error as one or two lines on stderr, one with several problems as a line each; returns the exit code."""
    from typer import Abort, Exit
    from typer.exceptions import TyperException

    from compresskit.cli.console import broken_pipe
    from compresskit.cli.distributed import let_the_first_speak

    if broken_pipe(error):
        return ExitCode.OK
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(ExitCode.BUG)
    if isinstance(error, Exit):
        return error.exit_code
    let_the_first_speak()
    if isinstance(error, (KeyboardInterrupt, Abort)):
        _say("interrupted; nothing was left half-written")
        return ExitCode.INTERRUPTED
    if isinstance(error, CompressKitError):
        *first, last = error.messages()
        for message in first:
            _say(message)
        _say(last, error.hint)
        return error.exit_code
    if isinstance(error, TyperException):
        context = getattr(error, "ctx", None)
        path = getattr(context, "command_path", "compresskit")
        _say(printable(_wrong_value(error) or error.format_message()), _of_others(error, path) or f"see: {path} --help")
        return ExitCode.USAGE
    if lack := _lack(error):
        _say(*lack)
        return ExitCode.ENVIRONMENT
    _say(
        printable(f"a bug in compresskit: {type(error).__name__}: {error}"),
        "add --debug for the traceback, and report it",
    )
    return ExitCode.BUG


def _lack(error: BaseException) -> tuple[str, str] | None:
    """What this machine lacks, and what to do about it; None for an error of another kind."""
    if isinstance(error, ModuleNotFoundError) and (absent := (error.name or "").partition(".")[0]) in _PACKAGES:
        return f"this needs {absent}, which is not installed", f"pip install '{_PACKAGES[absent]}'"
    if isinstance(error, MemoryError):
        return "not enough memory", "close other programs, or use a machine with more"
    if isinstance(error, OSError) and error.errno in (*_FULL, *_REFUSED):
        where = f": {error.filename}" if error.filename else ""
        return printable(f"{os.strerror(error.errno or 0)}{where}"), ""
    return None


def _wrong_value(error: BaseException) -> str:
    """What was found, which typer's own message for a value of the wrong kind leaves out; empty for other errors."""
    from pydantic import ValidationError

    option = getattr(getattr(error, "param", None), "opts", None)
    if not option or not isinstance(error.__cause__, ValidationError):
        return ""
    first = error.__cause__.errors()[0]
    expected = str(first["msg"]).removeprefix("Input should be ").partition(", unable to parse")[0]
    return f"{option[-1]} {first['input']}: expected {expected}"


def _of_others(error: BaseException, path: str) -> str:
    """The methods of the stage at the end of ``path`` that have the option which was not found; empty for none."""
    from compresskit import registry

    stage, option = path.split()[-1], str(getattr(error, "option_name", ""))
    name = option.removeprefix("--no-").removeprefix("--").replace("-", "_")
    known = registry.methods(stage) if name else []
    found = [method for method in known if name in registry.get(f"{stage}.{method}").model_fields]
    if not found:
        return ""
    return f"{option} is an option of --method {', '.join(found)}; see: {path} --method {found[0]} --help"


def _say(message: str, hint: str = "") -> None:
    try:
        print(f"error: {as_flags(message)}", file=sys.stderr)
        if hint:
            print(f"  {as_flags(hint)}", file=sys.stderr)
    except OSError:
        pass  # nobody listens any more


def _leave(code: int) -> NoReturn:
    """Exit; a reader that closed the pipe early must not add a traceback at shutdown."""
    try:
        sys.stdout.flush()
    except (BrokenPipeError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    gc.freeze()  # what libraries hold goes with the process: to look for cycles in all of torch takes a second
    sys.exit(int(code))
