"""The class behind a checkpoint: found and called, only when the user typed where it is."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from compresskit.errors import CompressKitError, UsageError, listing

if TYPE_CHECKING:
    from types import ModuleType

    from torch import nn

_FORM = "`arch` takes FILE.py:NAME or package.module:NAME"


def build(
    reference: str, args: dict[str, Any] | None = None, *, meta: bool = False, skip_init: bool = False
) -> nn.Module:
    """Call the factory that a reference names.

    Args:
        reference: ``FILE.py:NAME`` or ``package.module:NAME``; a class or a function that gives a module.
        args: Keyword arguments of ``arch``.
        meta: Build on torch's meta device: shapes without values.
        skip_init: Leave parameters that ``torch.nn.init`` would fill untouched, for weights that are loaded afterwards:
            no time is spent and no memory committed. Buffers and plain tensors are filled as always.

    Returns:
        The module, in the mode the factory left it in.

    Raises:
        UsageError: The reference is wrong, the user's code failed (with its file and line), or gave no module.
    """
    import torch

    factory = find(reference)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_importing_from(_folder(reference)))
        if meta:
            stack.enter_context(torch.device("meta"))
        if skip_init:
            stack.enter_context(no_parameter_init())
        module = run_user_code(lambda: factory(**(args or {})), f"`arch` {_shown(reference)}")
    if isinstance(module, type) or not isinstance(module, torch.nn.Module):
        raise UsageError(f"`arch` {_shown(reference)} gave {_kind(module)}, a torch.nn.Module was expected")
    return module


def find(reference: str, option: str = "`arch`") -> Callable[..., Any]:
    """The callable that a reference names; the file or module is imported.

    Raises:
        UsageError: Not of the form, not found, or the user's code failed at import.
    """
    place, _, name = reference.rpartition(":")
    if not place or not name.isidentifier():
        raise UsageError(f"{option} '{reference}' is not a reference", _FORM.replace("`arch`", option))
    module = _import_file(Path(place), option) if place.endswith(".py") else _import_module(place, option)
    found = getattr(module, name, None)
    if found is None:
        public = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__]
        raise UsageError(f"{option}: {_shown(place)} has no '{name}'", f"it has {listing(public, 8)}" if public else "")
    if not callable(found):
        raise UsageError(f"{option}: '{name}' of {_shown(place)} is {_kind(found)}, a class or function was expected")
    return found  # type: ignore[no-any-return]


def portable_reference(reference: str) -> str:
    """The reference as a card may record it: relative as typed, or the bare file name; never an absolute path."""
    place, _, name = reference.rpartition(":")
    if not place.endswith(".py"):
        return reference
    if PurePosixPath(place).is_absolute() or PureWindowsPath(place).anchor or place.startswith("~"):
        place = PureWindowsPath(place).name
    return f"{place.replace(chr(92), '/')}:{name}"


def run_user_code(call: Callable[[], Any], what: str) -> Any:
    """Call code of the user's; what it raises becomes one line with the file and line where it failed.

    What it prints goes to stderr.

    Raises:
        UsageError: It raised, or left by ``sys.exit``.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return call()
    except CompressKitError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"{what} failed{_where(error)}: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def no_parameter_init() -> Iterator[None]:
    """Within it the functions of ``torch.nn.init`` leave parameters as they are."""
    import torch
    from torch.nn import init

    def skipping(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            target = args[0] if args else kwargs.get("tensor")
            return target if isinstance(target, torch.nn.Parameter) else function(*args, **kwargs)

        return wrapped

    names = [n for n in vars(init) if n.endswith("_") and not n.startswith("_") and callable(getattr(init, n))]
    kept = {name: getattr(init, name) for name in names}
    try:
        for name, function in kept.items():
            setattr(init, name, skipping(function))
        yield
    finally:
        for name, function in kept.items():
            setattr(init, name, function)


def _import_file(path: Path, option: str) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"{option}: there is no file {_shown(str(path))}", "check the path")
    real = path.resolve()
    name = f"_compresskit_user_{path.stem}_{hashlib.sha256(str(real).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, real)
    if spec is None or spec.loader is None:
        raise UsageError(f"{option}: {path} is not a Python file")
    module, loader = importlib.util.module_from_spec(spec), spec.loader
    sys.modules[name] = module
    try:
        with _importing_from(real.parent):
            run_user_code(lambda: loader.exec_module(module), f"{option} {_shown(str(path))}")
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _import_module(place: str, option: str) -> ModuleType:
    if not all(part.isidentifier() for part in place.split(".")):
        raise UsageError(
            f"{option} '{place}' is neither a .py file nor a module's name", _FORM.replace("`arch`", option)
        )
    try:
        with _importing_from(Path.cwd()), contextlib.redirect_stdout(sys.stderr):
            return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name and (place == error.name or place.startswith(error.name + ".")):
            raise UsageError(
                f"{option}: there is no module '{place}'", "is it installed, or below this folder?"
            ) from error
        raise UsageError(f"{option} {place} failed{_where(error)}: {error}") from error
    except (Exception, SystemExit) as error:
        raise UsageError(f"{option} {place} failed{_where(error)}: {type(error).__name__}: {error}") from error


def _folder(reference: str) -> Path:
    place = reference.rpartition(":")[0]
    return Path(place).resolve().parent if place.endswith(".py") else Path.cwd()


@contextlib.contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Siblings of the user's file can be imported, no ``__pycache__`` is left in the user's folder."""
    before, entry = sys.dont_write_bytecode, str(folder)
    sys.dont_write_bytecode = True
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.dont_write_bytecode = before
        with contextlib.suppress(ValueError):
            sys.path.remove(entry)


def _where(error: BaseException) -> str:
    """``at FILE:LINE`` of the user's innermost frame: the last one outside this package and installed libraries."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" at {_shown(error.filename)}:{error.lineno}"
    ours = str(Path(__file__).parent.parent)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((ours, "<"))]
    users = [f for f in frames if "site-packages" not in f.filename and "dist-packages" not in f.filename]
    users = [f for f in users if f"{Path(contextlib.__file__).parent}" != str(Path(f.filename).parent)] or users
    chosen = next(iter(reversed(users or frames)), None)
    return f" at {_shown(chosen.filename)}:{chosen.lineno}" if chosen else ""


def _shown(place: str) -> str:
    """A path below the current folder is shown relative to it."""
    with contextlib.suppress(ValueError, OSError):
        return Path(place).relative_to(Path.cwd()).as_posix()
    return place


def _kind(value: object) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__} itself"
    return f"a {type(value).__name__}"
