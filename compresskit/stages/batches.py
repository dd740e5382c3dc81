"""Calibration samples as torch tensors, and a way to call any module with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from compresskit.errors import InputError, UsageError
from compresskit.model import portable

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compresskit.data.source import Source
    from compresskit.model import InputSpec, Model
    from compresskit.ops.shrinking import CalibrationData
    from compresskit.stage import Context


def calibration(source: Source, samples: int) -> dict[str, Any]:
    """What a card records of the data that a stage looked at.

    Args:
        source: The data.
        samples: Most samples that were taken.
    """
    return {
        "data": portable(source.name), "samples": min(samples, len(source)), "sha256": source.fingerprint()
    }  # fmt: skip


def batches_of(
    source: Source, inputs: tuple[InputSpec, ...], size: int, limit: int, *, by_length: bool = True
) -> list[dict[str, Tensor]]:
    """Batches by input name, helper inputs filled in.

    Args:
        source: Calibration data.
        inputs: What the model takes; empty where that isn't known: then the data's names are kept.
        size: Samples in a batch.
        limit: Most samples.
        by_length: Put padded text of about equal length together; else samples stay in the source's order, and padded
            text has one length.

    Raises:
        InputError: The data are empty, hold NaN or Inf, lack an input or have another shape.
    """
    import torch

    from compresskit.data.checked import checked

    found = []
    for batch in source.batches(size, limit):
        # copies: the arrays are the source's own, and a runtime may read them meanwhile
        tensors = {name: torch.tensor(array) for name, array in checked(batch, source.name, inputs).items()}
        if all(tensor.numel() for tensor in tensors.values()):
            found.append(tensors)
    if not found:
        raise InputError(f"{source.name} has no calibration sample", "give data with at least one")
    free = not inputs or all(len(spec.shape) < 2 or isinstance(spec.shape[1], str) for spec in inputs)
    whole = _whole(found) if free else None
    if whole is None:
        return found
    if by_length:
        return _by_length(whole, size)
    ends = list(accumulate(len(batch["attention_mask"]) for batch in found))
    return [{name: tensor[a:b] for name, tensor in whole.items()} for a, b in pairwise([0, *ends])]


def _whole(batches: list[dict[str, Tensor]]) -> dict[str, Tensor] | None:
    """All samples of padded text, filled up to one length; None for what isn't text padded at its end only."""
    import torch

    from compresskit.train.reading import padded_at_end

    masks = [batch["attention_mask"] for batch in batches if "attention_mask" in batch]
    if len(masks) < len(batches) or not all(map(padded_at_end, masks)):
        return None
    if any(t.dim() != 2 or t.shape != batch["attention_mask"].shape for batch in batches for t in batch.values()):
        return None
    longest = max(m.shape[1] for m in masks)
    return {
        name: torch.cat([torch.nn.functional.pad(b[name], (0, longest - b[name].shape[1])) for b in batches])
        for name in batches[0]
    }


def _by_length(whole: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    """Padded text in batches of about equal length, shortest first: often half of the positions are padding.

    Batches hold as many tokens as ``size`` of the longest samples.
    """
    lengths = whole["attention_mask"].ne(0).sum(1).tolist()
    longest = whole["attention_mask"].shape[1]
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    found: list[dict[str, Tensor]] = []
    rows: list[int] = []
    for row in [*order, -1]:
        if rows and (row < 0 or (len(rows) + 1) * lengths[row] > size * longest):
            wide = max(1, lengths[rows[-1]])
            found.append({name: tensor[rows, :wide].contiguous() for name, tensor in whole.items()})
            rows = []
        rows.append(row)
    return found


def forward_of(module: nn.Module, inputs: tuple[InputSpec, ...]) -> Callable[[nn.Module, dict[str, Tensor]], Any]:
    """Calls a module with a batch: by name where its ``forward`` knows the names, else by position.

    A batch stays as it is, whatever the module writes into its inputs.
    """
    from compresskit.exporter.call import Flat
    from compresskit.exporter.quiet import first_line
    from compresskit.stages.untouched import Untouched

    flat, untouched = Flat(module, inputs), Untouched()

    def called(target: nn.Module, batch: dict[str, Tensor]) -> Any:
        if flat.by_name and inputs:
            return target(**batch, **flat.extra)
        return target(*batch.values())

    def forward(target: nn.Module, batch: dict[str, Tensor]) -> Any:
        try:
            return untouched.call(partial(called, target), batch)
        except Exception as error:  # a user's forward may raise anything
            if type(error).__module__.startswith("compresskit"):
                raise
            given = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in batch.items())
            raise InputError(
                f"the model failed on calibration data of {given}: {type(error).__name__}: {first_line(error)}",
                "prepare the data as for inference; `input_shape` gives the input shape of the model",
            ) from error

    return forward


def calibration_data(
    model: Model, ctx: Context, *, samples: int, size: int, rows: int, by_length: bool = True
) -> CalibrationData:
    """What pruning and factorizing run a model on; without data only an example, which is made up.

    Args:
        model: A module and its card.
        ctx: Holds the data, if any.
        samples: Most samples to take.
        size: Samples in a batch.
        rows: Samples of the example.
        by_length: See :func:`batches_of`.

    Raises:
        UsageError: There are no data, and the model's inputs aren't known.
        InputError: The data don't fit.
    """
    from compresskit.ops.shrinking import CalibrationData

    forward, inputs = forward_of(model.module, model.card.inputs), model.card.inputs
    scores = model.card.task in ("classification", "causal-lm")
    if ctx.data is None:
        if not inputs:
            raise UsageError("the model's inputs aren't known", "give `input_shape` or `data`")
        return CalibrationData(made_up(inputs, rows, ctx.seed), (), forward, scores)
    batches = batches_of(ctx.data, inputs, size, min(samples, len(ctx.data)), by_length=by_length)
    longest = batches[-1 if by_length else 0]
    return CalibrationData({name: tensor[:rows] for name, tensor in longest.items()}, batches, forward, scores)


def labelled_data(model: Model, ctx: Context, *, samples: int, size: int) -> CalibrationData:
    """As :func:`calibration_data`; labels that are classes say that the outputs of a model of no known task are scores.

    Args:
        model: A module and its card.
        ctx: Holds the data, if any.
        samples: Most samples to take.
        size: Samples in a batch.

    Raises:
        UsageError: There are no data, and the model's inputs aren't known.
        InputError: The data don't fit.
    """
    data = calibration_data(model, ctx, samples=samples, size=size, rows=1)
    if ctx.data is None or ctx.data.kind == "pairs" or model.card.task != "unknown":
        return data
    targets = next(ctx.data.batches(1, 1)).targets
    return replace(data, scores=targets is not None and targets.ndim == 1 and targets.dtype.kind == "i")


def made_up(inputs: tuple[InputSpec, ...], count: int, seed: int, *, sequence: int = 64) -> dict[str, Tensor]:
    """One batch of random samples, for what has to be measured without data; ``sequence`` is the length of text."""
    import torch

    from compresskit.benchmark.feeds import make_feeds

    feeds = make_feeds(inputs, {"batch": count, "sequence": sequence}, seed)
    return {name: torch.from_numpy(array) for name, array in feeds.items()}
