"""Channels of transformers: what torch-pruning hangs on, and what it doesn't know."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from compresskit.facts import read_facts
from compresskit.facts.prune import StructuredFacts
from compresskit.ops.prune.cut import cut, mask
from compresskit.ops.prune.dependencies import find_groups
from compresskit.ops.prune.replay import facts_of, replay, widths
from compresskit.ops.prune.rewrite import conv1d_to_linear, linear_to_conv1d
from compresskit.ops.prune.trial import proven

transformers = pytest.importorskip("transformers")
IDS = torch.arange(24).reshape(2, 12) % 40


def run(module: nn.Module) -> Any:
    return module(input_ids=IDS, use_cache=False).logits


def llama() -> nn.Module:
    """With grouped queries and a tied head: torch-pruning's own search never ends on it."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=4, tie_word_embeddings=True,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def gpt2(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config).eval()


def test_grouped_queries_do_not_hang() -> None:
    net = llama()
    found, skipped = find_groups(net, run, limit_s=60)
    groups, bad = proven(net, run, found)
    assert [g.name for g in groups] == [f"model.layers.{i}.mlp.gate_proj" for i in range(3)] and not bad
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        assert "heads of attention" in skipped[f"model.layers.1.self_attn.{name}"]
    assert "normalization" in skipped["model.layers.1.mlp.down_proj"]
    assert skipped["model.embed_tokens"] == "embeddings are left alone"
    assert skipped["lm_head"] == "it produces the model's output"


def test_conv1d_is_cut_and_stays_a_conv1d() -> None:
    net = gpt2()
    names = conv1d_to_linear(net)
    assert len(names) == 8
    assert torch.allclose(run(net), run(gpt2()), atol=1e-5)
    before = widths(net)
    groups, bad = proven(net, run, find_groups(net, run, limit_s=60)[0])
    assert [g.name for g in groups] == [f"transformer.h.{i}.mlp.c_fc" for i in range(2)] and not bad
    kept = {groups[0].name: range(0, 128, 2), groups[1].name: range(40)}
    masked = copy.deepcopy(net)
    mask(masked, groups, kept)
    cut(net, groups, kept)
    assert (run(masked) - run(net)).abs().max() <= 1e-5
    facts = {"layers": facts_of(net, before, names)}
    linear_to_conv1d(net, names)
    assert (run(masked) - run(net)).abs().max() <= 1e-5
    assert type(net.transformer.h[1].mlp.c_fc).__name__ == "Conv1D"
    assert tuple(net.transformer.h[1].mlp.c_fc.weight.shape) == (32, 40)

    again = gpt2(seed=1)
    replay(again, read_facts(StructuredFacts, facts))
    again.load_state_dict(net.state_dict())
    assert torch.equal(run(again), run(net))
