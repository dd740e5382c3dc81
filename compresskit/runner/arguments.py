"""How the library's calls take models and data: as paths, or as what was read already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from compresskit.errors import UsageError
from compresskit.model import Model
from compresskit.report import Report
from compresskit.runner.compare import Comparison, check_comparison, compare
from compresskit.runner.judging import Measuring
from compresskit.runner.loading import load, load_for, load_shipped
from compresskit.runner.sources import opener
from compresskit.stage import Progress, Stage

if TYPE_CHECKING:
    from compresskit.data.source import Source
    from compresskit.data.windows import Window

AnyModel = str | Path | Model
AnyData = Union[str, Path, "Source", None]


@dataclass(frozen=True)
class Reading:
    """How a model that is given as a path is read; see :func:`compresskit.load`."""

    arch: str | None = None
    arch_args: dict[str, Any] | None = None
    input_shape: tuple[int, ...] | None = None
    allow_nonfinite: bool = False

    def options(self) -> dict[str, Any]:
        """The keyword arguments of :func:`compresskit.load`; JSON."""
        return {
            "arch": self.arch, "arch_args": self.arch_args or {}, "input_shape": self.input_shape,
            "allow_nonfinite": self.allow_nonfinite,
        }  # fmt: skip

    def to_change(self, model: AnyModel, stages: Sequence[Stage], **about: bool) -> Model:
        """The model for stages; see :func:`compresskit.runner.loading.load_for`, which takes ``about``.

        Raises:
            UsageError: As :meth:`whole`.
        """
        if isinstance(model, Model):
            return self.whole(model)
        return load_for(model, stages, **about, **self.options())

    def whole(self, model: AnyModel) -> Model:
        """The model with its module, where the architecture is known.

        Raises:
            UsageError: It is read already, and its architecture is given all the same.
        """
        if not isinstance(model, Model):
            return load(model, **self.options())
        if self.arch or self.arch_args or self.input_shape:
            raise UsageError("arch, arch_args and input_shape are for a path: this model is read already")
        return model


@dataclass(frozen=True)
class Samples:
    """Data as it was given, and how it is prepared.

    Attributes:
        data: A path, a source that is open already, or None.
        normalize: For paths; see :func:`compresskit.open_data`.
        window: How running text is cut.
    """

    data: AnyData = None
    normalize: str | None = None
    window: Window | None = None

    def of(self, model: Model, sequence: int) -> Source | None:
        """The samples for a model, of so many tokens at most."""
        return open_all(model, [self.data], self.normalize, sequence, self.window)[0]


def open_all(
    model: Model, given: Sequence[AnyData], normalize: str | None, sequence: int, window: Window | None = None
) -> list[Source | None]:
    """All data of one call, prepared in the same way; what is open already stays as it is."""
    paths = [str(data) if isinstance(data, (str, Path)) else None for data in given]
    open_ = opener(model, normalize, sequence, paths=paths, window=window)
    return [data if path is None else open_(path) for data, path in zip(given, paths, strict=True)]  # type: ignore[misc]


def compared(
    models: Sequence[AnyModel], samples: Samples, reading: Reading, measuring: Measuring, how: Comparison,
    progress: Progress,
) -> Report:  # fmt: skip
    """Measure models as they ship, and compare each with the first.

    Raises:
        UsageError: What is asked for doesn't fit together.
    """
    check_comparison(len(models), measuring, how, evaluated=samples.data is not None)
    known = {model.source: model for model in models if isinstance(model, Model)}
    paths = [model.source if isinstance(model, Model) else Path(model) for model in models]

    def read(path: Path, runtime: str) -> Model:
        if path in known:
            return known[path]
        return load_shipped(path, reading.options(), several=len(paths) > 1, runtime=runtime)

    how = replace(how, loader_args=reading.options())
    return compare(
        paths, read, lambda model: samples.of(model, measuring.sequence), measuring, how, progress=progress
    )  # fmt: skip
