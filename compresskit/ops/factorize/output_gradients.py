"""Second moments of what the model's outputs would gain by each output of a layer: which errors matter.

No labels are asked for. For scores a class is drawn from the model's own distribution, which gives the true Fisher
matrix rather than the empirical one (Kunstner et al., 2019, "Limitations of the Empirical Fisher Approximation"); for
other outputs they are projected on random directions, whose mean square is the squared error (Hutchinson's estimate).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresskit.ops.calibration.activation_stream import Batch, Forward
from compresskit.ops.calibration.trace import tensors_in
from compresskit.ops.prune.importance import gradients


def output_gradients(
    module: nn.Module,
    names: Sequence[str],
    batches: Sequence[Batch],
    forward: Forward,
    progress: Callable[[str, int, int], None],
    *,
    scores: bool = False,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Sums over the positions of a batch of ``g gᵀ``, ``g`` the gradient by what a layer gives there.

    They are scaled so that ``trace(G D H Dᵀ)`` with the second moments ``H`` of the inputs is what an error ``D`` of
    the weight does to the outputs, as :func:`~compresskit.ops.quantize.sensitivity.distances` measures it.

    Args:
        module: In eval mode.
        names: Linear layers and convolutions.
        batches: Inputs; the mean over them is taken.
        forward: Calls the module; must let gradients through.
        progress: Called after each batch.
        scores: The first output holds scores of classes or tokens.
        seed: Of what is drawn.

    Returns:
        By name, float64 ``(outputs, outputs)``; layers that no gradient reaches are missing.
    """
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, Tensor] = {}
    keep: list[Tensor | None] = [None]

    def arrived(name: str, layer: nn.Module, gradient: Tensor) -> None:
        rows = _rows(layer, gradient.detach(), keep[0]).double()
        sums[name] = sums.get(name, 0) + rows.T @ rows

    def passing(name: str, layer: nn.Module, _args: Any, out: Tensor) -> None:
        # On the tensor, not the module: what follows may change it in place.
        if out.requires_grad:
            out.register_hook(partial(arrived, name, layer))  # type: ignore[no-untyped-call]

    def loss(target: nn.Module, index: int) -> Tensor:
        mask = batches[index].get("attention_mask")
        keep[0] = None if mask is None or mask.dim() != 2 else mask.bool()
        return _drawn(list(tensors_in(forward(target, batches[index]))), keep[0], scores, generator)

    handles = [module.get_submodule(n).register_forward_hook(partial(passing, n)) for n in names]
    try:
        numbered = list(range(len(batches)))
        for done, _ in enumerate(gradients(module, names, numbered, loss), 1):
            progress("weigh the outputs' gradients", done, len(batches))
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / len(batches) for name, total in sums.items() if total.isfinite().all() and total.any()}


def _drawn(outputs: Sequence[Tensor], keep: Tensor | None, scores: bool, generator: torch.Generator) -> Tensor:
    """A scalar whose squared change is, in the mean, how far the outputs move."""
    floats = [t for t in outputs if t.is_floating_point() and t.requires_grad]
    if not floats:
        raise RuntimeError("no output has a gradient")
    first = floats[0]
    if scores and first.dim() > 1 and first.shape[-1] > 1:
        flat = (first if keep is None or first.shape[:2] != keep.shape else first[keep]).reshape(-1, first.shape[-1])
        drawn = torch.multinomial(flat.detach().double().softmax(-1), 1, generator=generator)[:, 0]
        # Half of the squared change of the logarithm is the divergence.
        surprise: Tensor = F.cross_entropy(flat, drawn, reduction="sum")
        return surprise * math.sqrt(0.5 / len(flat))
    total = first.new_zeros(())
    for t in floats:
        random = torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype)
        if keep is not None and t.shape[:2] == keep.shape:
            random = random * keep.reshape(*keep.shape, *[1] * (t.dim() - 2))
        size = t.detach().where(t.isfinite(), 0.0).double().square().sum() * len(floats)
        total = total + (t * random).sum() / float(size.clamp(min=1e-30)) ** 0.5
    return total


def _rows(layer: nn.Module, y: Tensor, keep: Tensor | None) -> Tensor:
    """What a layer gives as rows ``(positions, outputs)``."""
    if isinstance(layer, nn.Linear):
        return (y[keep] if keep is not None and y.dim() >= 3 and y.shape[:2] == keep.shape else y).flatten(0, -2)
    axes = 1 if isinstance(layer, nn.Conv1d) else 2
    y = y if y.dim() == axes + 2 else y.unsqueeze(0)
    return y.flatten(2).permute(0, 2, 1).flatten(0, 1)
