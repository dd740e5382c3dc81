"""Recovery by low-rank terms: beside the codes of a quantized layer, and folded into the weights of a pruned one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compresskit.checkpoint.tensors import open_tensors
from compresskit.cli.stages import make
from compresskit.data.opening import open_source
from compresskit.errors import InputError, UsageError
from compresskit.exporter.checked import export_checked
from compresskit.facts import read_facts
from compresskit.model import Card, InputSpec, Model
from compresskit.ops.packed.modules import PackedLinear
from compresskit.registry import get
from compresskit.runner.weights import write_weights
from compresskit.stage import Context
from compresskit.train.low_rank import low_rank_terms, trainable_repairs

INPUTS = (InputSpec("x", "float32", ("batch", 16)),)
LONG = {"epochs": 30, "batch_size": 32, "lr": 3e-3}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    x = np.random.default_rng(0).normal(size=(256, 16)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x)
    return Context(tmp_path, open_source(str(tmp_path / "data.npz"), inputs=INPUTS))


def run(name: str, options: dict[str, Any], ctx: Context) -> Model:
    return make(get(name), options).run(Model(net(), Card("torch", inputs=INPUTS), Path("net.pt")), ctx)


def distance(model: Model) -> float:
    """From the original, on inputs that nothing was trained on."""
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(1))
    assert isinstance(model.body, nn.Module)
    with torch.no_grad():
        return float((model.body(x) - net()(x)).square().mean())


@pytest.mark.parametrize("name", ["rtn", "hqq", "gptq", "awq"])
def test_terms_beside_codes_learn_from_the_model_before(name: str, ctx: Context, tmp_path: Path) -> None:
    plain = run(f"quantize.{name}", {"bits": 2, "repair": 4}, ctx)
    trained = run(f"quantize.{name}", {"bits": 2, "repair": 4, "recover": "lora", **LONG}, ctx)
    assert isinstance(plain.body, nn.Module) and isinstance(trained.body, nn.Module)
    assert distance(trained) < 0.8 * distance(plain)
    before, after = plain.body.state_dict(), trained.body.state_dict()
    assert before.keys() == after.keys()
    for key in before:
        same = torch.equal(before[key], after[key])
        assert same == ("repair" not in key) and before[key].dtype == after[key].dtype, key
    applied = trained.card.history[-1]
    assert len(applied.facts["training"]["curve"]) == 30
    assert "low-rank corrections of rank 4 were trained; the codes did not change" in applied.facts["notes"]
    assert all(data["repair"] == 4 and "sqnr" not in data for data in applied.facts["layers"].values())
    write_weights(trained, tmp_path / "model.safetensors")
    again = net()
    stage = get(applied.name)
    tensors = stage.replay(again, read_facts(stage.facts, applied.facts), open_tensors(tmp_path / "model.safetensors"))
    again.load_state_dict({key: tensors.get(key) for key in tensors.names()})
    x = torch.randn(8, 16)
    assert torch.equal(again(x), trained.body(x))
    export_checked(trained.body, INPUTS, tmp_path / "model.onnx")


def test_training_a_quantized_model_gives_it_terms_of_rank_16(ctx: Context) -> None:
    facts = run("quantize.gptq", {"bits": 3, "epochs": 1}, ctx).card.history[-1].facts
    assert {data["repair"] for data in facts["layers"].values()} == {16, 4}  # the last layer has 4 outputs


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("prune.structured", {"target_macs": 0.4, "round_to": 4}),
        ("prune.magnitude", {"sparsity": 0.7}),
        ("prune.wanda", {"pattern": "2:4"}),
    ],
)
def test_terms_are_folded_into_pruned_weights(name: str, options: dict[str, Any], ctx: Context) -> None:
    plain = run(name, options, ctx)
    trained = run(name, {**options, "recover": "lora", "recover_rank": 4, **LONG}, ctx)
    assert distance(trained) < 0.95 * distance(plain)
    assert isinstance(plain.body, nn.Module) and isinstance(trained.body, nn.Module)
    before, after = dict(plain.body.named_parameters()), dict(trained.body.named_parameters())
    assert before.keys() == after.keys()
    for key, weight in before.items():
        if key.endswith("bias"):
            assert torch.equal(weight, after[key])
            continue
        assert torch.equal(weight == 0, after[key] == 0) and after[key].requires_grad
        if weight.count_nonzero() == weight.numel():
            assert torch.linalg.matrix_rank((after[key] - weight).double(), rtol=1e-5) <= 4
    assert "low-rank terms were trained, of rank 4 in 3 layers" in trained.card.history[-1].facts["notes"][-1]


def test_fresh_terms_change_nothing_and_folding_keeps_the_outputs() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3, groups=1), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2), nn.Flatten())
    module.append(nn.Linear(4 * 49, 5))
    original, x = copy.deepcopy(module), torch.randn(2, 3, 8, 8)
    with low_rank_terms(module, 2, 0) as names:
        assert names == ["0", "2", "4"]
        assert torch.equal(module(x), original(x))
        moving = {name for name, p in module.named_parameters() if p.requires_grad}
        assert len(moving) == 6
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name in moving:
                    parameter.normal_()
        inside = module(x)
    assert torch.allclose(module(x), inside, rtol=1e-6, atol=1e-6) and not torch.allclose(inside, original(x))
    assert module.state_dict().keys() == original.state_dict().keys()


def test_a_shared_weight_gets_no_term() -> None:
    embedding, head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
    head.weight = embedding.weight
    with low_rank_terms(nn.ModuleDict({"embedding": embedding, "mid": nn.Linear(4, 4), "head": head}), 2, 0) as names:
        assert names == ["mid"]
    assert head.weight is embedding.weight


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("quantize.gptq", {"recover": "lora"}, "`recover` is for training"),
        ("prune.magnitude", {"recover": "lora"}, "`recover` is for training"),
        ("prune.magnitude", {"epochs": 1, "recover_rank": 4}, "`recover_rank` is for `recover` lora"),
        ("quantize.gptq", {"epochs": 1, "recover": "weights"}, "--recover weights"),
        ("quantize.gptq", {"epochs": 1, "optimizer": "muon"}, "--optimizer muon"),
        (
            "prune.magnitude",
            {"epochs": 1, "recover": "lora", "optimizer": "muon"},
            "`optimizer` muon needs whole matrices",
        ),
        ("quantize.adaround", {"epochs": 1}, "--epochs"),
    ],
)
def test_options_that_mean_nothing_are_refused(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as found:
        make(get(name), options)
    assert said in found.value.message


def test_what_has_no_place_for_a_term_is_refused(ctx: Context) -> None:
    with pytest.raises(InputError, match="no Linear and no convolution"), low_rank_terms(nn.ReLU(), 2, 0):
        pass
    with pytest.raises(InputError, match="no low-rank term"), trainable_repairs(net()):
        pass
    with pytest.raises(UsageError, match="`data`"):
        run("quantize.rtn", {"epochs": 1}, Context(ctx.work))
    assert not any(isinstance(layer, PackedLinear) for layer in net().modules())


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
def test_a_weight_that_is_computed_gets_no_term() -> None:
    module = nn.Sequential(nn.utils.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 4, bias=False))
    with low_rank_terms(module, 2, 0) as names:
        assert names == ["1"]
