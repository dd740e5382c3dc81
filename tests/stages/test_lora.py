"""Adapters of plain modules: what they change, what they leave, and PEFT's view of the same files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from lora_models import IMAGES, LOW_RANK, NETS, SMALL, convnet, inputs_for, mlp, said, state, train
from torch import nn

from compresskit import registry
from compresskit.errors import InputError, MachineError, UsageError
from compresskit.model import Card, Model
from compresskit.ops.lora.adapter import adapted
from compresskit.stage import Context

peft = pytest.importorskip("peft")
BOTH = pytest.mark.parametrize("net", list(NETS))


def again(net: str, adapter: Path, folder: Path) -> Model:
    """The untouched net with an adapter merged into it from its folder."""
    make, inputs = NETS[net]
    model = Model(make(), Card("torch", inputs=inputs), Path("net.pt"))
    return registry.get("lora.merge")(adapter=adapter).run(model, Context(folder))


@BOTH
@pytest.mark.parametrize("name", [*LOW_RANK, "bottleneck"])
def test_a_fresh_adapter_changes_nothing(name: str, net: str, tmp_path: Path) -> None:
    x = inputs_for(net)
    found, _ = train(name, net, tmp_path, epochs=0)
    assert adapted(found.body)  # type: ignore[arg-type]
    torch.testing.assert_close(said(found.body, x), said(NETS[net][0](), x), atol=1e-6, rtol=0)


@BOTH
@pytest.mark.parametrize("name", LOW_RANK)
def test_merged_is_unmerged_is_what_peft_computes(name: str, net: str, tmp_path: Path) -> None:
    x = inputs_for(net)
    beside, adapter = train(name, net, tmp_path)
    wanted = said(beside.body, x)
    assert (wanted - said(NETS[net][0](), x)).abs().max() > 1e-3
    merged, same = train(name, net, tmp_path, merge=True)
    assert not adapted(merged.body)  # type: ignore[arg-type]
    assert (
        same.joinpath("adapter_model.safetensors").read_bytes() == (adapter / "adapter_model.safetensors").read_bytes()
    )
    assert same.joinpath("adapter_config.json").read_bytes() == (adapter / "adapter_config.json").read_bytes()
    for other in (
        merged.body,
        again(net, adapter, tmp_path).body,
        peft.PeftModel.from_pretrained(NETS[net][0](), adapter),
    ):
        torch.testing.assert_close(said(other, x), wanted, atol=1e-6, rtol=0)


@BOTH
@pytest.mark.parametrize("name", [*LOW_RANK, "bottleneck"])
def test_the_weights_stay_as_they_are(name: str, net: str, tmp_path: Path) -> None:
    before = state(NETS[net][0]())
    found, _ = train(name, net, tmp_path)
    after = state(found.body)
    assert {key: value for key, value in after.items() if ".adapter." not in key} == before
    assert any(".adapter." in key for key in after)
    assert all(p.requires_grad == (".adapter." not in n) for n, p in found.body.named_parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(r=4, lora_alpha=3, target_modules=["0", "2"], alpha_pattern={"0": 12}, rank_pattern={"2": 2}),
        peft.LoraConfig(r=4, use_rslora=True, use_dora=True, target_modules="(0|2)"),
        peft.IA3Config(target_modules=["0", "2"], feedforward_modules=["2"]),
        peft.VeraConfig(r=5, target_modules=["0", "2"]),
    ],
    ids=["patterns", "rsdora", "ia3", "vera"],
)
def test_an_adapter_made_by_peft_is_read(config: object, tmp_path: Path) -> None:
    x = inputs_for("mlp")
    model = peft.get_peft_model(mlp(), config).eval()
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape)
        assert parameter.requires_grad == any(key in name for key in ("lora_", "ia3_", "vera_lambda"))
    model.save_pretrained(tmp_path)
    found = again("mlp", tmp_path, tmp_path)
    torch.testing.assert_close(said(found.body, x), said(model, x), atol=1e-5, rtol=1e-5)
    assert "only names and shapes were checked" in found.card.history[-1].facts["notes"][1]


def test_the_report_says_what_was_adapted_and_what_was_not(tmp_path: Path) -> None:
    found, adapter = train("lora", "convnet", tmp_path)
    applied = found.card.history[-1]
    assert applied.facts["layers"]["0"] == {"about": "lora, rank 3", "rank": 3}
    assert set(applied.facts["layers"]) == {"0", "4", "6", "8"}
    assert applied.skipped == {"3": "a convolution in 8 groups, whose adapter could not be merged"}
    trained = 3 * (3 * 9 + 8) + 3 * (8 + 12) + 3 * (48 + 16) + 3 * (16 + 4)
    assert (
        applied.facts["parameters"] == trained and f"{trained:,} parameters were trained" in applied.facts["notes"][1]
    )
    assert applied.facts["training"]["optimizer"] == "adamw"
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "net.pt" and config["target_modules"] == ["0", "4", "6", "8"]


def test_layers_that_the_loss_does_not_see_are_left_out(tmp_path: Path) -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.aside = nn.Linear(24, 4), nn.Linear(24, 4)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.used(x), self.aside(x)

    found, _ = train("lora", "mlp", tmp_path, Aside().eval())
    applied = found.card.history[-1]
    assert applied.skipped == {"aside": "it does not affect the loss"} and set(applied.facts["layers"]) == {"used"}
    assert set(adapted(found.body)) == {"used"}  # type: ignore[arg-type]


def test_the_seed_decides_every_byte(tmp_path: Path) -> None:
    first, second = (train("dora", "mlp", tmp_path)[1] / "adapter_model.safetensors" for _ in range(2))
    assert first.read_bytes() == second.read_bytes()


def test_full_trains_all_weights(tmp_path: Path) -> None:
    found, adapter = train("full", "mlp", tmp_path)
    before, after = state(mlp()), state(found.body)
    assert all(before[name] != after[name] for name in before) and not adapter.exists()
    facts = found.card.history[-1].facts
    assert facts["share"] == 1.0 and facts["parameters"] == sum(p.numel() for p in mlp().parameters())


def test_loftq_begins_nearer_to_the_weights_than_rounding(tmp_path: Path) -> None:
    from compresskit.ops.lora.loftq import quantize_loftq
    from compresskit.ops.packed.grid import dequantize
    from compresskit.ops.packed.nf4 import nf4_grid
    from compresskit.ops.quantize.table import quantize_table

    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    grid = nf4_grid(64)
    plain = (weight - dequantize(quantize_table(weight, grid))).norm()
    errors = []
    for rank, rounds in ((4, 1), (4, 5), (32, 1)):
        packed, down, up = quantize_loftq(weight, grid, quantize_table, rank, rounds)
        assert down.shape == (rank, 64) and up.shape == (32, rank)
        errors.append(float((weight - dequantize(packed) - up @ down).norm() / plain))
    assert errors[2] < 1e-5 < errors[1] <= errors[0] < 0.9


@pytest.mark.parametrize(
    ("name", "options", "error", "said_"),
    [
        ("lora", {"targets": ("no.*",)}, UsageError, "no layer matches `targets`"),
        ("lora", {"targets": ("3",)}, UsageError, "'3' can't be adapted: a convolution in 8 groups"),
        ("lora", {"rank": 100}, UsageError, "rank 100 is above the matrix"),
        ("lora", {"rank": 9, "targets": ("0",)}, UsageError, "rank 9 is above the matrix, which has at most 8"),
        ("pissa", {"targets": ("0",)}, UsageError, "linear layers only"),
        ("bottleneck", {"merge": True}, UsageError, "not linear"),
        ("loftq", {"merge": True}, UsageError, "merging needs requantization"),
        ("prompt", {}, InputError, "prompt tuning is for text models of transformers, not for Sequential"),
        ("lora", {"teacher_share": 0.1}, UsageError, "`teacher_share` is for a teacher"),
        ("lora", {"recalibrate": True}, UsageError, "`recalibrate` would change the base"),
    ],
)
def test_what_does_not_fit_is_refused(
    name: str, options: dict, error: type[Exception], said_: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said_.replace("(", r"\(")):
        train(name, "convnet", tmp_path, **options)


def test_a_model_without_linear_or_conv_is_refused(tmp_path: Path) -> None:
    module = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten())
    with pytest.raises(InputError, match="no Linear or Conv layer"):
        train("lora", "convnet", tmp_path, module)


def test_a_failed_training_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    module = convnet()
    with pytest.raises(InputError, match="diverged"):
        train("pissa", "convnet", tmp_path, module, lr=1e30)
    assert state(module) == state(convnet()) and type(module[6]) is nn.Linear  # type: ignore[index]


def test_without_peft_training_says_what_to_install_and_merging_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, adapter = train("lora", "mlp", tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MachineError, match="peft") as error:
        train("lora", "mlp", tmp_path)
    assert error.value.exit_code == 4 and "compresskit[lora]" in error.value.hint
    x = inputs_for("mlp")
    torch.testing.assert_close(said(again("mlp", adapter, tmp_path).body, x), said(beside.body, x), atol=1e-6, rtol=0)


def test_an_adapter_for_another_base_is_refused(tmp_path: Path) -> None:
    _, adapter = train("lora", "mlp", tmp_path)
    other = mlp()
    with torch.no_grad():
        other[4].bias += 1e-3  # type: ignore[index, operator]
    model = Model(other, Card("torch", inputs=NETS["mlp"][1]), Path("other.pt"))
    with pytest.raises(InputError, match="hash mismatch") as error:
        registry.get("lora.merge")(adapter=adapter).run(model, Context(tmp_path))
    assert "the model that the adapter was trained on" in error.value.hint
    net = Model(convnet(), Card("torch", inputs=IMAGES), Path("net.pt"))
    with pytest.raises(InputError, match="hash mismatch"):
        registry.get("lora.merge")(adapter=adapter).run(net, Context(tmp_path))


def test_a_shared_weight_is_not_merged(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        net = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24), nn.Linear(24, 4))
        net[2].weight = net[0].weight
        return net.eval()

    found, _ = train("lora", "mlp", tmp_path, tied())
    assert set(found.card.history[-1].facts["layers"]) == {"3"}
    assert found.card.history[-1].skipped["0"] == "it shares its weight with '2': `targets` takes it in"
    beside, _ = train("lora", "mlp", tmp_path, tied(), targets=("2",))
    assert set(adapted(beside.body)) == {"2"}  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="shares its weight with '0': merging would change both"):
        train("lora", "mlp", tmp_path, tied(), targets=("2",), merge=True)


def test_every_method_that_trains_is_covered() -> None:
    known = set(registry.methods("lora"))
    assert known == {*SMALL, "prompt", "full", "merge", "route"}


def test_containers_named_as_layers_are_no_targets(tmp_path: Path) -> None:
    torch.manual_seed(0)
    blocks = (nn.Sequential(nn.Linear(24, 16), nn.ReLU()), nn.Sequential(nn.Linear(16, 4), nn.ReLU()))
    model, _ = train("lora", "mlp", tmp_path, nn.Sequential(*blocks).eval())
    assert set(model.card.history[-1].facts["layers"]) == {"0.0", "1.0"}


def test_pissa_leaves_shared_weights_alone(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 4)).eval()
    module[1].weight = module[0].weight
    with pytest.raises(UsageError, match="pissa would change both"):
        train("pissa", "mlp", tmp_path, module, targets=("0",))


def test_adapters_work_inside_torchs_fast_encoder_layer() -> None:
    from compresskit.ops.lora.injected import inject

    torch.manual_seed(0)
    module = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)).eval()
    found = inject(module, "lora", ["0.linear1", "0.linear2"])
    for layer in ("linear1", "linear2"):
        nn.init.normal_(module.get_submodule(f"0.{layer}").lora_B["default"].weight)
    x = torch.randn(2, 5, 16)
    slow = module(x).detach()  # with gradients there is no fast path
    with torch.no_grad():
        assert torch.allclose(module(x), slow, atol=1e-5)
    found.remove()
