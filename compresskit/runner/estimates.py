"""What each stage could do with a model: sizes by its shapes, what can be pruned, and what rounding would cost."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compresskit.errors import InputError
from compresskit.model import Model
from compresskit.ops.estimates.ranks import MULTIPLE
from compresskit.ops.estimates.sizes import Inventory, Kind, Sized
from compresskit.ops.packed.formats import FORMATS
from compresskit.ops.packed.layout import Grid
from compresskit.runner.candidate import files_of
from compresskit.stage import Progress, silent
from compresskit.stages.quantize_rtn import QuantizeRtn

if TYPE_CHECKING:
    from compresskit.data.source import Source
    from compresskit.ops.quantize.select import Selection

NOTE = "sizes are estimates from shapes; each command measures its result"
BITS: Literal[4] = 4
"""Bits at which a layer's sensitivity is measured."""
SAMPLES = 32
"""Samples that it is measured on, at most."""
_BITS: tuple[Literal[4, 8], ...] = (8, BITS)
_CODES = re.compile(r"u?int[2348]|table[2348]")


def estimates(model: Model, found: Mapping[str, Any], *, seed: int = 0) -> dict[str, Any]:
    """What each stage could do with a model, as JSON data; nothing is changed.

    Args:
        model: As it was read.
        found: What the inspection found of it.
        seed: Seed of the random inputs.

    Returns:
        ``quantize`` (``forms``: size, layers and multiply-accumulates in few bits, by the command that gives them),
        ``prune``, ``factorize`` (``layers``: break-even ranks) and ``note``. What can't be told has a ``reason``.
    """
    inventory, grids, ranks, reason = _read(model, found)
    return {
        "quantize": _forms(inventory, grids, found["totals"]["macs"], reason, dynamic=_has_products(found["layers"])),
        "prune": _pruned(model, reason, seed),
        "factorize": {"round_to": MULTIPLE, "layers": ranks, "reason": reason},
        "kinds": shares(inventory),
        "note": NOTE,
    }


def shares(inventory: Inventory) -> dict[str, float]:
    """Shares of the bytes by kind of layer; ``other`` is what no stage of quantize takes."""
    total = max(1, inventory.rest + sum(w.bytes for w in inventory.weights))
    kinds: tuple[Kind, ...] = ("conv", "linear", "embedding")
    found: dict[str, float] = {
        kind: sum(w.bytes for w in inventory.weights if w.kind == kind) / total for kind in kinds
    }
    return {kind: round(share, 4) for kind, share in {**found, "other": 1 - sum(found.values())}.items()}


def kinds_of_layers(model: Model, found: Mapping[str, Any]) -> dict[str, float]:
    """Shares of the bytes by kind of layer, see :func:`shares`.

    Args:
        model: As it was read.
        found: What the inspection found of it.
    """
    return shares(_read(model, found)[0])


def sensitivity(model: Model, source: Source, progress: Progress = silent) -> dict[str, Any]:
    """What the output loses when one layer alone has its weights in 4 bit, the worst first, as JSON data.

    Args:
        model: Its body is a module, its inputs are known.
        source: Samples; labels aren't read.
        progress: Called after each layer.

    Raises:
        InputError: No layer can be quantized, or the data don't fit.
    """
    from functools import partial

    from compresskit.ops.quantize.auto import rounded
    from compresskit.ops.quantize.sensitivity import distances
    from compresskit.ops.quantize.weights import plan_layers
    from compresskit.stages.batches import batches_of, calibration, forward_of

    module, inputs = model.module.eval(), model.card.inputs
    chosen = plan_layers(module, _selection(BITS))
    count = min(SAMPLES, len(source))
    batches = batches_of(source, inputs, 16, count)
    scores = model.card.task in ("causal-lm", "classification")
    changed = {n: partial(rounded, grid=grid) for n, grid in chosen.grids.items() if n not in chosen.ties}
    found = distances(module, changed, batches, forward_of(module, inputs), progress, scores=scores)
    ranked = sorted(found.items(), key=lambda item: -item[1])
    return {
        "bits": BITS,
        "measure": "divergence" if scores else "relative error",
        **calibration(source, count),
        "layers": [{"name": name, "loss": loss} for name, loss in ranked],
    }


def _selection(bits: Literal[4, 8]) -> Selection:
    """As ``quantize`` chooses layers and groups where nothing else is asked for."""
    return QuantizeRtn(bits=bits).selection()


def _read(
    model: Model, found: Mapping[str, Any]
) -> tuple[Inventory, dict[int, dict[str, Grid]], dict[str, dict[str, int]], str]:
    """What the model's file is made of, the grids of its layers by bits, break-even ranks, and why there are none."""
    grids: dict[int, dict[str, Grid]]
    selections = {n: _selection(n) for n in _BITS}
    if isinstance(model.body, Path):
        from compresskit.ops.estimates import entries

        if model.body.suffix == ".onnx":
            size = sum(path.stat().st_size for path in files_of(model.body))
            inventory, ranks = entries.inventory_of_graph(found["layers"], size), entries.ranks_of(found["layers"])
        else:
            inventory, ranks = entries.inventory_of_tensors(found["layers"], found["totals"]["bytes"]), {}
        codes = any(_CODES.fullmatch(name) or name in FORMATS for name in found["dtypes"])
        reason = "quantized already" if codes else "" if inventory.weights else "there is no layer's weight in it"
        if reason:
            return inventory, {}, {}, reason
        grids = {n: entries.grids_of(inventory, chosen) for n, chosen in selections.items()}
        return inventory, grids, ranks, reason
    from compresskit.ops.estimates import modules

    inventory = modules.inventory_of(model.body, {layer["name"]: layer["macs"] for layer in found["layers"]})
    if modules.quantized(model.body):
        return inventory, {}, {}, "quantized already"
    try:
        grids = {n: modules.grids_of(model.body, chosen) for n, chosen in selections.items()}
    except InputError as error:
        return inventory, {}, modules.ranks_of(model.body), error.message
    return inventory, grids, modules.ranks_of(model.body), ""


def _has_products(layers: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a graph has something that int8-dynamic takes."""
    kinds = ("MatMul", "Gemm", "Gather")
    return any(layer["type"] in kinds and "weight" in layer and not layer.get("left") for layer in layers)


def _forms(
    inventory: Inventory, grids: Mapping[int, dict[str, Grid]], macs: int | None, reason: str, *, dynamic: bool
) -> dict[str, Any]:
    """The sizes of what ``quantize`` could write."""
    base = inventory.as_float()
    if reason or not any(grids.values()):
        return {"forms": [], "reason": reason or "no layer gets smaller"}
    made: list[tuple[str, str, Sized]] = []
    if inventory.file != "tensors":
        made.append(("8 bit", "quantize --bits 8 --data DATA", inventory.eight()))
    if inventory.file == "written" and dynamic:
        made.append(("8 bit products", "quantize --bits 8", inventory.eight(("linear", "embedding"))))
    if inventory.file == "written":
        made.append(
            (f"{BITS} bit weights", f"quantize --bits {BITS}, from the checkpoint", inventory.packed(grids[BITS]))
        )
    else:
        made += [(f"{n} bit weights", f"quantize --bits {n}", inventory.packed(grids[n])) for n in _BITS]
    return {
        "float_bytes": base.bytes,
        "forms": [
            {
                "form": form,
                "by": command,
                "bytes": size.bytes,
                "smaller": round(base.bytes / max(1, size.bytes), 2),
                "layers": size.layers,
                "macs": macs,
                "macs_on_codes": None if macs is None else size.macs,
            }
            for form, command, size in made
            if size.layers
        ],
    }


def _pruned(model: Model, reason: str, seed: int) -> dict[str, Any]:
    """The share that structured pruning could touch."""
    if isinstance(model.body, Path):
        reason = "a graph has no module to cut" if model.body.suffix == ".onnx" else "needs the architecture: `arch`"
    elif not reason and not model.card.inputs:
        reason = "needs the shape of the input: `input_shape`"
    if reason or isinstance(model.body, Path):
        return {"known": False, "reason": reason}
    from compresskit.ops.estimates.prunable import prunable
    from compresskit.ops.shrinking import CalibrationData
    from compresskit.stages.batches import forward_of, made_up

    inputs = model.card.inputs
    try:
        data = CalibrationData(made_up(inputs, 2, seed), (), forward_of(model.body, inputs))
    except InputError as error:
        return {"known": False, "reason": error.message}
    found = prunable(model.body, data)
    return {"known": False, "reason": found} if isinstance(found, str) else found.to_json()
