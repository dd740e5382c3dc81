"""Neurons of the feed-forward parts of a transformer, and its attention heads: equally many go from each layer.

So a config of transformers, which has one number for all layers, can describe what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.errors import InputError, listing
from compresskit.ops.calibration.activation_stream import Batch, Forward
from compresskit.ops.calibration.gram import corrected
from compresskit.ops.calibration.moments import Moments
from compresskit.ops.calibration.sequential import Segment, run_sequentially
from compresskit.ops.calibration.trace import chain, trace
from compresskit.ops.prune.config import accepts
from compresskit.ops.prune.same import same
from compresskit.ops.prune.units import columns_of, prune_units
from compresskit.ops.quantize.calibrated import correct_bias
from compresskit.ops.quantize.weights import named

_WIDTHS = ("intermediate_size", "ffn_dim", "hidden_dim", "n_inner")
_QUERY, _KEYS = "q_proj", ("k_proj", "v_proj")
_PROJECTIONS = (
    (_QUERY, *_KEYS, "o_proj"),
    (_QUERY, *_KEYS, "out_proj"),
    ("q_lin", "k_lin", "v_lin", "out_lin"),
    ("self.query", "self.key", "self.value", "output.dense"),
)
"""Queries, keys, values and what reads the heads, below the module of a block's attention."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Part:
    """What is cut together: units of the inputs of one Linear layer, and what makes them.

    Attributes:
        reader: The Linear layer that reads the units; its columns go.
        makers: The Linear layers that make them, with the rows of a unit; those rows go.
        size: Columns of a unit in ``reader``.
        units: How many there are.
    """

    reader: str
    makers: dict[str, int]
    size: int
    units: int


def neurons(module: nn.Module, batch: Batch, forward: Forward) -> tuple[str, list[Part]]:
    """The feed-forward parts of a transformers model, and the config's name of their width.

    Raises:
        InputError: Its blocks don't have one such part each, made of Linear layers.
    """
    blocks = _blocks(module, batch, forward)
    config: Any = module.config
    for key in _WIDTHS:
        width = getattr(config, key, None)
        if width is None and key == "n_inner" and hasattr(config, key):
            width = 4 * config.hidden_size  # what GPT-2 takes it for
        if not isinstance(width, int):
            continue
        parts = [_neurons(block, module.get_submodule(block), width) for block in blocks]
        known = [part for part in parts if part is not None]
        if known and len(known) == len(blocks):
            return key, known
    raise InputError(
        f"{type(module).__name__} doesn't have one feed-forward part of Linear layers in each of its blocks",
        "prune `method` depth drops whole blocks of it",
    )


def heads(module: nn.Module, batch: Batch, forward: Forward) -> list[Part]:
    """The attention heads of a transformers model; those that share keys and values are one unit.

    Raises:
        InputError: Its attention isn't made of Linear layers as Llama's is, or its config has no ``head_dim``.
    """
    config: Any = module.config
    size, queries, keys = (getattr(config, k, None) for k in ("head_dim", "num_attention_heads", "num_key_value_heads"))
    found = []
    if size and queries and keys:
        for block in _blocks(module, batch, forward):
            linear = {n: m for n, m in module.get_submodule(block).named_modules() if isinstance(m, nn.Linear)}
            named_ = {n.rpartition(".")[2]: f"{block}.{n}" for n in linear}
            if {_QUERY, *_KEYS, "o_proj"} <= set(named_):
                shared = queries // keys * size
                makers = {named_[_QUERY]: shared, **{named_[key]: size for key in _KEYS}}
                found.append(Part(named_["o_proj"], makers, shared, keys))
            else:
                found.clear()
                break
    if not found:
        raise InputError(
            f"the config of {type(module).__name__} can't tell of fewer heads: their width isn't in it",
            "remove `heads`; prune `method` structured cuts heads of models given by `arch`",
        )
    return found


def any_heads(module: nn.Module, batch: Batch, forward: Forward) -> list[Part]:
    """The attention heads of a transformers model, also of one whose config can't tell of fewer.

    Returns:
        One part a block; none where blocks have other attention than four Linear layers, or several.
    """
    config: Any = module.config
    queries = getattr(config, "num_attention_heads", 0)
    keys = getattr(config, "num_key_value_heads", None) or queries
    found = []
    for block in _blocks(module, batch, forward):
        linear = {f"{block}.{n}": m for n, m in module.get_submodule(block).named_modules() if isinstance(m, nn.Linear)}
        sets = [
            tuple(name.removesuffix(kind[0]) + leaf for leaf in kind)
            for kind in _PROJECTIONS
            for name in linear
            if name.endswith(f".{kind[0]}")
        ]
        whole = [names for names in sets if set(names) <= set(linear)]
        if len(whole) != 1 or not keys or linear[whole[0][1]].out_features % keys:
            return []
        query, key, value, reader = whole[0]
        size, shared = linear[key].out_features // keys, linear[query].out_features // keys
        found.append(Part(reader, {query: shared, key: size, value: size}, shared, keys))
    return found


def heads_left(config: Any, ratio: float) -> dict[str, int]:
    """The config's numbers of heads once a share of them is gone: the next larger ones that it accepts."""
    keys, size = config.num_key_value_heads, config.head_dim
    each = config.num_attention_heads // keys
    for left in range(max(1, round(keys * (1 - ratio))), keys):
        changes = {"num_attention_heads": left * each, "num_key_value_heads": left, "head_dim": size}
        if accepts(config, changes):
            return changes
    return {"num_attention_heads": keys * each, "num_key_value_heads": keys, "head_dim": size}


@torch.no_grad()
def prune_width(
    module: nn.Module,
    parts: Sequence[tuple[Part, int]],
    batches: Sequence[Batch],
    forward: Forward,
    *,
    drift: float,
    progress: Progress,
) -> dict[str, list[int]]:
    """Cut units of a model in place, block by block, each part by what its inputs are by then.

    Args:
        module: In eval mode.
        parts: Each with the number of units that stay.
        batches: Calibration inputs by name.
        forward: Calls the module with a batch.
        drift: Share of what earlier parts lost that is compensated, 0 to 1.
        progress: Called after each part.

    Returns:
        Name of each reader to the units that stay.

    Raises:
        InputError: A weight or a part's inputs hold NaN or Inf, no sample reaches a part, or the cut model computes
            something else.
    """
    by_reader = {part.reader: (part, keep) for part, keep in parts}
    stays: dict[str, list[int]] = {}

    def step(segment: Segment) -> None:
        for name in (name for group in segment.groups for name in group):
            for moments in segment.moments([name], cross=drift > 0).values():
                part, keep = by_reader[name]
                stays[name] = named(name, partial(_zero, segment.layer(name), part, keep, moments, drift))
                progress("prune", len(stays), len(parts))

    run_sequentially(module, batches, forward, list(by_reader), step, original=drift > 0)
    missed = [name for name in by_reader if name not in stays]
    if missed:
        raise InputError(f"no sample reaches {listing(missed)}", "give data that do")
    masked = forward(module, batches[0])
    for name, (part, _) in by_reader.items():
        _cut(module, part, stays[name])
    if not same(masked, forward(module, batches[0])):
        raise InputError(f"{type(module).__name__} computes something else once it is cut", "use `method` depth")
    return stays


def _zero(layer: nn.Module, part: Part, keep: int, moments: Moments, drift: float) -> list[int]:
    weight = layer.get_parameter("weight")
    seen = moments.centred() if layer._parameters.get("bias") is not None else moments
    original = weight.detach().clone()
    found, stays = prune_units(corrected(original, seen, drift), seen, part.size, keep)
    correct_bias(layer, original, found, moments, drift)
    weight.copy_(found)
    return stays


def _cut(module: nn.Module, part: Part, stays: list[int]) -> None:
    reader = module.get_submodule(part.reader)
    if not isinstance(reader, nn.Linear):
        raise TypeError(f"{part.reader} is not Linear")
    reader.weight = _kept(reader.weight, columns_of(stays, part.size), 1)
    reader.in_features = reader.weight.shape[1]
    for name, size in part.makers.items():
        maker, rows = module.get_submodule(name), columns_of(stays, size)
        if not isinstance(maker, nn.Linear):
            raise TypeError(f"{name} is not Linear")
        maker.weight, maker.out_features = _kept(maker.weight, rows, 0), len(rows)
        if maker.bias is not None:
            maker.bias = _kept(maker.bias, rows, 0)


def _kept(parameter: Tensor, places: Tensor, axis: int) -> nn.Parameter:
    return nn.Parameter(parameter.detach().index_select(axis, places), requires_grad=parameter.requires_grad)


def _neurons(name: str, block: nn.Module, width: int) -> Part | None:
    """The feed-forward part of a block: all Linear layers that give its width, and the one that takes it."""
    linear = {f"{name}.{n}": m for n, m in block.named_modules() if isinstance(m, nn.Linear)}
    makers = [n for n, layer in linear.items() if layer.out_features == width]
    readers = [n for n, layer in linear.items() if layer.in_features == width]
    if len(readers) != 1 or not 1 <= len(makers) <= 2 or set(readers) & set(makers):
        return None
    return Part(readers[0], dict.fromkeys(makers, 1), 1, width)


def _blocks(module: nn.Module, batch: Batch, forward: Forward) -> list[str]:
    with torch.no_grad():
        return chain(module, trace(module, partial(forward, module, batch)))
