"""The kinds of stages, each a command and a prefix of recipe keys, with the methods that come with compresskit.

Imports nothing, so that the top help, which shows a line of each kind, costs no time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_NAME = re.compile(r"[a-z][a-z0-9-]*")
COMMANDS = (
    "compress", "run", "verify", "cache", "export", "bench", "evaluate", "compare", "check", "report", "inspect",
    "recipe", "generate", "predict", "serve", "mcp", "demo", "doctor",
)  # fmt: skip
"""Commands that are no stages: a kind of such a name could never be run."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Kind:
    """What is true of all methods of one kind. Whatever has no default must be said: none of it can be guessed.

    Attributes:
        name: The command, and what stands before the dot in a recipe's key: ``prune``.
        summary: One line of help.
        changes_size: Parameters or multiply-accumulates may differ afterwards, so they are counted again.
        before_codes: Changes float weights, so it can't follow a stage that quantizes.
        only_tunes: Makes nothing smaller or faster: a model that it alone changed may be larger and slower.
        quantizes: Gives codes: what is quantized isn't quantized again, nor changed by a kind that comes before codes.
        methods: Each with its ``module:Class``, the default first; a plugin's are its entry points.
        flags: Methods that an option of their own name asks for too, as ``--qat``.

    Raises:
        ValueError: The name can't be typed or is a command's, the summary isn't one line, or two statements contradict.
    """

    name: str
    summary: str
    changes_size: bool
    before_codes: bool
    only_tunes: bool
    quantizes: bool
    methods: Mapping[str, str] = field(default_factory=dict, repr=False)
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"a kind is named by lower-case letters, digits and hyphens, found {self.name!r}")
        if self.name in COMMANDS:
            raise ValueError(f"a kind can't be called {self.name}, which is a command: give it another name")
        if not self.summary.strip() or "\n" in self.summary:
            raise ValueError(f"the summary of {self.name} is one line of help, found {self.summary!r}")
        if self.quantizes and self.before_codes:
            raise ValueError(f"{self.name} can't both quantize and come before what quantizes")


PRUNE = Kind(
    name="prune",
    summary="Remove channels, blocks or single weights from a model.",
    changes_size=True,
    before_codes=True,
    only_tunes=False,
    quantizes=False,
    methods={
        "structured": "compresskit.stages.prune_structured:PruneStructured",
        "depth": "compresskit.stages.prune_depth:PruneDepth",
        "width": "compresskit.stages.prune_width:PruneWidth",
        "magnitude": "compresskit.stages.prune_magnitude:PruneMagnitude",
        "wanda": "compresskit.stages.prune_wanda:PruneWanda",
        "sparsegpt": "compresskit.stages.prune_sparsegpt:PruneSparsegpt",
        "subnet": "compresskit.stages.prune_subnet:PruneSubnet",
    },
)
SUBSTITUTE = Kind(
    name="substitute",
    summary="Replace blocks and layers by cheaper ones, fitted or exact.",
    changes_size=True,
    before_codes=True,
    only_tunes=False,
    quantizes=False,
    methods={
        "collapse": "compresskit.stages.substitute_collapse:SubstituteCollapse",
        "fold": "compresskit.stages.substitute_fold:SubstituteFold",
        "depthwise": "compresskit.stages.substitute_depthwise:SubstituteDepthwise",
        "bottleneck": "compresskit.stages.substitute_bottleneck:SubstituteBottleneck",
        "tokens": "compresskit.stages.substitute_tokens:SubstituteTokens",
        "patches": "compresskit.stages.substitute_patches:SubstitutePatches",
        "attention": "compresskit.stages.substitute_attention:SubstituteAttention",
    },
)
SHARE = Kind(
    name="share",
    summary="Let layers share their weights, stored once; make a model symmetric under flips and turns.",
    changes_size=True,
    before_codes=True,
    only_tunes=False,
    quantizes=False,
    methods={
        "tie": "compresskit.stages.share_tie:ShareTie",
        "symmetrize": "compresskit.stages.share_symmetrize:ShareSymmetrize",
    },
)
FACTORIZE = Kind(
    name="factorize",
    summary="Replace layers by products of smaller ones (low-rank matrices, smaller convolutions).",
    changes_size=True,
    before_codes=True,
    only_tunes=False,
    quantizes=False,
    methods={
        "auto": "compresskit.stages.factorize_auto:FactorizeAuto",
        "svd": "compresskit.stages.factorize_linear:FactorizeSvd",
        "whitened": "compresskit.stages.factorize_linear:FactorizeWhitened",
        "fisher": "compresskit.stages.factorize_linear:FactorizeFisher",
        "tucker": "compresskit.stages.factorize_conv:FactorizeTucker",
        "spatial": "compresskit.stages.factorize_conv:FactorizeSpatial",
        "cp": "compresskit.stages.factorize_conv:FactorizeCp",
    },
)
ROUTE = Kind(
    name="route",
    summary="Use only some pieces of a model for an input: early exits, experts.",
    changes_size=True,
    before_codes=True,
    only_tunes=False,
    quantizes=False,
    methods={
        "exits": "compresskit.stages.route_exits:RouteExits",
        "experts": "compresskit.stages.route_experts:RouteExperts",
    },
)
QUANTIZE = Kind(
    name="quantize",
    summary="Store weights in 2 to 8 bits, or compute in 8 bits with calibration data.",
    changes_size=False,
    before_codes=False,
    only_tunes=False,
    quantizes=True,
    methods={
        "auto": "compresskit.stages.quantize_auto:QuantizeAuto",
        "rtn": "compresskit.stages.quantize_rtn:QuantizeRtn",
        "hqq": "compresskit.stages.quantize_hqq:QuantizeHqq",
        "gptq": "compresskit.stages.quantize_gptq:QuantizeGptq",
        "awq": "compresskit.stages.quantize_awq:QuantizeAwq",
        "adaround": "compresskit.stages.quantize_adaround:QuantizeAdaround",
        "qat": "compresskit.stages.quantize_qat:QuantizeQat",
        "int8-static": "compresskit.stages.quantize_int8_static:QuantizeInt8Static",
        "int8-dynamic": "compresskit.stages.quantize_int8_dynamic:QuantizeInt8Dynamic",
        "smoothquant": "compresskit.stages.quantize_smoothquant:QuantizeSmoothquant",
        "palette": "compresskit.stages.quantize_palette:QuantizePalette",
        "nf4": "compresskit.stages.quantize_nf4:QuantizeNf4",
        "bnb-int8": "compresskit.stages.quantize_bnb_int8:QuantizeBnbInt8",
    },
    flags=("qat",),
)
DISTILL = Kind(
    name="distill",
    summary="Train MODEL (the student) to reproduce the outputs of a teacher, with or without labels.",
    changes_size=True,
    before_codes=True,
    only_tunes=False,
    quantizes=False,
    methods={
        "standardized": "compresskit.stages.distill_logits:DistillStandardized",
        "kd": "compresskit.stages.distill_logits:DistillKd",
        "dkd": "compresskit.stages.distill_dkd:DistillDkd",
        "features": "compresskit.stages.distill_features:DistillFeatures",
        "layers": "compresskit.stages.distill_features:DistillLayers",
        "gkd": "compresskit.stages.distill_gkd:DistillGkd",
        "supernet": "compresskit.stages.distill_supernet:DistillSupernet",
    },
)
LORA = Kind(
    name="lora",
    summary="Fine-tune a model with adapters such as LoRA; merge, list or combine adapters.",
    changes_size=True,
    before_codes=False,
    only_tunes=True,
    quantizes=False,
    methods={
        "lora": "compresskit.stages.lora_peft:LoraLora",
        "rslora": "compresskit.stages.lora_peft:LoraRslora",
        "dora": "compresskit.stages.lora_peft:LoraDora",
        "pissa": "compresskit.stages.lora_peft:LoraPissa",
        "vera": "compresskit.stages.lora_peft:LoraVera",
        "ia3": "compresskit.stages.lora_peft:LoraIa3",
        "loftq": "compresskit.stages.lora_loftq:LoraLoftq",
        "bottleneck": "compresskit.stages.lora_own:LoraBottleneck",
        "prompt": "compresskit.stages.lora_own:LoraPrompt",
        "full": "compresskit.stages.lora_own:LoraFull",
        "merge": "compresskit.stages.lora_merge:LoraMerge",
        "route": "compresskit.stages.lora_route:LoraRoute",
    },
)
BUILT_IN = (PRUNE, SUBSTITUTE, SHARE, FACTORIZE, ROUTE, QUANTIZE, DISTILL, LORA)
"""In the order in which they make sense."""
