"""Rotations: orthogonal, folded without a trace in what the model computes, and a help where weights have outliers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lm_folders import FOLDERS
from torch import nn

from compresskit.errors import UsageError
from compresskit.ops.packed.grid import Grid, sqnr
from compresskit.ops.quantize.hadamard import Rotation
from compresskit.ops.quantize.rotate import plan_rotation, rotate
from compresskit.ops.quantize.rtn import quantize_rtn

transformers = pytest.importorskip("transformers")
IDS = torch.arange(3, 43).reshape(2, 20)
BIASES = {"attention_bias": True, "mlp_bias": True, "hidden_size": 60, "head_dim": 10}


def decoder(name: str, **sizes: Any) -> Any:
    kind, config, options, _ = FOLDERS[name]
    torch.manual_seed(1)
    module = getattr(transformers, kind)(getattr(transformers, config)(**{**options, **sizes})).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:  # norms and biases, which start at ones and zeros
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


def logits(module: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = module(input_ids=IDS).logits
    return found


def rotated(module: nn.Module, seed: int = 0) -> nn.Module:
    rotate(module, plan_rotation(module, seed))
    return module


@pytest.mark.parametrize("size", [1, 2, 12, 28, 44, 64, 128, 576, 896, 10, 172])
def test_the_matrix_is_orthogonal(size: int) -> None:
    rotation = Rotation.of(size, torch.Generator().manual_seed(size))
    matrix = rotation.turn(torch.eye(size, dtype=torch.float64), -1)
    assert torch.allclose(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), atol=1e-12)
    assert rotation.is_hadamard == (size not in (10, 172))
    if rotation.is_hadamard:
        assert torch.allclose(matrix.abs(), torch.full_like(matrix, size**-0.5))
    x = torch.randn(3, 2 * size, 2)
    runs = (x.movedim(1, -1).reshape(3, 2, 2, size).double() @ matrix).float().reshape(3, 2, 2 * size).movedim(-1, 1)
    assert torch.allclose(rotation.turn(x, 1), runs, atol=1e-6), "each run of rows along the axis"


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        *((name, {}) for name in ("llama", "llama-3", "mistral", "qwen2", "qwen3", "mixtral", "qwen3-moe")),
        ("llama", BIASES),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_the_model_computes_what_it_did(name: str, sizes: dict[str, Any], tmp_path: Path) -> None:
    module = decoder(name, **sizes)
    before, weights = logits(module), {n: p.clone() for n, p in module.named_parameters()}
    tied = module.lm_head.weight is module.model.embed_tokens.weight
    rotated(module)
    assert float((logits(module) - before).norm() / before.norm()) < 1e-5
    same = {n for n, p in module.named_parameters() if n in weights and p.dim() > 1 and torch.allclose(p, weights[n])}
    assert not same, "no matrix stays as it was"
    assert module.model.norm.weight.eq(1).all()
    assert not module.config.tie_word_embeddings
    module.save_pretrained(tmp_path)
    again = type(module).from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), logits(module))
    assert tied == (name == "llama-3")


def test_the_seed_decides() -> None:
    first, second, other = (rotated(decoder("llama"), seed).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(first, second) and not torch.allclose(first, other)


def test_outliers_are_spread_before_rounding() -> None:
    module = decoder("llama")
    names = [name for name, _ in module.named_modules() if name.endswith(("q_proj", "up_proj"))]
    with torch.no_grad():  # as trained models have them: few columns that are many times as large
        for name in names:
            module.get_submodule(name).weight[:, ::16] *= 30

    def loudness() -> float:
        weights = [module.get_submodule(name).weight.detach() for name in names]
        return sum(sqnr(weight, quantize_rtn(weight, Grid(3, 32))) for weight in weights) / len(weights)

    before = loudness()
    rotated(module)
    assert loudness() > before + 3, "dB"


def encoder() -> nn.Module:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    module: nn.Module = transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=100))
    return module


def changed() -> nn.Module:
    module = decoder("llama")
    module.model.layers[1].mlp.up_proj = nn.Sequential(nn.Linear(64, 8, bias=False), nn.Linear(8, 128, bias=False))
    return module  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: decoder("gemma3"), "Gemma3ForCausalLM can't be rotated: Gemma normalizes what its layers write"),
        (lambda: decoder("fused"), r"Phi3ForCausalLM can't be rotated: its architecture \(phi3\)"),
        (lambda: decoder("gpt2"), "GPT2LMHeadModel can't be rotated: LayerNorm"),
        (encoder, "BertModel can't be rotated: LayerNorm"),
        (lambda: decoder("llama").model, "LlamaModel can't be rotated: it has no head"),
        (lambda: nn.Sequential(nn.Linear(4, 4)), "Sequential can't be rotated"),
        (changed, r"its layers were changed, as 'model\.layers\.1\.mlp\.up_proj\.0\.weight"),
    ],
)
def test_what_cannot_be_rotated_is_refused_by_name(make: Any, why: str) -> None:
    module = make()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(UsageError, match=why) as caught:
        rotated(module)
    assert "`rotate`" in caught.value.hint
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
