"""Blocks dropped: the ones that matter least, gone in the module as if they were skipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from calibration_models import Blocks, batches, forward
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.facts import read_facts
from compresskit.facts.prune import DepthFacts
from compresskit.ops.prune.depth import blocks_of, distances, drop, drop_proven, influences, moved, replay, skipping


class Residual(nn.Module):
    """A convolution beside a shortcut; another width or stride makes the shortcut a convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.norm = nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.short = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)) + self.short(x))


def pictures() -> nn.Module:
    torch.manual_seed(0)
    stages = [nn.Sequential(Residual(8, 8), Residual(8, 8)), nn.Sequential(Residual(8, 16, 2), Residual(16, 16))]
    return nn.Sequential(nn.Conv2d(3, 8, 3), *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)).eval()


class Counting(nn.Module):
    """Its code counts on three blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Residual(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for index in range(3):
            x = self.layers[index](x)
        return x


def run(module: nn.Module, batch: dict[str, Tensor]) -> Any:
    return module(*batch.values())


def quiet(*_: object) -> None:
    return None


def test_blocks_are_those_that_keep_the_shape() -> None:
    found = blocks_of(pictures(), {"x": torch.randn(2, 3, 16, 16)}, run)
    assert [b.name for b in found] == ["1.0", "1.1", "2.1"]
    assert [b.name for b in blocks_of(Blocks(depth=3), batches()[0], forward)] == [f"layers.{i}" for i in range(3)]


@pytest.mark.parametrize("names", [["1.0"], ["1.0", "1.1"], ["1.1", "2.1"]])
@torch.no_grad()
def test_dropped_is_skipped(names: list[str]) -> None:
    module, batch = pictures(), {"x": torch.randn(2, 3, 16, 16)}
    blocks = blocks_of(module, batch, run)
    with skipping(module, [b for b in blocks if b.name in names]):
        wanted = run(module, batch)
    stacks = drop_proven(module, blocks, names, batch, run)
    assert torch.equal(run(module, batch), wanted)
    again = pictures()
    replay(again, read_facts(DepthFacts, {"layers": {}, "stacks": stacks}))
    again.load_state_dict(module.state_dict())
    assert torch.equal(run(again, batch), wanted)


@torch.no_grad()
def test_a_block_that_does_nothing_goes_first() -> None:
    module, data = Blocks(depth=4), batches(2, masked=True)
    module.layers[2].out.weight.zero_()
    module.layers[2].down.weight.zero_()
    module.layers[2].down.bias.zero_()
    blocks = blocks_of(module, data[0], forward)
    for found in (
        distances(module, blocks, [], data, forward, progress=quiet),
        influences(module, blocks, data, forward, quiet),
    ):
        assert min(found, key=found.__getitem__) == "layers.2"
        assert found["layers.2"] == pytest.approx(0, abs=1e-6)
    rest = distances(module, blocks, ["layers.2"], data, forward, progress=quiet)
    assert sorted(rest) == ["layers.0", "layers.1", "layers.3"]


def test_attention_layers_get_their_new_number() -> None:
    module = nn.Module()
    module.layers = nn.ModuleList(nn.Sequential(nn.Linear(2, 2)) for _ in range(4))
    for index, layer in enumerate(module.layers):
        layer[0].layer_idx = index  # type: ignore[index]
    assert drop(module, ["layers.0", "layers.2"]) == {"layers": {"of": 4, "kept": ["1", "3"]}}
    assert [layer[0].layer_idx for layer in module.layers] == [0, 1]  # type: ignore[index]
    assert list(module.state_dict()) == [f"layers.{i}.0.{p}" for i in range(2) for p in ("weight", "bias")]


def test_what_cannot_be_dropped_is_refused() -> None:
    module, batch = Counting(), {"x": torch.randn(2, 8, 4, 4)}
    module.eval()
    blocks = blocks_of(module, batch, run)
    with pytest.raises(InputError, match=r"counts on having all its blocks: without 'layers.1' it fails"):
        drop_proven(module, blocks, ["layers.1"], batch, run)
    with pytest.raises(InputError, match="no sequence of blocks"):
        blocks_of(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()), batch, run)
    with pytest.raises(InputError, match="'layers' has 3 blocks, it had 4"):
        replay(Counting(), read_facts(DepthFacts, {"layers": {}, "stacks": {"layers": {"of": 4, "kept": ["0", "1"]}}}))
    with pytest.raises(InputError, match="no layer 'blocks', which lost blocks"):
        replay(Counting(), read_facts(DepthFacts, {"layers": {}, "stacks": {"blocks": {"of": 4, "kept": ["0", "1"]}}}))


def models() -> dict[str, Any]:
    """Small models of transformers, by class name."""
    tf = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 4}
    text = {"vocab_size": 40, "max_position_embeddings": 24}
    kinds = ["full_attention", "sliding_attention"] * 2
    return {
        "BertModel": lambda: tf.BertModel(tf.BertConfig(**text, **sizes)),
        "DistilBertModel": lambda: tf.DistilBertModel(
            tf.DistilBertConfig(vocab_size=40, dim=32, hidden_dim=48, n_layers=4, n_heads=4)
        ),
        "GPT2LMHeadModel": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=40, n_embd=32, n_layer=4, n_head=4)),
        "LlamaForCausalLM": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**text, **sizes, num_key_value_heads=2)),
        "Qwen2ForCausalLM": lambda: tf.Qwen2ForCausalLM(
            tf.Qwen2Config(**text, **sizes, num_key_value_heads=2, layer_types=kinds, use_sliding_window=True)
        ),
        "ViTModel": lambda: tf.ViTModel(tf.ViTConfig(**sizes, image_size=16, patch_size=8)),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", list(models()) if __import__("importlib.util").util.find_spec("transformers") else [])
def test_a_folder_of_transformers_stays_one(name: str, tmp_path: Path) -> None:
    import transformers

    from compresskit.runner.api import method, run
    from compresskit.runner.loading import load

    torch.manual_seed(0)
    model = models()[name]().eval()
    model.save_pretrained(tmp_path / "in")
    loaded = load(tmp_path / "in")
    stage = method("prune.depth", blocks=("*.1",))
    run(loaded, [stage], tmp_path / "out", export=False)
    again = getattr(transformers, name).from_pretrained(tmp_path / "out").eval()
    ours = load(tmp_path / "out")
    given = {"pixel_values": torch.randn(2, 3, 16, 16)} if name == "ViTModel" else {"input_ids": torch.arange(12)[None]}
    with torch.no_grad():
        wanted = loaded.body(**given)[0]
        torch.testing.assert_close(again(**given)[0], wanted)
        torch.testing.assert_close(ours.body(**given)[0], wanted)
    if name == "LlamaForCausalLM":
        cached = again.generate(torch.arange(5)[None], max_new_tokens=6, do_sample=False)
        plain = again.generate(torch.arange(5)[None], max_new_tokens=6, do_sample=False, use_cache=False)
        assert torch.equal(cached, plain)
    run(load(tmp_path / "out"), [stage], tmp_path / "twice", export=False)
    assert load(tmp_path / "twice").body.config.num_hidden_layers == 2


def test_layers_behind_a_dropped_block_have_new_names() -> None:
    stacks = {"": {"of": 4, "kept": ["0", "2", "head"]}, "2": {"of": 3, "kept": ["1", "2"]}}
    names = ["0.conv", "1.0.conv", "2.0.conv", "2.1.conv", "2.2", "head.weight"]
    assert [moved(name, stacks) for name in names] == ["0.conv", None, None, "1.0.conv", "1.1", "head.weight"]
    assert moved("layer1.10.conv", {"layer1": {"of": 11, "kept": ["0", "10"]}}) == "layer1.1.conv"
    assert moved("layer10.0", {"layer1": {"of": 2, "kept": ["1"]}}) == "layer10.0"
