"""One fitted layer in the place of a block: exact where the block is linear, as near as can be elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compresskit.errors import InputError, UsageError
from compresskit.facts.substitute import Fitted, StandInFacts
from compresskit.ops.shrinking import CalibrationData, ShrinkSettings
from compresskit.ops.substitute.candidates import Candidate, candidates
from compresskit.ops.substitute.choose import by_cost, by_count, saved_macs
from compresskit.ops.substitute.sites import Places, Site, find
from compresskit.ops.substitute.stand_in import StandIn, replay
from compresskit.ops.substitute.walk import apply


class Residual(nn.Module):
    """Two convolutions beside a shortcut; without ``bent`` nothing between them bends, so that one does the same."""

    def __init__(self, inputs: int, outputs: int, stride: int, end: nn.Module, *, bent: bool, wide: int = 3) -> None:
        super().__init__()
        self.conv1, self.norm1 = (
            nn.Conv2d(inputs, outputs, wide, stride, wide // 2, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.short = nn.Identity() if stride == 1 and inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride)
        self.bent, self.end = nn.ReLU(inplace=True) if bent else nn.Identity(), end

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.bent(self.norm1(self.conv1(x)))))
        y += self.short(x)
        return self.end(y)


ENDS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "none": nn.Identity,
}


def pictures(end: str = "relu", *, bent: Sequence[bool] = (False, True, False, True)) -> nn.Module:
    torch.manual_seed(1)
    make = ENDS[end]
    blocks = [
        Residual(8, 8, 1, make(), bent=bent[0]),
        Residual(8, 8, 1, make(), bent=bent[1]),
        Residual(8, 16, 2, make(), bent=bent[2]),
        Residual(16, 16, 1, make(), bent=bent[3]),
    ]
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Sequential(*blocks[:2]), nn.Sequential(*blocks[2:]), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(64, 5),
    ).eval()  # fmt: skip
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.uniform_(-0.2, 0.2)
        norm.running_var.uniform_(0.3, 1.5)
        norm.weight.data.uniform_(0.4, 1.6)
    return module


def quiet(*_: object) -> None:
    return None


def data_of(count: int = 9, *, size: int = 24, shape: tuple[int, ...] = (3, 14, 14)) -> CalibrationData:
    torch.manual_seed(2)
    batches = [{"x": torch.randn(size, *shape)} for _ in range(count)]
    return CalibrationData({"x": batches[0]["x"][:1]}, batches, lambda module, batch: module(batch["x"]))


KINDS: tuple[Fitted, ...] = ("1x1", "3x3", "linear")


def tried(module: nn.Module, data: CalibrationData, **settings: Any) -> tuple[Places, list[Candidate]]:
    with torch.no_grad():
        places = find(module, data, ShrinkSettings(**settings), KINDS)
        return places, candidates(module, places.sites, data, quiet)


@pytest.mark.parametrize("end", ENDS)
def test_a_block_without_a_bend_is_one_convolution(end: str) -> None:
    """With stride, another width, a batch normalization after each layer, and what the block ends with."""
    module, data = pictures(end), data_of()
    places, found = tried(module, data)
    assert [s.name for s in places.sites] == ["1.0", "1.1", "2.0", "2.1"] and not places.skipped
    losses = {(c.site.name, c.kind): c.loss for c in found}
    exact = [losses.pop((name, "3x3")) for name in ("1.0", "2.0")]
    assert max(exact) < 1e-6 and min(losses.values()) > 1e-5, "damping costs no more"
    chosen = by_count(found, 2, lambda c: 1.0)
    assert {(c.site.name, c.kind) for c in chosen} == {("1.0", "3x3"), ("2.0", "3x3")}
    assert chosen[0].stand_in.end.__class__ is ENDS[end]().__class__
    with torch.no_grad():
        wanted = module(data.example["x"])
        apply(module, chosen, places, data, quiet, refit=False)
        assert float((module(data.example["x"]) - wanted).norm() / wanted.norm()) < 2e-3


def test_a_model_is_not_changed_by_looking(end: str = "relu") -> None:
    module, data = pictures(end), data_of(2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    tried(module, data)
    after = module.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any("forward" in vars(part) for part in module.modules())


@torch.no_grad()
def test_what_follows_repairs_the_stream() -> None:
    """Behind the block that follows a stand-in the sum's error is smaller, all of which passed beside that block."""
    away = {}
    for refit in (False, True):
        module, data = pictures("none", bent=(False,) * 4), data_of(17)
        with torch.no_grad():
            module[1][1].conv2.weight.mul_(0.1)  # its own output is no part of the error
        wanted = module[:2](data.example["x"])
        places, found = tried(module, data)
        chosen = [c for c in found if (c.site.name, c.kind) == ("1.0", "1x1")]
        facts = apply(module, chosen, places, data, quiet, refit=refit)
        assert isinstance(module.get_submodule("1.0"), StandIn)
        assert facts["kept"] == ("fitted" if refit else "stand-ins")
        away[refit] = float((module[:2](data.example["x"]) - wanted).norm() / wanted.norm())
    assert away[True] < 0.3 * away[False]


def test_the_second_stand_in_sees_what_the_first_gives() -> None:
    module, data = pictures(bent=(True,) * 4), data_of(17)
    places, found = tried(module, data)
    chosen = [c for c in found if c.site.name in ("1.0", "1.1") and c.kind == "1x1"]
    facts = apply(module, chosen, places, data, quiet, refit=False)
    assert facts["kept"] == "stand-ins in order" and facts["after"] < facts["before"]


class Halved(nn.Module):
    """A layer of tokens; its second half bends nothing, so that one Linear layer does the same."""

    def __init__(self, *, apart: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.first = nn.Sequential(nn.Linear(16, 48), nn.GELU(), nn.Linear(48, 16))
        self.apart = apart
        self.up = nn.Sequential(nn.Linear(16, 40), nn.Identity())
        self.down = nn.Linear(40, 16)
        self.both = nn.Sequential(nn.Linear(16, 40), nn.Linear(40, 16))

    def forward(self, hidden: Tensor, *, scale: float = 1.0) -> tuple[Tensor, None]:
        x = hidden + scale * self.first(self.norm(hidden))
        return x + (self.down(self.up(x)) if self.apart else self.both(x)), None


class Tokens(nn.Module):
    def __init__(self, *, apart: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.ModuleList(Halved(apart=apart) for _ in range(3))
        for layer in self.layers:
            layer.first[0].weight.data.mul_(4)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(hidden=x, scale=0.5)[0]
        return self.head(x)


@pytest.mark.parametrize("apart", [False, True])
def test_a_half_without_a_bend_is_one_linear_layer(apart: bool) -> None:
    """A module of its own, or two layers one behind the other."""
    module, data = Tokens(apart=apart).eval(), data_of(9, shape=(7, 16))
    with torch.no_grad():
        places = find(module, data, ShrinkSettings(), KINDS, halves=True)
        found = candidates(module, places.sites, data, quiet)
    second, aim = ("up", "down") if apart else ("both", "both")
    assert [s.name for s in places.sites] == [f"layers.{i}.{half}" for i in range(3) for half in ("first", second)]
    losses = {c.site.name: c.loss for c in found}
    assert all((losses[name] < 1e-5) == name.endswith(second) for name in losses)
    chosen = by_count(found, 4, saved_macs)
    assert {c.site.name for c in chosen} > {f"layers.{i}.{second}" for i in range(3)}
    with torch.no_grad():
        facts = apply(module, chosen, places, data, quiet, refit=True)
        wanted = module(data.example["x"])
    again = Tokens(apart=apart).eval()
    replay(again, {c.site.name: c.fact for c in chosen})
    again.load_state_dict(module.state_dict())
    assert facts["after"] <= facts["before"] and torch.equal(again(data.example["x"]), wanted)
    assert isinstance(again.get_submodule(f"layers.1.{aim}"), nn.Identity if apart else StandIn)


def test_a_weight_that_two_layers_share_stays() -> None:
    module, data = Tokens(apart=False).eval(), data_of(9, shape=(7, 16))
    module.twin = nn.Linear(16, 5)
    module.twin.weight = module.head.weight
    places, found = tried(module, data)
    before = module.head.weight.clone(), module.layers[2].down.weight.clone(), module.layers[2].both[1].weight.clone()
    apply(module, by_count(found, 1, saved_macs), places, data, quiet, refit=True)
    assert torch.equal(module.head.weight, before[0])


@pytest.mark.parametrize("halves", [False, True], ids=["blocks", "halves"])
@pytest.mark.parametrize("name", ["BertModel", "LlamaForCausalLM", "ViTModel", "GPT2LMHeadModel"])
@pytest.mark.filterwarnings("ignore")
def test_layers_of_transformers(name: str, halves: bool) -> None:
    tf = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    configs: dict[str, Callable[[], Any]] = {
        "BertModel": lambda: tf.BertConfig(vocab_size=40, max_position_embeddings=24, **sizes),
        "LlamaForCausalLM": lambda: tf.LlamaConfig(vocab_size=40, num_key_value_heads=2, **sizes),
        "ViTModel": lambda: tf.ViTConfig(image_size=16, patch_size=8, **sizes),
        "GPT2LMHeadModel": lambda: tf.GPT2Config(vocab_size=40, n_embd=32, n_layer=3, n_head=4, n_positions=24),
    }

    def make() -> nn.Module:
        module: nn.Module = getattr(tf, name)(configs[name]()).eval()
        return module

    module, text = make(), name != "ViTModel"
    batches = [
        {"input_ids": torch.randint(0, 40, (8, 12)), "attention_mask": (torch.arange(12) < 12 - i).long().repeat(8, 1)}
        if text
        else {"pixel_values": torch.randn(8, 3, 16, 16)}
        for i in range(9)
    ]

    def forward(target: nn.Module, batch: dict[str, Tensor]) -> Any:
        return target(**batch, **({"use_cache": False} if "LM" in name else {}))

    data = CalibrationData({k: v[:1] for k, v in batches[0].items()}, batches, forward, scores="LM" in name)
    with torch.no_grad():
        places = find(module, data, ShrinkSettings(), KINDS, halves=halves)
        assert len(places.sites) == (6 if halves else 3) and not places.skipped
        found = candidates(module, places.sites, data, quiet)
        chosen = [c for c in found if c.site.block.endswith(".0")]
        facts = apply(module, chosen, places, data, quiet, refit=True)
        assert facts["after"] < min(c.loss for c in chosen) or facts["after"] < facts["before"]
        wanted = forward(module, batches[0])[0]
        again = make()
        replay(again, {c.site.name: c.fact for c in chosen})
        again.load_state_dict(module.state_dict())
        assert torch.equal(forward(again, batches[0])[0], wanted)
    numbers = [m.layer_idx for m in again.modules() if type(m).__name__ == "LlamaAttention"]
    assert numbers == ([0, 1] if "Llama" in name else [])


def test_globs_leave_blocks_out_and_must_mean_something() -> None:
    module, data = pictures(), data_of(2)
    places, _ = tried(module, data, include=("1.*", "2.0"), exclude=("1.1",))
    assert [s.name for s in places.sites] == ["1.0", "2.0"]
    assert places.skipped == {"1.1": "excluded", "2.1": "not included"}
    with pytest.raises(UsageError, match="no layer matches 'layer'"):
        tried(module, data, exclude=("layer",))


def test_a_model_without_blocks_is_told() -> None:
    with pytest.raises(InputError, match="no sequence of blocks"):
        tried(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), data_of(1))


def test_blocks_that_nothing_smaller_can_stand_in_for_are_told() -> None:
    small = [Residual(8, 8, 1, nn.ReLU(), bent=True, wide=1) for _ in range(2)]
    module = nn.Sequential(nn.Conv2d(3, 8, 3), *small).eval()
    places = find(module, data_of(1), ShrinkSettings(), ("3x3",))
    assert set(places.skipped.values()) == {"a fitted layer of that kind would be no smaller than it"}


class Choices:
    """Candidates that were never fitted."""

    def __init__(self, *rows: tuple[str, Fitted, float, int]) -> None:
        self.found = [
            Candidate(Site(name, name, {}, (1,), 100, 100, {kind: cost}), kind, None, loss)  # type: ignore[arg-type]
            for name, kind, loss, cost in rows
        ]

    @staticmethod
    def named(chosen: Sequence[Candidate]) -> set[tuple[str, str]]:
        return {(c.site.name, c.kind) for c in chosen}


def test_the_least_loss_for_what_is_saved() -> None:
    both = Choices(("a", "1x1", 0.4, 10), ("a", "3x3", 0.1, 50), ("b", "1x1", 0.2, 10), ("b", "3x3", 0.15, 50))
    assert both.named(by_count(both.found, 1, saved_macs)) == {("a", "3x3")}
    assert both.named(by_count(both.found, 2, saved_macs)) == {("a", "3x3"), ("b", "1x1")}
    assert both.named(by_cost(both.found, 130, saved_macs)) == {("a", "3x3"), ("b", "1x1")}
    assert both.named(by_cost(both.found, 150, saved_macs)) == {("a", "1x1"), ("b", "1x1")}
    assert both.named(by_cost(both.found, 45, saved_macs)) == {("a", "3x3")}
    assert both.named(by_cost(both.found, 80, saved_macs, 1)) == {("b", "1x1")}
    assert by_cost(both.found, 181, saved_macs) == [] and by_cost(both.found, 120, saved_macs, 1) == []


@pytest.mark.parametrize(
    "change, told",
    [
        ({"shape": [8, 8]}, "has no weight"),
        ({"shape": [8, 8, 3, 3]}, "has no weight"),
        ({"shape": [1 << 20, 1 << 20, 1, 1]}, "takes more than it"),
        ({"norm": "conv1"}, "has no normalization 'conv1'"),
        ({"norm": "no.such"}, "has no layer 'no.such'"),
    ],
)
def test_facts_that_do_not_fit_are_refused(change: dict[str, Any], told: str) -> None:
    fact = replace(StandInFacts(kind="1x1", shape=[8, 8, 1, 1]), **change)
    with pytest.raises(InputError, match=told):
        replay(pictures(), {"1.0": fact})
    with pytest.raises(InputError, match=r"no layer '1\.9', which was substituted"):
        replay(pictures(), {"1.9": fact})
