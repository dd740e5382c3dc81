"""Quantizing modules and bare tensors: which layers, what is recorded, and that the record rebuilds them."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from compresskit.checkpoint.load_state import load_into
from compresskit.checkpoint.safetensors_writer import Entry, entry, write_safetensors
from compresskit.checkpoint.tensors import open_tensors
from compresskit.errors import InputError, UsageError
from compresskit.facts import read_facts
from compresskit.facts.quantize import QuantizeFacts
from compresskit.ops.packed.grid import Grid, dequantize
from compresskit.ops.packed.modules import PackedConv, PackedEmbedding, PackedLinear, set_module
from compresskit.ops.packed.unpacking import Unpacked
from compresskit.ops.quantize.rtn import quantize_rtn
from compresskit.ops.quantize.select import Selection
from compresskit.ops.quantize.stream import Quantizer, plan
from compresskit.ops.quantize.weights import plan_layers, quantize_module, replay
from compresskit.stage import silent


class Net(nn.Module):
    """One of each kind: convolutions, an embedding tied to a head, attention, a GRU, a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(40, 64)
        self.conv = nn.Conv1d(64, 64, 3, padding=1, padding_mode="circular")
        self.grouped = nn.Conv1d(64, 64, 3, groups=4)
        self.norm = nn.LayerNorm(64)
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.gru = nn.GRU(64, 64, batch_first=True)
        self.position = nn.Parameter(torch.randn(1, 10, 64))
        self.body = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64, bias=False))
        self.head = nn.Linear(64, 40, bias=False)
        self.head.weight = self.embed.weight
        self.eval()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids) + self.position
        x = self.grouped(self.conv(x.transpose(1, 2))).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.body(self.norm(self.gru(x)[0])))


IDS = torch.arange(20).reshape(2, 10)
QUANTIZED = {"embed", "conv", "grouped", "body.0", "body.2", "head"}


def quantized(net: nn.Module, **options: object) -> tuple[dict, dict]:
    selection = Selection(**{"bits": 4, "group_size": 32, **options})
    return quantize_module(net, selection, quantize_rtn, silent)


def test_layers_are_replaced_and_all_others_named_with_a_reason() -> None:
    net = Net()
    facts, skipped = quantized(net)
    assert set(facts["layers"]) == QUANTIZED
    assert set(skipped) == {
        "attention.out_proj", "attention.in_proj_weight", "position",
        "gru.weight_ih_l0", "gru.weight_hh_l0",
    }  # fmt: skip
    assert all(skipped.values())
    kinds = {name: type(net.get_submodule(name)) for name in QUANTIZED}
    assert kinds == {
        "embed": PackedEmbedding, "conv": PackedConv, "grouped": PackedConv,
        "body.0": PackedLinear, "body.2": PackedLinear, "head": PackedLinear,
    }  # fmt: skip


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_packed_layers_compute_what_their_dequantized_weights_compute(bits: int, symmetric: bool) -> None:
    net, plain = Net(), Net()
    quantized(net, bits=bits, symmetric=symmetric)
    with torch.no_grad():
        for name in QUANTIZED:
            plain.get_submodule(name).weight.copy_(net.get_submodule(name).weight)
        assert torch.allclose(net(IDS), plain(IDS), atol=1e-6)


def test_ties_stay_ties() -> None:
    net = Net()
    facts, _ = quantized(net)
    assert facts["ties"] == {"head": "embed"}
    assert net.head.codes.data_ptr() == net.embed.codes.data_ptr()


def test_include_and_exclude() -> None:
    facts, skipped = quantized(Net(), include=("body.*", "conv"), exclude=("body.2",))
    assert set(facts["layers"]) == {"body.0", "conv"}
    assert skipped["body.2"] == "excluded"
    assert skipped["grouped"] == "not included"


@pytest.mark.parametrize(
    ("columns", "asked", "given"),
    [(64, 32, 32), (64, 128, 64), (172, 128, 64), (384, 128, 128), (100, 0, 0), (40, 32, 16), (33, 256, 16)],
)
def test_the_group_size_leaves_little_padding(columns: int, asked: int, given: int) -> None:
    assert Selection(8, asked).grid((10, columns)).group_size == given


@pytest.mark.parametrize("field", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_an_error(field: str) -> None:
    with pytest.raises(UsageError, match=r"no layer matches 'boddy\.\*'"):
        quantized(Net(), **{field: ("body.*", "boddy.*")})


def test_nothing_to_quantize_says_why() -> None:
    with pytest.raises(InputError, match="nothing to quantize"):
        quantized(nn.Sequential(nn.LayerNorm(8), nn.ReLU()))
    with pytest.raises(InputError, match="would not get smaller"):
        quantized(nn.Linear(2, 2))


def test_a_quantized_model_is_not_quantized_again() -> None:
    net = nn.Sequential(nn.Linear(64, 64))
    quantized(net)
    with pytest.raises(InputError, match="quantized already"):
        quantized(net)


def test_nan_names_the_layer() -> None:
    net = Net()
    with torch.no_grad():
        net.body[0].weight[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"layer 'body.0'.*NaN"):
        quantized(net)


def test_parametrized_and_subclassed_layers_are_left_alone() -> None:
    class Mine(nn.Linear):
        pass

    net = nn.ModuleDict({"a": nn.Linear(64, 64), "b": Mine(64, 64), "c": nn.Linear(64, 64)})
    nn.utils.parametrizations.weight_norm(net["c"])
    facts, skipped = quantized(net)
    assert set(facts["layers"]) == {"a"}
    assert {"b"} <= set(skipped)


@pytest.mark.parametrize("bits", [4, 8])
def test_facts_and_tensors_rebuild_the_module(tmp_path: Path, bits: int) -> None:
    net = Net()
    facts, _ = quantized(net, bits=bits)
    facts = json.loads(json.dumps(facts))
    path = tmp_path / "w.safetensors"
    state = {k: v for k, v in net.state_dict().items() if not k.startswith("head.")}
    write_safetensors(path, [entry(k, v) for k, v in state.items()])
    fresh = Net()
    plain = replay(fresh, read_facts(QuantizeFacts, facts))
    assert not plain
    load_into(fresh, open_tensors(path))
    with torch.no_grad():
        assert torch.equal(fresh(IDS), net(IDS))


def test_facts_of_another_architecture_are_refused() -> None:
    facts, _ = quantized(Net())
    with pytest.raises(InputError, match="no layer"):
        replay(nn.Sequential(nn.Linear(64, 64)), read_facts(QuantizeFacts, facts))
    other = Net()
    other.conv = nn.Conv1d(64, 32, 3)
    with pytest.raises(InputError, match="layer 'conv'"):
        replay(other, read_facts(QuantizeFacts, facts))


def saved(net: nn.Module, path: Path) -> Path:
    torch.save(net.state_dict(), path)
    return path


def stream(path: Path, out: Path, selection: Selection) -> dict:
    tensors = open_tensors(path)
    quantizer = Quantizer(tensors, plan(tensors, selection), progress=silent)
    write_safetensors(out, (Entry(*e) for e in quantizer.entries()))
    return quantizer.facts()


@pytest.mark.parametrize("bits", [4, 8])
def test_bare_tensors_get_the_codes_that_the_module_gets(tmp_path: Path, bits: int) -> None:
    net = Net()
    source = saved(net, tmp_path / "net.pt")
    out = tmp_path / "out.safetensors"
    facts = stream(source, out, Selection(bits, 32))
    expected, _ = quantized(net, bits=bits)
    stored = open_tensors(out)
    assert set(facts["layers"]) >= set(expected["layers"])
    assert facts["ties"] == expected["ties"]
    for name in QUANTIZED - {"head"}:
        layer = net.get_submodule(name)
        assert torch.equal(stored.get(f"{name}.codes"), layer.codes)
        assert torch.equal(stored.get(f"{name}.scales"), layer.scales)
        assert torch.equal(stored.get(f"{name}.zeros"), layer.zeros)


def test_bare_tensors_reload_into_the_architecture_also_where_a_layer_has_no_packed_form(tmp_path: Path) -> None:
    net = Net()
    out = tmp_path / "out.safetensors"
    # Without the architecture, attention's projection is a weight as any other; with it, the layer must stay plain.
    facts = stream(saved(net, tmp_path / "net.pt"), out, Selection(8, 32))
    assert "attention.out_proj" in facts["layers"]
    fresh = Net()
    tensors = open_tensors(out)
    plain = replay(fresh, read_facts(QuantizeFacts, facts))
    assert set(plain) == {"attention.out_proj"}
    load_into(fresh, Unpacked(tensors, plain))
    with torch.no_grad():
        reference = copy.deepcopy(net)
        reference.attention.out_proj.weight.copy_(dequantize(quantize_rtn(net.attention.out_proj.weight, Grid(8, 32))))
        quantized(reference, bits=8)
        assert torch.allclose(fresh(IDS), reference(IDS), atol=1e-6)


def test_progress_counts_layers() -> None:
    seen = []
    quantize_module(Net(), Selection(4, 32), partial(quantize_rtn, clip=False), lambda *a: seen.append(a))
    assert seen[-1] == ("quantize", 6, 6)
    assert [done for _, done, _ in seen] == [1, 2, 3, 4, 5, 6]


def test_a_model_that_is_one_layer_is_refused_and_cant_be_replaced() -> None:
    for layer in (nn.Linear(64, 64), nn.Embedding(64, 64), nn.Conv2d(16, 16, 3)):
        with pytest.raises(InputError, match="wrap it in a module"):
            quantized(layer)
    with pytest.raises(ValueError, match="root"):
        set_module(nn.Linear(4, 4), "", nn.Linear(4, 4))


def test_an_empty_weight_is_left_alone() -> None:
    net = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)))
    for layer in net[1:]:
        layer.weight, layer.bias, layer.out_features = nn.Parameter(torch.empty(0, 64)), None, 0
    facts, skipped = quantized(net)
    assert set(facts["layers"]) == {"0"} and not facts["ties"]
    assert skipped == {"1": "its weight is empty", "2": "its weight is empty"}


def test_a_view_that_only_starts_at_the_same_address_is_no_tie() -> None:
    net = nn.Sequential(nn.Linear(64, 96, bias=False), nn.Linear(64, 32, bias=False), nn.Linear(64, 96, bias=False))
    net[1].weight = nn.Parameter(net[0].weight.detach()[:32])
    net[2].weight = nn.Parameter(net[0].weight.detach())  # another object, the same values read the same way
    assert net[1].weight.data_ptr() == net[0].weight.data_ptr()
    x = torch.randn(2, 64)
    assert plan_layers(net, Selection(8, 32)).ties == {"2": "0"}
    first = net[1](x).detach()
    facts, _ = quantized(net, bits=8)
    assert facts["ties"] == {"2": "0"} and facts["layers"]["1"]["shape"] == [32, 64]
    torch.testing.assert_close(net[1](x), first, rtol=0.05, atol=0.05)
