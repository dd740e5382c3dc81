"""Tokens merged: what is conserved, what is protected, and that nothing merged changes nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.facts.substitute import MergeFacts, TokensFacts
from compresskit.ops.calibration.trace import tensors_in
from compresskit.ops.shrinking import CalibrationData
from compresskit.ops.substitute.merged import MergedBlocks, find, merged, place, replay
from compresskit.ops.substitute.merging import Tokens, in_windows, merge

Reduction = Literal["merge", "prune", "fuse"]


def calls(module: nn.Module, batch: Any) -> Any:
    return module(batch["x"])


def by_name(module: nn.Module, batch: Any) -> Any:
    return module(**batch)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def means(x: Tensor, mass: Tensor, place: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """What scatter_add makes of the first tokens that went to each place."""
    total = torch.zeros(len(x), count, x.shape[-1], dtype=x.dtype)
    total.scatter_add_(1, place[..., None].expand_as(x), x * mass[..., None])
    heavy = torch.zeros(len(x), count, dtype=x.dtype).scatter_add_(1, place, mass)
    return total / heavy[..., None].clamp(min=1e-6), heavy


@pytest.mark.parametrize("protected", [0, 1, 3])
@pytest.mark.parametrize("tokens", [12, 13])
def test_each_token_is_the_mean_of_what_it_stands_for(tokens: int, protected: int) -> None:
    x = drawn(3, tokens, 8)
    now = Tokens(x)
    for number, count in enumerate((3, 2)):
        keys = drawn(3, now.x.shape[1], 4 + number)
        now = merge(now, keys, count, protected=protected)
    assert now.x.shape[1] == tokens - 5 and now.place is not None and now.mass is not None
    total, heavy = means(x, torch.ones_like(x[..., 0]), now.place, tokens - 5)
    assert torch.allclose(now.x, total, atol=1e-12) and torch.equal(now.mass, heavy)
    assert torch.equal(now.x[:, :protected], x[:, :protected])
    assert torch.equal(now.mass.sum(1), torch.full((3,), float(tokens), dtype=x.dtype))
    assert torch.equal(now.restored(tokens, protected, 0)[:, :protected], x[:, :protected])


def test_the_most_alike_are_merged() -> None:
    """Pairs are looked for between every other token and the rest; the best of all are taken."""
    keys = drawn(1, 8, 6)
    keys[:, 4] = 2 * keys[:, 1]
    keys[:, 6] = keys[:, 7] + 1e-3
    now = merge(Tokens(drawn(1, 8, 5)), keys, 2, protected=0)
    assert now.place is not None and now.mass is not None
    assert now.place[0, 4] == now.place[0, 1] and now.place[0, 6] == now.place[0, 7]
    assert sorted(now.mass[0].tolist()) == [1, 1, 1, 1, 2, 2]


def test_padding_is_in_no_mean_and_is_heard_by_nobody() -> None:
    x, mass = drawn(2, 10, 4), torch.ones(2, 10, dtype=torch.float64)
    mass[0, 6:] = 0
    mass[1, 1:] = 0
    for garbage in (0.0, 1e6):
        given = torch.where(mass[..., None] > 0, x, garbage)
        now = merge(Tokens(given, mass, padded=True), given, 2, protected=1)
        assert now.mass is not None and now.mass.sum(1).tolist() == [6, 1]
        real = now.x[0][now.mass[0] > 0]
        assert len(real) == 6, "padding goes first"
        assert torch.allclose(real.sort(dim=0).values, x[0, :6].sort(dim=0).values)
        assert now.bias is not None and bool((now.bias[:, 0, 0][now.mass == 0] <= -1e9).all())


def test_windows_are_filled_up_and_merged_each_by_itself() -> None:
    x = drawn(2, 22, 6)
    now = in_windows(Tokens(x), 1, 4)
    assert now.x.shape[1] == 1 + 24 and now.mass is not None and now.mass.sum(1).tolist() == [22, 22]
    now = merge(now, drawn(2, 25, 3), 1, protected=1, window=4)
    now = merge(now, drawn(2, 19, 3), 1, protected=1, window=3)
    assert now.x.shape[1] == 1 + 6 * 2 and now.mass is not None and now.place is not None
    assert now.mass.sum(1).tolist() == [22, 22] and torch.equal(now.x[:, :1], x[:, :1])
    windows = now.place.reshape(2, 6, 4)
    total, _ = means(x[:, 1:5], torch.ones(2, 4, dtype=x.dtype), windows[:, 0], 2)
    assert torch.allclose(now.x[:, 1:3], total)
    back = now.restored(22, 1, 2)
    assert back.shape == x.shape and torch.allclose(
        back[:, 1:5], total.gather(1, windows[:, 0, :, None].expand(-1, -1, 6))
    )


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        parts = self.qkv(x).reshape(n, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        out: Tensor = nn.functional.scaled_dot_product_attention(*parts.unbind(0))
        return torch.as_tensor(self.proj(out.transpose(1, 2).reshape(n, tokens, width)))


class Block(nn.Module):
    """As timm's; ``odd`` multiplies what the attention gives, which its parts don't tell."""

    def __init__(self, odd: float = 1.0) -> None:
        super().__init__()
        self.norm1, self.norm2, self.odd = nn.LayerNorm(16), nn.LayerNorm(16), odd
        self.attn, self.ls1, self.ls2 = Attention(16, 4), nn.Identity(), nn.Identity()
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.odd * self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Vit(nn.Module):
    def __init__(self, odd: float = 1.0, mean: bool = False) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.first = nn.Parameter(torch.randn(1, 2, 16))
        self.blocks = nn.Sequential(*(Block(odd) for _ in range(3)))
        self.norm, self.head, self.mean = nn.LayerNorm(16), nn.Linear(16, 5), mean

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = self.norm(self.blocks(torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1)))
        out: Tensor = self.head(x.mean(1) if self.mean else x[:, 0])
        return out


def vit(**options: Any) -> tuple[Vit, CalibrationData]:
    torch.manual_seed(0)
    module = Vit(**options).eval()
    return module, CalibrationData({"x": torch.randn(4, 3, 24, 24)}, (), calls)


def hugging(name: str) -> tuple[nn.Module, CalibrationData]:
    transformers: Any = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    if name in ("ViT", "DeiT", "Dinov2"):
        config = getattr(transformers, f"{name}Config")(image_size=24, patch_size=4, **sizes)
        batch = {"pixel_values": torch.randn(4, 3, 24, 24)}
    else:
        if name == "DistilBert":
            sizes = {"dim": 32, "hidden_dim": 64, "n_layers": 3, "n_heads": 4}
        config = getattr(transformers, f"{name}Config")(vocab_size=40, max_position_embeddings=48, **sizes)
        mask = torch.ones(4, 20, dtype=torch.long)
        mask[1:, 13:] = 0
        batch = {"input_ids": torch.randint(2, 40, (4, 20)), "attention_mask": mask}
        batch["input_ids"][:, 0] = 1
    module = getattr(transformers, f"{name}Model")(config).eval()
    return module, CalibrationData(batch, (), by_name)


CASES: dict[str, Any] = {
    "plain": (vit, 2, False),
    "mean": (partial(vit, mean=True), 2, True),
    "ViT": (partial(hugging, "ViT"), 1, True),
    "DeiT": (partial(hugging, "DeiT"), 2, True),
    "Dinov2": (partial(hugging, "Dinov2"), 1, True),
    "Bert": (partial(hugging, "Bert"), 1, True),
    "DistilBert": (partial(hugging, "DistilBert"), 1, True),
}


@torch.no_grad()
@pytest.mark.parametrize("reduction", ["merge", "prune", "fuse"])
@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_nothing_merged_is_the_identity_and_what_is_merged_comes_back(
    name: str, windows: bool, reduction: Reduction
) -> None:
    build, protected, restored = CASES[name]
    module, data = build()
    run = find(module, data, windows=windows)
    run = replace(run, facts=replace(run.facts, reduction=reduction))
    assert (run.facts.protected, run.facts.restored, len(run.names)) == (protected, restored, 3)
    before = [t.clone() for t in tensors_in(data.run(module))]
    real = data.example.get("attention_mask", torch.ones(1, dtype=torch.long)).bool()

    def away(outputs: Any) -> float:
        pairs = zip(before, tensors_in(outputs), strict=True)
        found = [(a - b)[real] if real.dim() == 2 and a.dim() == 3 else a - b for a, b in pairs]
        return max(float(x.abs().max()) for x in found)

    with merged(module, run, run.merging(0, lambda _: True)):
        assert away(data.run(module)) <= 1e-5
    layers = run.sharing(0.25, lambda name: name != run.names[1])
    assert [layer.merged > 0 for layer in layers.values()] == [True, False, True]
    place(module, run.names, replace(run.facts, layers=layers))
    assert away(data.run(module)) > 1e-4
    again = build()[0]
    replay(again, replace(run.facts, layers=layers))
    again.load_state_dict(module.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(tensors_in(data.run(again)), tensors_in(data.run(module)), strict=True)
    )


@torch.no_grad()
@pytest.mark.parametrize("reduction", ["merge", "prune", "fuse"])
def test_what_padding_holds_changes_nothing(reduction: Reduction) -> None:
    module, data = hugging("Bert")
    run = find(module, data, windows=True)
    place(module, run.names, replace(run.facts, layers=run.sharing(0.25, lambda _: True), reduction=reduction))
    real = data.example["attention_mask"].bool()
    first = data.run(module).last_hidden_state[real]
    data.example["input_ids"][~real] = 7
    assert torch.allclose(first, data.run(module).last_hidden_state[real], atol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(vit, odd=0.5), "compute something else"),
        (lambda: (nn.Sequential(nn.Linear(4, 4)), CalibrationData({"x": torch.ones(2, 4)}, (), lambda m, b: m(b["x"]))),
         "no sequence of transformer blocks"),
    ],
)  # fmt: skip
def test_other_models_are_refused(build: Any, message: str) -> None:
    module, data = build()
    with pytest.raises(InputError, match=message):
        find(module, data)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"blocks.7": MergeFacts()}, "has no layer 'blocks.7'"),
        ({"norm": MergeFacts()}, "no transformer block"),
        ({}, "different lists"),
    ],
)
def test_facts_that_do_not_fit_are_refused(layers: dict[str, MergeFacts], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replay(vit()[0], TokensFacts(layers=layers))


@pytest.mark.parametrize("reduction", ["merge", "prune", "fuse"])
def test_training_goes_through_merged_blocks(reduction: Reduction) -> None:
    module, data = vit()
    with torch.no_grad():
        run = find(module, data)
    place(module, run.names, replace(run.facts, layers=run.merging(6, lambda _: True), reduction=reduction))
    data.run(module).square().sum().backward()
    assert isinstance(module.blocks[0], MergedBlocks)
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in module.parameters())
