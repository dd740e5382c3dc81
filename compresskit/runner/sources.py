"""The data of one run: all of it prepared in the same way, for one model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from compresskit.errors import UsageError
from compresskit.model import Model
from compresskit.recipe.plan import Recipe

if TYPE_CHECKING:
    from compresskit.data.source import Source
    from compresskit.data.windows import Window


def source_for(model: Model, path: str, normalize: str | None, sequence: int, window: Window | None = None) -> Source:
    """Open data for a model: its tokenizer encodes texts, its inputs and its task decide what the samples must be."""
    from compresskit.data.opening import open_source

    tokenizer = model.source if model.source.is_dir() else None
    return open_source(
        path, normalize=normalize, tokenizer=tokenizer, sequence=sequence, window=window,
        inputs=model.card.inputs, task=model.card.task,
    )  # fmt: skip


def parted(data: Source | None, recipe: Recipe) -> tuple[Source | None, Source | None]:
    """(the samples that the steps of a recipe get, those that it holds out from them).

    Raises:
        UsageError: There are too few for that.
    """
    if data is None or recipe.hold_out is None:
        return data, None
    from compresskit.data.parts import split

    return split(data, recipe.hold_out, seed=recipe.seed)


def opener(
    model: Model, normalize: str | None, sequence: int, *, paths: list[str | None], window: Window | None = None
) -> Callable[[str | None], Source | None]:
    """How the data of one command is opened: all of it with the same preparation.

    Args:
        model: What takes the samples.
        normalize: As typed.
        sequence: Most tokens of a sample.
        paths: All that will be opened.
        window: How running text is cut; None is pieces of ``sequence`` tokens.

    Raises:
        UsageError: `normalize` is given, but no data that it could be for.
    """
    if normalize is not None and not any(paths):
        raise UsageError("`normalize` is for data, and none is given", "give `data` or `eval_data`")
    return lambda path: None if path is None else source_for(model, path, normalize, sequence, window)
