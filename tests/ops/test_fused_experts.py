"""Mixtures of experts whose classes read their fused weights in ways of their own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from compresskit.ops.packed.experts import Experts
from compresskit.ops.packed.grid import dequantize
from compresskit.ops.packed.modules import PackedExperts, PackedLayer
from compresskit.ops.quantize.opened import opened
from compresskit.ops.quantize.rtn import quantize_rtn
from compresskit.ops.quantize.select import ROUTES, Selection, routers
from compresskit.ops.quantize.weights import quantize_module

transformers = pytest.importorskip("transformers")
SMALL = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_local_experts": 4,
}  # fmt: skip
MODELS = {
    "Mixtral": ("MixtralConfig", {}),
    "GptOss": ("GptOssConfig", {"head_dim": 16, "num_experts_per_tok": 2}),
    "Llama4": ("Llama4TextConfig", {"head_dim": 16, "num_experts_per_tok": 1, "intermediate_size_mlp": 64}),
    "JetMoe": ("JetMoeConfig", {"kv_channels": 32, "num_experts_per_tok": 2}),
}


def made(name: str) -> Any:
    torch.manual_seed(0)
    config, more = MODELS[name]
    module = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, config)(**{**SMALL, **more})).eval()
    module.config.use_cache = False
    for parameter in module.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.05)
    return module


def logits(module: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = module(input_ids=torch.arange(2, 18).reshape(2, 8)).logits
    return found


@pytest.mark.parametrize("name", MODELS)
def test_a_mixture_computes_with_what_its_codes_stand_for(name: str) -> None:
    module = made(name)
    plain = copy.deepcopy(module)
    facts, skipped = quantize_module(module, Selection(8, 64), quantize_rtn, lambda *_: None)
    packed = {n: layer for n, layer in module.named_modules() if isinstance(layer, PackedLayer)}
    experts = {n for n, layer in packed.items() if isinstance(layer, PackedExperts)}
    assert len(experts) >= 2
    assert all(reason == ROUTES or n.endswith("_proj_bias") for n, reason in skipped.items())
    with opened(plain), torch.no_grad():
        for n in facts["layers"]:
            plain.get_submodule(n).get_parameter("weight").copy_(dequantize(packed[n].packed))
    assert torch.allclose(logits(module), logits(plain), atol=1e-5)
    one = packed[min(experts)]
    assert torch.equal(one[1], one.tensor[1])


def test_what_was_opened_and_not_replaced_is_as_before() -> None:
    module = made("Mixtral")
    before, said = logits(module), list(module.state_dict())
    with opened(module):
        assert sum(isinstance(layer, Experts) for layer in module.modules()) == 2
        assert torch.equal(logits(module), before)
    assert list(module.state_dict()) == said
    assert torch.equal(logits(module), before)


def test_routers_by_their_names() -> None:
    names = ["a.gate", "a.experts.0.w1", "b.gate", "b.gate_proj", "c.router.layer", "shared_expert_gate", "experts.up"]
    assert routers(names) == {"a.gate", "c.router.layer", "shared_expert_gate"}
