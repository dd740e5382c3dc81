"""SmoothQuant: the float model computes what it did, and what is rounded has no outliers left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresskit.errors import InputError
from compresskit.ops.quantize.smooth import SmoothedLinear, smooth_module


def call(module: nn.Module, batch: dict[str, Tensor]) -> Any:
    return module(**batch)


def model(kind: str) -> tuple[nn.Module, list[dict[str, Tensor]]]:
    import transformers as tf

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    ids = [{"input_ids": torch.randint(0, 40, (2, 9))} for _ in range(2)]
    if kind == "bert":
        return tf.BertModel(tf.BertConfig(vocab_size=40, max_position_embeddings=24, **sizes)).eval(), ids
    if kind == "llama":
        config = tf.LlamaConfig(vocab_size=40, max_position_embeddings=24, tie_word_embeddings=True, **sizes)
        return tf.LlamaForCausalLM(config).eval(), ids
    if kind == "gqa":
        config = tf.LlamaConfig(vocab_size=40, max_position_embeddings=24, num_key_value_heads=2, **sizes)
        return tf.LlamaForCausalLM(config).eval(), ids
    config = tf.ViTConfig(image_size=16, patch_size=8, **sizes)
    return tf.ViTForImageClassification(config).eval(), [{"pixel_values": torch.randn(2, 3, 16, 16)}]


def outputs(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return module(**batch)[0]


def folded(facts: dict[str, Any], part: str) -> set[str | None]:
    return {layer["folded"] for name, layer in facts["layers"].items() if part in name}


@pytest.mark.parametrize("kind", ["bert", "llama", "gqa", "vit"])
def test_float_outputs_are_unchanged(kind: str) -> None:
    module, batches = model(kind)
    before = outputs(module, batches[1] if len(batches) > 1 else batches[0])
    facts, _ = smooth_module(module, batches, call, alpha=0.5)
    after = outputs(module, batches[1] if len(batches) > 1 else batches[0])
    assert float((after - before).norm() / before.norm()) < 2e-6
    assert facts["difference"] < 2e-6
    assert facts["layers"]


def test_scales_go_where_they_cost_nothing_and_nowhere_else() -> None:
    facts, skipped = smooth_module(*model("llama"), call, alpha=0.5)
    assert folded(facts, "layers.0.self_attn.q_proj") == {"model.layers.0.input_layernorm"}
    assert folded(facts, "layers.0.mlp.gate_proj") == {"model.layers.0.post_attention_layernorm"}
    assert folded(facts, "layers.0.self_attn.o_proj") == {"model.layers.0.self_attn.v_proj"}
    assert folded(facts, "layers.1.mlp.down_proj") == {"model.layers.1.mlp.up_proj"}
    assert "shared" in skipped["lm_head"]

    facts, _ = smooth_module(*model("gqa"), call, alpha=0.5)
    assert folded(facts, "o_proj") == {None}  # two heads of values serve four of queries

    module, batches = model("bert")
    facts, _ = smooth_module(module, batches, call, alpha=0.5)
    assert folded(facts, "attention.self") == {None}  # the normalization feeds the residual sum too
    assert folded(facts, "layer.0.output.dense") == {None}  # GELU lies between
    assert folded(facts, "layer.0.attention.output.dense") == {"encoder.layer.0.attention.self.value"}
    assert isinstance(module.encoder.layer[0].output.dense, SmoothedLinear)


def test_a_producer_with_another_reader_is_left_alone() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.one, self.two = nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: Tensor, split: bool = False) -> Tensor:
            y = self.norm(x)
            return self.one(y) + self.two(y) + (F.relu(y) if self.leak else 0)

    for leak, expected in ((False, "norm"), (True, None)):
        torch.manual_seed(0)
        module = Shared().eval()
        module.leak = leak
        x = torch.randn(4, 16)
        facts, _ = smooth_module(module, [{"x": x}], call, alpha=0.5)
        assert {layer["folded"] for layer in facts["layers"].values()} == {expected}


def test_an_outlier_channel_no_longer_costs_the_others() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 32)
    x[:, 3] *= 100
    module = nn.Sequential(nn.Linear(32, 24)).eval()

    def rounded(module: nn.Module) -> Tensor:
        layer = module[0]
        value = x * getattr(layer, "input_scale", 1)
        low, high = value.min(), value.max()
        step = (high - low) / 255
        return F.linear(((value - low) / step).round() * step + low, layer.weight, layer.bias)

    with torch.no_grad():
        exact, before = module(x), rounded(module)
        facts, _ = smooth_module(module, [{"input": x}], call)
        after = rounded(module)
    assert float((after - exact).norm()) < 0.2 * float((before - exact).norm())
    assert 0 < facts["layers"]["0"]["alpha"] < 1


def test_an_even_input_is_left_alone() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(32, 24)).eval()
    with torch.no_grad():
        module[0].weight[0] = 0.3  # every channel has the same largest weight
    facts, skipped = smooth_module(module, [{"input": torch.rand(256, 32)}], call)
    assert not facts["layers"] and "as well" in skipped["0"]
    assert type(module[0]) is nn.Linear


def test_a_model_without_linear_layers_is_an_error() -> None:
    with pytest.raises(InputError, match="no Linear layer"):
        smooth_module(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), [{"input": torch.zeros(1, 3, 8, 8)}], call)


def test_a_function_that_clips_takes_no_scale() -> None:
    """Outputs stay small on the sample: only far factors, or the scale itself, show that ReLU6 clips."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(16, 16), nn.ReLU6(), nn.Linear(16, 4)).eval()
    with torch.no_grad():
        module[0].weight *= torch.logspace(-3, 0, 16).unsqueeze(1)
    batches = [{"input": torch.randn(8, 16)}]
    before = outputs(nn.Sequential(*module), {"input": batches[0]["input"] * 3})
    facts, _ = smooth_module(module, batches, call, alpha=0.9)
    assert facts["layers"]["2"]["folded"] is None
    after = outputs(module, {"input": batches[0]["input"] * 3})
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_a_scale_that_changes_the_outputs_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the trial finds nothing, the scale itself is compared again."""
    monkeypatch.setattr("compresskit.ops.quantize.smooth._PROBES", 0)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(16, 16), nn.ReLU6(), nn.Linear(16, 4)).eval()
    with torch.no_grad():
        module[0].weight *= torch.logspace(-2, 2, 16).unsqueeze(1)
    facts, _ = smooth_module(module, [{"input": torch.randn(8, 16)}], call, alpha=0.9)
    assert facts["layers"]["2"]["folded"] is None
    assert facts["difference"] < 1e-5


def test_masked_outputs_are_no_difference() -> None:
    class Masked(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            out: Tensor = super().forward(input)
            return out.masked_fill(torch.arange(4) == 2, -torch.inf)

    torch.manual_seed(0)
    module = Masked(nn.LayerNorm(16), nn.Linear(16, 4)).eval()
    facts, _ = smooth_module(module, [{"input": torch.randn(8, 16)}], call, alpha=0.5)
    assert facts["layers"]["1"]["folded"] == "0" and facts["difference"] < 1e-5
