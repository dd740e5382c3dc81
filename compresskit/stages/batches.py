"""Calibration samples as torch tensors, and a way to call any module with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from compresskit.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compresskit.data.source import Source
    from compresskit.model import InputSpec


def batches_of(source: Source, inputs: tuple[InputSpec, ...], size: int, limit: int) -> list[dict[str, Tensor]]:
    """Batches by input name, helper inputs filled in.

    Args:
        source: Calibration data.
        inputs: What the model takes; empty where that isn't known: then the data's names are kept.
        size: Samples in a batch.
        limit: Most samples.

    Raises:
        InputError: The data are empty, hold NaN or Inf, lack an input or have another shape.
    """
    import torch

    from compresskit.data.prepare import complete, fits, shape_text

    found = []
    for batch in source.batches(size, limit):
        arrays = complete(batch.inputs, inputs) if inputs else batch.inputs
        for spec in inputs:
            if not fits(arrays[spec.name].shape, spec.shape):
                found_shape, wanted = shape_text(arrays[spec.name].shape), shape_text(spec.shape)
                raise InputError(
                    f"{source.name}: '{spec.name}' is {found_shape}, the model takes {wanted}",
                    "prepare the data as for inference",
                )
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise InputError(f"{source.name}: '{name}' holds NaN or Inf", "remove those samples")
        if all(tensor.numel() for tensor in tensors.values()):
            found.append(tensors)
    if not found:
        raise InputError(f"{source.name} has no calibration sample", "give data with at least one")
    return found


def forward_of(module: nn.Module, inputs: tuple[InputSpec, ...]) -> Callable[[nn.Module, dict[str, Tensor]], Any]:
    """Calls a module with a batch: by name where its ``forward`` knows the names, else by position."""
    from compresskit.export.call import Flat

    flat = Flat(module, inputs)

    def forward(target: nn.Module, batch: dict[str, Tensor]) -> Any:
        if flat.by_name and inputs:
            return target(**batch, **flat.extra)
        return target(*batch.values())

    return forward


def made_up(inputs: tuple[InputSpec, ...], count: int, seed: int) -> dict[str, Tensor]:
    """One batch of made-up samples, for what has to be measured without data."""
    import torch

    from compresskit.bench.feeds import make_feeds

    feeds = make_feeds(inputs, {"batch": count, "sequence": 64}, seed)
    return {name: torch.from_numpy(array) for name, array in feeds.items()}
