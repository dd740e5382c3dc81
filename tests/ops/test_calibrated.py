"""Calibrated quantization of a whole module: order, ties, biases, and a record that rebuilds it."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from calibration_models import Blocks, batches, forward
from torch import Tensor, nn

from compresskit.errors import InputError, UsageError
from compresskit.exporter.onnx_export import export_onnx
from compresskit.exporter.parity import parity
from compresskit.facts import read_facts
from compresskit.facts.quantize import QuantizeFacts
from compresskit.model import InputSpec
from compresskit.ops.calibration.moments import Moments
from compresskit.ops.packed.grid import Grid, Packed
from compresskit.ops.packed.modules import PackedLinear
from compresskit.ops.quantize.awq import quantize_weighted
from compresskit.ops.quantize.calibrated import Method, quantize_calibrated
from compresskit.ops.quantize.gptq import quantize_gptq
from compresskit.ops.quantize.rtn import quantize_rtn
from compresskit.ops.quantize.select import Selection
from compresskit.ops.quantize.smooth import SmoothedLinear, smooth_module
from compresskit.ops.quantize.weights import quantize_module, replay
from compresskit.stage import silent
from compresskit.stages.quantize_rtn import QuantizeRtn


def rounded(weight: Tensor, grid: Grid, _moments: Moments) -> Packed:
    return quantize_rtn(weight, grid)


METHODS = {
    "gptq": Method(quantize_gptq),
    "gptq with drift": Method(quantize_gptq, drift=1.0),
    "awq": Method(quantize_weighted, scale=True),
    "rtn with repair": Method(rounded, repair=4),
    "gptq with repair": Method(quantize_gptq, drift=1.0, repair=4),
}


def quantized(module: nn.Module, method: Method, data: list[dict[str, Tensor]] | None = None, **options: Any) -> Any:
    selection = Selection(**{"bits": 3, "group_size": 16, **options})
    return quantize_calibrated(module, selection, method, batches() if data is None else data, forward, silent)


def error(module: nn.Module) -> float:
    """Mean squared error of the logits on other samples."""
    with torch.no_grad():
        other = batches(6)[3:]
        return float(sum((forward(module, b) - forward(Blocks(), b)).square().mean() for b in other))


@pytest.mark.parametrize("name", METHODS)
def test_it_is_nearer_to_the_original_than_rounding(name: str) -> None:
    module, plain = Blocks(), Blocks()
    facts, skipped = quantized(module, METHODS[name])
    quantize_module(plain, Selection(3, 16), quantize_rtn, silent)
    assert error(module) < error(plain)
    assert list(facts["layers"]) == [n for n, m in Blocks().named_modules(remove_duplicate=False) if is_layer(m)]
    assert not skipped


def is_layer(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Embedding))


@pytest.mark.parametrize("name", METHODS)
def test_the_record_rebuilds_the_module(name: str) -> None:
    module = Blocks()
    facts, _ = quantized(module, METHODS[name])
    other = Blocks()
    replay(other, read_facts(QuantizeFacts, json.loads(json.dumps(facts))))
    other.load_state_dict(module.state_dict(), strict=True)
    for batch in batches(1):
        assert torch.equal(forward(other, batch), forward(module, batch))


@pytest.mark.parametrize("name", ["awq", "gptq with repair"])
def test_the_onnx_file_computes_the_same(name: str, tmp_path: Path) -> None:
    module = Blocks(width=64)
    facts, _ = quantized(module, METHODS[name], bits=4)
    assert name != "awq" or any(fact.get("input_scale") for fact in facts["layers"].values())
    inputs = (InputSpec("ids", "int64", ("batch", "sequence"), high=40),)
    export_onnx(module, inputs, tmp_path / "m.onnx")
    assert parity(module, tmp_path / "m.onnx", inputs).passed


def test_a_tied_weight_is_packed_once_and_calibrated_by_the_layer_with_moments() -> None:
    module = Blocks()
    facts, _ = quantized(module, METHODS["gptq"])
    assert facts["ties"] == {"head": "embed"}
    assert module.head.codes.data_ptr() == module.embed.codes.data_ptr()
    assert not torch.equal(module.embed.codes, quantize_rtn(Blocks().embed.weight, Grid(3, 16)).codes)


def test_what_no_sample_reached_is_named() -> None:
    facts, _ = quantized(Blocks(), METHODS["gptq"])
    assert [note for note in facts["notes"] if "reach" in note] == [
        "rounded without calibration because the first batch didn't reach them: 'unused'"
    ]


def test_the_bias_takes_the_mean_error_of_the_output() -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(32, 16))
    x = torch.randn(500, 32) + 2
    before = layer(x).mean(0)
    quantize_calibrated(
        layer, Selection(2, 32), Method(rounded), [{"x": x}], lambda m, b: m(b["x"]), silent
    )  # fmt: skip
    assert torch.allclose(layer(x).mean(0), before, atol=1e-4)
    assert not torch.allclose(layer(x), before.expand(500, -1), atol=1e-1)


def test_layer_bits() -> None:
    module = Blocks()
    bits = {"layers.*": (8, None), "*.down": (2, 32), "*.up": (16, None)}
    facts, skipped = quantized(module, METHODS["gptq"], layer_bits=bits)
    found = {name: (f["bits"], f["group_size"]) for name, f in facts["layers"].items()}
    assert found["layers.0.q"] == (8, 16) and found["layers.1.down"] == (2, 32) and found["embed"] == (3, 16)
    assert set(skipped) == {"layers.0.up", "layers.1.up"}
    with pytest.raises(UsageError, match="no layer matches 'nothing'"):
        quantized(Blocks(), METHODS["gptq"], layer_bits={"nothing": (8, None)})
    with pytest.raises(UsageError, match="shares its weight with 'embed'"):
        quantized(Blocks(), METHODS["gptq"], layer_bits={"head": (8, None)})


def test_drift_makes_up_for_earlier_layers() -> None:
    plain, corrected = Blocks(depth=4), Blocks(depth=4)
    data = batches(12)
    reference = Blocks(depth=4)
    for module, method in ((plain, METHODS["gptq"]), (corrected, METHODS["gptq with drift"])):
        quantized(module, method, data, exclude=("embed", "head"))
    with torch.no_grad():
        losses = [
            float((forward(m, data[0]) - forward(reference, data[0])).square().mean()) for m in (plain, corrected)
        ]
    assert losses[1] < losses[0]


@pytest.mark.parametrize("rank", [0, 2])
def test_a_better_block_is_taken_and_layers_stay_packed(rank: int) -> None:
    module, seen = Blocks(), []

    def tune(segment: Any, start: dict[str, Packed], terms: dict[str, Tensor]) -> dict[str, Packed]:
        seen.append(segment.name)
        assert all(type(segment.layer(name)) is nn.Linear for name in start)
        assert terms.keys() == (start.keys() if rank else set())
        found.update(terms)
        return {name: quantize_rtn(segment.layer(name).weight, Grid(3, 16)) for name in start}

    found: dict[str, Tensor] = {}
    facts, _ = quantized(module, Method(quantize_gptq, tune=tune, repair=rank))
    assert seen == ["layers.0", "layers.1"]
    layer = module.get_submodule("layers.0.q")
    assert isinstance(layer, PackedLinear) and facts["layers"]["layers.0.q"]["bits"] == 3
    assert torch.equal(layer.codes, quantize_rtn(Blocks().layers[0].q.weight, Grid(3, 16)).codes)
    assert facts["layers"]["layers.0.q"].get("repair", 0) == rank
    if layer.repair_in is not None and layer.repair_out is not None:
        assert torch.equal(found["layers.0.q"], layer.repair_out.float() @ layer.repair_in.float())
    assert (layer.repair_in is not None) == bool(rank)


def test_moments_with_nan_name_the_layer() -> None:
    module = nn.Sequential(nn.Linear(8, 8))
    run = partial(quantize_calibrated, module, Selection(4, 0), Method(quantize_gptq))
    with pytest.raises(InputError, match="layer '0': its inputs hold NaN"):
        run([{"x": torch.full((4, 8), torch.nan)}], lambda m, b: m(b["x"]), silent)


@pytest.mark.parametrize("drift", [0.0, 1.0])
def test_rows_of_a_large_weight_are_worked_on_in_pieces(drift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def seen(weight: Tensor, grid: Grid, moments: Moments) -> Packed:
        rows.append(len(weight))
        return quantize_gptq(weight, grid, moments)

    found = []
    for by_rows in (False, True):
        module, rows = Blocks(), list[int]()
        quantized(module, Method(seen, drift=drift, by_rows=by_rows))
        found.append((module.state_dict(), max(rows)))
        monkeypatch.setattr("compresskit.ops.quantize.calibrated._PIECE", 300)
    (whole, most), (pieces, fewer) = found
    assert fewer < most
    for name, value in whole.items():
        assert torch.allclose(value.float(), pieces[name].float(), atol=1e-6), name


def test_without_data_everything_is_rounded() -> None:
    module, plain = Blocks(), Blocks()
    quantized(module, METHODS["gptq"], [])
    quantize_module(plain, Selection(3, 16), quantize_rtn, silent)
    assert all(
        torch.equal(a, b) for a, b in zip(module.state_dict().values(), plain.state_dict().values(), strict=True)
    )


def test_gptq_runs_the_same_twice() -> None:
    first = Blocks()
    second = copy.deepcopy(first)
    for module in (first, second):
        quantized(module, METHODS["gptq with repair"])
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


class Encoder(nn.Module):
    """Torch's own encoder, whose fast path reads the weights of its layers instead of calling them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2)
        with torch.no_grad():
            for part in self.body.layers:
                part.norm1.weight.copy_(torch.logspace(-1, 1.3, 32))  # so that scaling pays
        self.eval()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        return self.body(x, src_key_padding_mask=mask)


def slow(module: nn.Module, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """What the module gives where every layer is called."""
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        return module(x, mask)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["awq", "rtn with repair", "smoothquant"])
def test_the_fast_path_of_torchs_encoder_leaves_no_correction_out(kind: str) -> None:
    module, x = Encoder(), torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(7).expand(3, 7) > torch.tensor([[6], [3], [4]])
    call = lambda m, b: m(b["x"])  # noqa: E731
    if kind == "smoothquant":
        smooth_module(module, [{"x": x}], call, alpha=0.5)
        assert any(isinstance(m, SmoothedLinear) for m in module.modules())
        torch.testing.assert_close(module(x), Encoder()(x), rtol=1e-4, atol=1e-5)
        return
    facts, _ = quantize_calibrated(module, Selection(3, 16), METHODS[kind], [{"x": x}], call, silent)
    assert any(data.get("input_scale") or data.get("repair") for data in facts["layers"].values())
    again = Encoder()
    replay(again, read_facts(QuantizeFacts, facts))
    again.load_state_dict(module.state_dict())
    for net in (module, again):
        torch.testing.assert_close(net(x), slow(module, x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(net(x, mask)[~mask], slow(module, x, mask)[~mask], rtol=1e-5, atol=1e-5)


def test_a_repair_counts_in_the_recorded_sqnr() -> None:
    plain, _ = quantized(Blocks(), Method(rounded))
    module = Blocks()
    facts, _ = quantized(module, METHODS["rtn with repair"])
    name = "layers.0.q"
    layer, weight = module.get_submodule(name), Blocks().get_submodule(name).get_parameter("weight").detach()
    whole = layer.weight + layer.repair_out.float() @ layer.repair_in.float()
    expected = 20 * float((weight.norm() / (weight - whole).norm()).log10())
    assert facts["layers"][name]["sqnr"] == pytest.approx(expected, abs=0.06)
    assert facts["layers"][name]["sqnr"] > plain["layers"][name]["sqnr"]


@pytest.mark.parametrize(("texts", "bits"), [(("a*=4", "a.b=8", "a*=2"), 2), (("a*=4", "a.b=8"), 8)])
def test_the_last_pattern_that_matches_counts_though_it_was_given_before(texts: tuple[str, ...], bits: int) -> None:
    assert QuantizeRtn(layer_bits=texts).selection().grid_for("a.b", (64, 64)).bits == bits


def test_layers_without_rows_are_named_for_what_they_are() -> None:
    module = nn.Sequential(nn.Conv3d(2, 16, 3), nn.Flatten(), nn.Linear(16, 16)).eval()
    data = [{"x": torch.randn(4, 2, 3, 3, 3)}]
    found, _ = quantize_calibrated(
        module, Selection(8, 0), METHODS["gptq"], data, lambda m, b: m(b["x"]), lambda *_: None
    )
    assert found["notes"] == ["rounded without calibration because their inputs can't be written as rows: '0'"]
