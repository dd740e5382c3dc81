"""Single weights set to zero in a whole module: which layers, the run over calibration data, what is recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.ops.calibration.activation_stream import Batch, Forward
from compresskit.ops.calibration.gram import corrected
from compresskit.ops.calibration.moments import Moments, collectable
from compresskit.ops.calibration.sequential import Segment, run_sequentially
from compresskit.ops.globs import check_globs, left_out
from compresskit.ops.packed.modules import PackedLayer, same_tensor
from compresskit.ops.prune.magnitude import prune_magnitude, prune_together
from compresskit.ops.prune.masks import Pattern, oriented, zeros
from compresskit.ops.quantize.calibrated import correct_bias
from compresskit.ops.quantize.weights import named

Scope = Literal["layer", "output", "global"]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Calibrated:
    """A method that prunes a layer by what it takes in.

    Attributes:
        prune: Weight, the weight whose output is aimed at, and moments of the inputs to a weight with zeros.
        drift: Share of what earlier layers lost that is compensated, 0 to 1.
        centred: Where a layer has a bias, which makes up for the mean error, the moments are without the inputs' mean.
    """

    prune: Callable[[Tensor, Tensor, Moments], Tensor]
    drift: float
    centred: bool = True


@dataclass(frozen=True)
class Layers:
    """Which layers of a module are pruned.

    Attributes:
        layers: By name, in the module's order; each weight once.
        skipped: The others that have a weight matrix, with the reason.
    """

    layers: dict[str, nn.Module]
    skipped: dict[str, str]


def plan_layers(module: nn.Module, pattern: Pattern, include: Sequence[str], exclude: Sequence[str]) -> Layers:
    """Decide without changing anything: every layer with a weight matrix, embeddings apart.

    Raises:
        UsageError: A glob matches no layer.
        InputError: There is no layer that could be pruned.
    """
    weights = {n: m for n, m in module.named_modules(remove_duplicate=False) if _matrix(m)}
    check_globs(weights, (*include, *exclude))
    looked_up = {same_tensor(m.weight): n for n, m in weights.items() if isinstance(m, nn.Embedding)}
    chosen: dict[str, nn.Module] = {}
    skipped = {n: "quantized already" for n, layer in module.named_modules() if isinstance(layer, PackedLayer)}
    first: dict[tuple[Any, ...], str] = {}
    for name, layer in weights.items():
        weight = same_tensor(layer.get_parameter("weight"))
        owner = first.setdefault(weight, name)
        if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
            reason: str | None = "an embedding: its rows are looked up, none is multiplied"
        elif left := left_out(name, include, exclude):
            reason = left
        elif weight in looked_up:
            reason = f"shares its weight with the embedding '{looked_up[weight]}'"
        elif owner in chosen:
            reason = f"shares its weight with '{owner}', which is pruned"
        else:
            reason = pattern.misfit(oriented(layer))
        if reason is None:
            chosen[name] = layer
        else:
            skipped[name] = reason
    if not chosen:
        raise InputError(_nothing(skipped), "to see what can be compressed: compresskit inspect MODEL")
    return Layers(chosen, skipped)


def prune_free(
    layers: Mapping[str, nn.Module], pattern: Pattern, *, scope: Scope = "layer", progress: Progress
) -> None:
    """Prune layers by magnitude, in place.

    Args:
        layers: By name.
        pattern: Which share.
        scope: Rank the weights of each output, of each layer, or of all layers together, which is not for a pattern
            with groups.
        progress: Called after each layer.

    Raises:
        InputError: A weight holds NaN or Inf.
    """
    for name, layer in layers.items():
        _check_finite(name, layer)
    if scope == "global":
        prune_together(layers, pattern.sparsity)
        return
    for done, layer in enumerate(layers.values(), 1):
        view = oriented(layer)
        view.copy_(prune_magnitude(view, pattern, by_row=scope == "output"))
        progress("prune", done, len(layers))


@torch.no_grad()
def prune_calibrated(
    module: nn.Module,
    layers: Mapping[str, nn.Module],
    pattern: Pattern,
    method: Calibrated,
    batches: Sequence[Batch],
    forward: Forward,
    progress: Progress,
) -> list[str]:
    """Prune layers with calibration data, in place: block by block, each layer by what its inputs are by then.

    Args:
        module: Holds the layers; in eval mode.
        layers: By name.
        pattern: For layers that no sample reaches, or whose inputs can't be written as rows: those go by magnitude.
        method: For all others.
        batches: Calibration inputs by name.
        forward: Calls the module with a batch.
        progress: Called after each layer.

    Returns:
        The layers that went by magnitude.

    Raises:
        InputError: A weight or a layer's inputs hold NaN or Inf.
    """
    done: set[str] = set()

    def step(segment: Segment) -> None:
        for group in segment.groups:
            names = [name for name in group if name not in done]
            for name, moments in segment.moments(names, cross=method.drift > 0).items():
                named(name, partial(_prune, layers[name], method, moments))
                done.add(name)
                progress("prune", len(done), len(layers))

    run_sequentially(module, batches, forward, list(layers), step, original=method.drift > 0)
    left = {name: layer for name, layer in layers.items() if name not in done}
    prune_free(left, pattern, progress=progress)
    return list(left)


def _prune(layer: nn.Module, method: Calibrated, moments: Moments) -> None:
    weight = layer.get_parameter("weight")
    seen = moments.centred() if method.centred and layer._parameters.get("bias") is not None else moments
    original = weight.detach().clone()
    found = method.prune(original, corrected(original, seen, method.drift), seen)
    correct_bias(layer, original, found, moments, method.drift)
    weight.copy_(found)


def reasons(names: Iterable[str], layers: Mapping[str, nn.Module]) -> dict[str, list[str]]:
    """Why layers went without calibration, and which."""
    found: dict[str, list[str]] = {}
    for name in names:
        reason = "no sample reached them" if collectable(layers[name]) else "their inputs can't be written as rows"
        found.setdefault(reason, []).append(name)
    return found


def facts_of(layers: Mapping[str, nn.Module]) -> dict[str, Any]:
    """What the card records: zeros by layer and in all, as counted now."""
    counted = {name: zeros([layer]) for name, layer in layers.items()}
    sizes = {name: layer.get_parameter("weight").numel() for name, layer in layers.items()}
    about = {
        name: {"about": f"at {100 * count / sizes[name]:.1f} % zeros", "zeros": count}
        for name, count in counted.items()
    }
    return {"layers": about, "zeros": sum(counted.values()), "of": sum(sizes.values())}


def _matrix(layer: nn.Module) -> bool:
    weight = layer._parameters.get("weight")
    return weight is not None and weight.dim() >= 2 and weight.is_floating_point() and weight.numel() > 0


def _check_finite(name: str, layer: nn.Module) -> None:
    if not layer.get_parameter("weight").isfinite().all():
        raise InputError(f"layer '{name}': the weight holds NaN or Inf", "leave its layer out with `exclude`")


def _nothing(skipped: Mapping[str, str]) -> str:
    if not skipped:
        return "the model has no layer with a weight matrix, so there is nothing to prune"
    name, reason = next(iter(skipped.items()))
    return f"none of {len(skipped)} layers can be pruned; '{name}': {reason}"
