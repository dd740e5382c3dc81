"""The methods there are, by name: built-ins and those that installed packages offer. Imports no torch.

A plugin is a package with an entry point in the group ``compresskit.stages``:
``"quantize.mine" = "package.module:Class"``.
"""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points

from compresskit.errors import UsageError
from compresskit.stage import Stage

BUILT_IN = {
    "prune.structured": "compresskit.stages.prune_structured:PruneStructured",
    "prune.depth": "compresskit.stages.prune_depth:PruneDepth",
    "prune.width": "compresskit.stages.prune_width:PruneWidth",
    "prune.magnitude": "compresskit.stages.prune_magnitude:PruneMagnitude",
    "prune.wanda": "compresskit.stages.prune_wanda:PruneWanda",
    "prune.sparsegpt": "compresskit.stages.prune_sparsegpt:PruneSparsegpt",
    "factorize.auto": "compresskit.stages.factorize_auto:FactorizeAuto",
    "factorize.svd": "compresskit.stages.factorize_linear:FactorizeSvd",
    "factorize.whitened": "compresskit.stages.factorize_linear:FactorizeWhitened",
    "factorize.fisher": "compresskit.stages.factorize_linear:FactorizeFisher",
    "factorize.tucker": "compresskit.stages.factorize_conv:FactorizeTucker",
    "factorize.spatial": "compresskit.stages.factorize_conv:FactorizeSpatial",
    "factorize.cp": "compresskit.stages.factorize_conv:FactorizeCp",
    "quantize.auto": "compresskit.stages.quantize_auto:QuantizeAuto",
    "quantize.rtn": "compresskit.stages.quantize_rtn:QuantizeRtn",
    "quantize.hqq": "compresskit.stages.quantize_hqq:QuantizeHqq",
    "quantize.gptq": "compresskit.stages.quantize_gptq:QuantizeGptq",
    "quantize.awq": "compresskit.stages.quantize_awq:QuantizeAwq",
    "quantize.adaround": "compresskit.stages.quantize_adaround:QuantizeAdaround",
    "quantize.qat": "compresskit.stages.quantize_qat:QuantizeQat",
    "quantize.int8-static": "compresskit.stages.quantize_int8_static:QuantizeInt8Static",
    "quantize.int8-dynamic": "compresskit.stages.quantize_int8_dynamic:QuantizeInt8Dynamic",
    "quantize.smoothquant": "compresskit.stages.quantize_smoothquant:QuantizeSmoothquant",
    "quantize.nf4": "compresskit.stages.quantize_nf4:QuantizeNf4",
    "quantize.bnb-int8": "compresskit.stages.quantize_bnb_int8:QuantizeBnbInt8",
    "distill.standardized": "compresskit.stages.distill_logits:DistillStandardized",
    "distill.kd": "compresskit.stages.distill_logits:DistillKd",
    "distill.dkd": "compresskit.stages.distill_dkd:DistillDkd",
    "distill.features": "compresskit.stages.distill_features:DistillFeatures",
    "distill.layers": "compresskit.stages.distill_features:DistillLayers",
    "distill.gkd": "compresskit.stages.distill_gkd:DistillGkd",
    "lora.lora": "compresskit.stages.lora_peft:LoraLora",
    "lora.rslora": "compresskit.stages.lora_peft:LoraRslora",
    "lora.dora": "compresskit.stages.lora_peft:LoraDora",
    "lora.pissa": "compresskit.stages.lora_peft:LoraPissa",
    "lora.vera": "compresskit.stages.lora_peft:LoraVera",
    "lora.ia3": "compresskit.stages.lora_peft:LoraIa3",
    "lora.loftq": "compresskit.stages.lora_loftq:LoraLoftq",
    "lora.bottleneck": "compresskit.stages.lora_own:LoraBottleneck",
    "lora.prompt": "compresskit.stages.lora_own:LoraPrompt",
    "lora.full": "compresskit.stages.lora_own:LoraFull",
    "lora.merge": "compresskit.stages.lora_merge:LoraMerge",
}


@cache
def rows() -> dict[str, str]:
    """Name to ``module:Class``; a plugin can't replace a built-in."""
    plugins = {point.name: point.value for point in entry_points(group="compresskit.stages")}
    return {**plugins, **BUILT_IN}


def get(name: str) -> type[Stage]:
    """The class of one method.

    Raises:
        UsageError: No such method; the nearest name is given.
    """
    if name not in rows():
        near = get_close_matches(name, rows(), 1)
        raise UsageError(
            f"there is no method '{name}'", f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(rows())}"
        )
    module, _, attribute = rows()[name].partition(":")
    found: type[Stage] = getattr(import_module(module), attribute)
    return found


def methods(stage: str) -> list[str]:
    """The methods of a stage, built-ins first."""
    return [
        name.partition(".")[2]
        for name in (*BUILT_IN, *sorted(set(rows()) - set(BUILT_IN)))
        if name.startswith(f"{stage}.")
    ]


def stages() -> list[str]:
    """The stages there are, in the order in which they make sense."""
    return list(dict.fromkeys(name.partition(".")[0] for name in rows()))
