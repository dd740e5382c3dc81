"""Attention at less than the square of the length: as dense attention where it hears all, else as under a mask."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from test_substitute_tokens import hugging, vit
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.facts.substitute import AttentionFacts
from compresskit.ops.calibration.trace import tensors_in
from compresskit.ops.substitute.halves import dense
from compresskit.ops.substitute.kernels import drawn_features, through_elu, through_features
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


def features(count: int, seed: int) -> Tensor:
    return drawn_features(count, 8, torch.Generator().manual_seed(seed)).double()


def test_an_estimate_of_softmax_is_better_with_more_features() -> None:
    query, key, value = drawn(40)
    query, key = query / 8, key / 2
    wanted = dense(query, key, value, None)

    def error(count: int) -> float:
        off = [through_features(query, key, value, None, features(count, seed)) - wanted for seed in range(8)]
        return float(torch.stack(off).norm() / wanted.norm() / 8**0.5)

    errors = [error(count) for count in (8, 64, 512, 4096)]
    # the error of a mean of independent draws falls with the root of their number: 2.83 for eight times as many
    assert all(2 < before / after < 4 for before, after in pairwise(errors)), errors
    assert errors[-1] < 0.025


def test_random_features_are_orthogonal_and_normal() -> None:
    blocks = features(20, 0)
    for block in (blocks[:8], blocks[8:16], blocks[16:]):
        gram = block @ block.T
        assert float((gram - gram.diagonal().diag()).abs().max()) <= 1e-5
    first = torch.stack([features(8, seed) for seed in range(600)])
    # Householder's reflections alone give the first row and column a sign; six deviations of a mean of 600
    assert float(first.mean(0).abs().max()) < 6 / 600**0.5
    assert float((first.square().mean(0) - 1).abs().max()) < 6 * (2 / 600) ** 0.5
    assert torch.equal(features(20, 5), features(20, 5)) and not torch.equal(features(20, 5), features(20, 6))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("kernel", [through_elu, lambda *given: through_features(*given, features(16, 0))])
def test_weights_of_a_kernel_add_up_to_one_and_leave_padding_out(kernel: Any, scale: float, padded: bool) -> None:
    """With keys and queries so large that a plain exponential overflows, too."""
    query, key, value = drawn(21)
    query, key = query * scale, key * scale
    constant = value[:, :, :1].expand_as(value)
    bias = torch.zeros(2, 1, 1, 21, dtype=torch.float64)
    if padded:
        bias[0, ..., 13:] = -1e9
    assert torch.allclose(kernel(query, key, constant, bias if padded else None), constant, atol=1e-9)
    found = kernel(query, key, value, bias)
    assert torch.allclose(found[1], kernel(query, key, value, None)[1], atol=1e-9)
    if padded:
        shorter = kernel(*(t[:1, :, :13] for t in (query, key, value)), None)
        assert torch.allclose(found[:1, :, :13], shorter, atol=1e-9)


def test_linear_attention_is_what_its_weights_give() -> None:
    query, key, value = drawn(12)
    weights = (nn.functional.elu(query * 8**0.5) + 1) @ (nn.functional.elu(key) + 1).transpose(2, 3)
    wanted = weights / weights.sum(-1, keepdim=True) @ value
    assert float((through_elu(query, key, value, None) - wanted).abs().max()) <= 1e-12


@torch.no_grad()
@pytest.mark.parametrize("pattern", ["elu", "softmax"])
@pytest.mark.parametrize("name", ["plain", "Bert"])
def test_a_kernel_takes_the_place_of_attention(name: str, pattern: Any) -> None:
    module, data = vit() if name == "plain" else hugging(name)
    found, count = find(module, data), 256 if pattern == "softmax" else 0
    layers = {name: replace(fact, kernel=pattern, features=count) for name, fact in found.items()}
    wanted = next(tensors_in(data.run(module))).clone()
    replay(module, layers, seed=3)
    out = next(tensors_in(data.run(module)))
    off = float((out - wanted).norm() / wanted.norm())
    # an untrained model attends almost evenly, which random features tell well
    assert 1e-6 < off < (0.05 if pattern == "softmax" else 0.5)
    if name == "Bert":
        data.example["input_ids"][~data.example["attention_mask"].bool()] = 7
        real = data.example["attention_mask"].bool()
        assert torch.allclose(next(tensors_in(data.run(module)))[real], out[real], atol=1e-6)
    again = (vit() if name == "plain" else hugging(name))[0]
    replay(again, layers)
    again.load_state_dict(module.state_dict())
    assert torch.equal(next(tensors_in(data.run(again))), next(tensors_in(data.run(module))))


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
        ({"blocks.0.attn": AttentionFacts(kernel="softmax", width=4)}, "0 random features"),
        ({"blocks.0.attn": AttentionFacts(kernel="elu", features=8, width=4)}, "8 random features"),
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
    with pytest.raises(InputError, match="something else than softmax over all tokens: it is causal"):
        find(module, data)


@torch.no_grad()
def test_other_attention_is_refused() -> None:
    module, data = vit()
    for block in module.blocks:
        block.attn.register_forward_hook(lambda _part, _given, out: 2 * out)  # type: ignore[union-attr]
    with pytest.raises(InputError, match="something else than softmax over all tokens, so"):
        find(module, data)
