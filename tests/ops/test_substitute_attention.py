"""Attention at less than the square of the length: as dense attention where it hears all, else as under a mask."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_substitute_tokens import hugging, vit
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.facts.substitute import AttentionFacts
from compresskit.ops.calibration.trace import tensors_in
from compresskit.ops.substitute.halves import dense
from compresskit.ops.substitute.sparse import find, replay, sparse, windowed


def drawn(count: int) -> tuple[Tensor, Tensor, Tensor]:
    made = torch.Generator().manual_seed(count)
    query, key, value = torch.randn(3, 2, 3, count, 8, generator=made, dtype=torch.float64)
    return query, key, value


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("everywhere", [0, 1, 2])
@pytest.mark.parametrize("window", [2, 5, 16, 64])
def test_a_window_is_what_a_mask_gives(window: int, everywhere: int, padded: bool) -> None:
    for count in (3, 16, 21):
        query, key, value = drawn(count)
        place = torch.arange(count)
        heard = (place[:, None] - place).abs() <= window
        heard |= (place < everywhere) | (place < everywhere)[:, None]
        bias, real = None, torch.ones(2, count, dtype=torch.bool)
        if padded:
            real[0, max(1, count - 4) :] = False
            bias = torch.where(real, 0.0, -1e9).double()[:, None, None]
        mask = torch.where(heard, 0.0, -1e9).double()
        wanted = dense(query, key, value, mask if bias is None else mask + bias)
        found = windowed(query, key, value, bias, window, everywhere)
        assert found.shape == wanted.shape
        assert float((found - wanted).abs().amax(dim=(1, 3))[real].max()) <= 1e-12
        if window >= count:
            full = dense(query, key, value, bias)
            assert float((found - full).abs().amax(dim=(1, 3))[real].max()) <= 1e-6


@torch.no_grad()
@pytest.mark.parametrize("name", ["plain", "ViT", "DeiT", "Bert"])
def test_whole_windows_and_as_many_sums_as_tokens_are_dense_attention(name: str) -> None:
    module, data = vit() if name == "plain" else hugging(name)
    found = find(module, data)
    assert {fact.everywhere for fact in found.values()} == {{"plain": 2, "DeiT": 2}.get(name, 1)} and len(found) == 3
    wanted = [t.clone() for t in tensors_in(data.run(module))]

    def away(layers: dict[str, AttentionFacts]) -> float:
        with sparse(module, layers):
            pairs = zip(wanted, tensors_in(data.run(module)), strict=True)
            return max(float((a - b).norm() / a.norm()) for a, b in pairs)

    assert away({name: replace(fact, window=fact.tokens) for name, fact in found.items()}) <= 1e-6
    narrow = {name: replace(fact, window=2) for name, fact in found.items()}
    assert away(narrow) > 1e-3
    sums = [{name: replace(fact, rank=fact.tokens // part) for name, fact in found.items()} for part in (1, 4)]
    exact, coarse = map(away, sums)
    assert exact <= 1e-6 < coarse or name == "Bert"  # whose padded keys are sums of nothing, which dense ones aren't
    replay(module, narrow)
    again = (vit() if name == "plain" else hugging(name))[0]
    replay(again, narrow)
    again.load_state_dict(module.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(tensors_in(data.run(again)), tensors_in(data.run(module)), strict=True)
    )


def test_sums_are_trained() -> None:
    module, data = vit()
    with torch.no_grad():
        found = find(module, data)
    replay(module, {name: replace(fact, rank=6) for name, fact in found.items()})
    data.run(module).square().sum().backward()
    sums = [p for name, p in module.named_parameters() if name.endswith("sums")]
    assert len(sums) == 3 and all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in sums)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"blocks.7": AttentionFacts(window=4)}, "has no layer 'blocks.7'"),
        ({"norm": AttentionFacts(window=4)}, "no self-attention"),
        ({"blocks.0.attn": AttentionFacts(rank=9, tokens=8)}, "9 sums of 8 tokens"),
        ({"blocks.0.attn": AttentionFacts(window=2, everywhere=5)}, "narrower than its first tokens"),
    ],
)
def test_facts_that_do_not_fit_are_refused(layers: dict[str, AttentionFacts], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replay(vit()[0], layers)


@torch.no_grad()
def test_causal_attention_is_refused() -> None:
    transformers: Any = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.BertConfig(vocab_size=40, max_position_embeddings=48, is_decoder=True, **sizes)
    module: nn.Module = transformers.BertModel(config).eval()
    data = hugging("Bert")[1]
    with pytest.raises(InputError, match="something else than softmax over all tokens"):
        find(module, data)
