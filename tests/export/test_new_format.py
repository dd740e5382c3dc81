"""A format that the package doesn't know: a definition, a row in the registry, an algorithm; all else goes by it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from mixed_net import Mixed
from torch import Tensor, nn

from compresskit.checkpoint.tensors import Tensors
from compresskit.errors import InputError
from compresskit.exporter.onnx_export import export_onnx
from compresskit.facts import read_facts
from compresskit.facts.quantize import QuantizeFacts
from compresskit.model import InputSpec
from compresskit.ops.estimates.modules import grids_of, inventory_of
from compresskit.ops.inspect_onnx import inspect_onnx
from compresskit.ops.packed.format import Format
from compresskit.ops.packed.formats import FORMATS, format_named
from compresskit.ops.packed.grid import Grid, dequantize, pack, packed_bytes, unpack
from compresskit.ops.packed.modules import PackedLayer
from compresskit.ops.packed.nf4 import NF4
from compresskit.ops.packed.unpacking import Unpacked
from compresskit.ops.quantize.bnb import obstacle
from compresskit.ops.quantize.fake import FakeWeight
from compresskit.ops.quantize.fast import kernel_for
from compresskit.ops.quantize.gptq import quantize_gptq
from compresskit.ops.quantize.rtn import quantize_rtn
from compresskit.ops.quantize.select import Selection
from compresskit.ops.quantize.weights import quantize_module, replay

SPEC = (InputSpec("ids", "int64", ("batch", 8), 50),)
TOYS = {
    "two": Format("two", (2,), (-1.0, 0.0, 0.5, 1.0)),
    "powers": Format("powers", (3,), (-1.0, -0.5, -0.25, 0.0, 0.125, 0.25, 0.5, 1.0)),
    "tenths": Format("tenths", (4,), tuple(round(i / 10, 1) for i in range(-5, 11))),
    "wide": Format("wide", (8,), tuple(math.sinh(i / 40) for i in range(-127, 129)), scales="float32"),
    "positive": Format("positive", (2,), (0.0, 0.1, 0.4, 1.0), groups_convolutions=False),
}


@pytest.fixture(params=TOYS)
def toy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Format:
    """A format that is registered here."""
    known = TOYS[request.param]
    monkeypatch.setitem(FORMATS, known.name, known)
    return known


def selection(toy: Format) -> Selection:
    return Selection(toy.bits[0], 16, True, format=toy)


def quantized(toy: Format) -> tuple[nn.Module, dict[str, object]]:
    module = Mixed(48, 48)
    facts, _ = quantize_module(module, selection(toy), quantize_rtn, lambda *_: None)
    return module, facts


def layers(module: nn.Module) -> dict[str, PackedLayer]:
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, PackedLayer)}


def test_each_weight_becomes_the_nearest_level_that_its_scale_has(toy: Format) -> None:
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    weight[2] = 0
    packed = quantize_rtn(weight, Grid(toy.bits[0], 16, True, toy))
    scales = packed.scales.float().repeat_interleave(16, 1)[:, :40]
    levels = torch.tensor(toy.levels)
    away = (scales.unsqueeze(-1) * levels - weight.unsqueeze(-1)).abs().amin(-1)
    assert torch.allclose((dequantize(packed) - weight).abs(), away, atol=1e-6)
    assert (dequantize(packed)[2] == 0).all()
    reached = (scales * levels[-1] >= weight * (1 - 1e-3)) & (scales * levels[0] <= weight * (1 - 1e-3)).logical_or(
        levels[0] == 0
    )
    assert reached.all()


def test_codes_come_back_from_their_bytes(toy: Format) -> None:
    bits = toy.bits[0]
    codes = torch.randint(0, 1 << bits, (5, 37), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    assert pack(codes, bits).shape[-1] == packed_bytes(37, bits)
    assert torch.equal(unpack(pack(codes, bits), bits, 37), codes)


def test_facts_and_tensors_rebuild_the_module(toy: Format) -> None:
    module, facts = quantized(toy)
    assert {fact["grid"] for fact in facts["layers"].values()} == {toy.name}  # type: ignore[index,attr-defined]
    fresh = Mixed(48, 48)
    assert not replay(fresh, read_facts(QuantizeFacts, facts))
    fresh.load_state_dict(module.state_dict())
    ids = torch.arange(16).reshape(2, 8)
    assert torch.equal(fresh(ids), module(ids))
    assert {n: layer.grid for n, layer in layers(fresh).items()} == {n: m.grid for n, m in layers(module).items()}


def test_layers_without_a_packed_form_get_its_values(toy: Format) -> None:
    module, _ = quantized(toy)
    plain = Unpacked(_Held(module.state_dict()), {name: layer.packed for name, layer in layers(module).items()})
    assert all(torch.equal(plain.get(f"{n}.weight"), layer.weight) for n, layer in layers(module).items())


class _Held(Tensors):
    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._held, self.source, self.metadata, self.ties = tensors, Path("held"), {}, {}

    def names(self) -> list[str]:
        return list(self._held)

    def get(self, name: str) -> Tensor:
        return self._held[name]


def test_the_onnx_file_computes_what_the_module_computes(toy: Format, tmp_path: Path) -> None:
    module, _ = quantized(toy)
    export_onnx(module, SPEC, tmp_path / "m.onnx")
    ids = np.random.default_rng(0).integers(0, 50, (3, 8))
    found = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"]).run(
        None, {"ids": ids}
    )
    with torch.no_grad():
        assert np.abs(found[0] - module(torch.from_numpy(ids)).numpy()).max() < 1e-5
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert np.array_equal(stored["conv.codes"], layers(module)["conv"].codes.numpy())
    entries = {e["name"].removesuffix(".codes"): e for e in inspect_onnx(tmp_path / "m.onnx")["layers"]}
    for name, layer in layers(module).items():
        assert entries[name]["dtype"] == toy.name
        if name != "up":  # zeros in a group that isn't full can't always be told from padding
            zeros = int((dequantize(layer.packed) == 0).sum())
            assert entries[name]["sparsity"] * entries[name]["parameters"] == pytest.approx(zeros)


def test_two_tables_of_one_size_stay_apart(tmp_path: Path) -> None:
    module, tenths = Mixed(48, 48), TOYS["tenths"]
    for name, known in (("up", tenths), ("head", NF4)):
        chosen = Selection(4, 16, True, include=[name], format=known)
        FORMATS.setdefault(known.name, known)
        quantize_module(module, chosen, quantize_rtn, lambda *_: None)
    try:
        export_onnx(module, SPEC, tmp_path / "m.onnx")
    finally:
        del FORMATS[tenths.name]
    ids = np.arange(8)[None]
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        assert np.abs(session.run(None, {"ids": ids})[0] - module(torch.from_numpy(ids)).numpy()).max() < 1e-5


def test_estimates_count_its_bytes(toy: Format) -> None:
    module = Mixed(48, 48)
    inventory, grids = inventory_of(module, {}), grids_of(module, selection(toy))
    plain, packed = inventory.as_float(), inventory.packed(grids)
    operators = inventory._operators("weights8" if toy.bits == (8,) else "weights4", grids)
    before = sum(layer.weight.numel() * 4 for layer in module.modules() if isinstance(layer, (nn.Linear, nn.Embedding)))
    before += module.conv.weight.numel() * 4
    quantize_module(module, selection(toy), quantize_rtn, lambda *_: None)
    stored = sum(layer.packed.nbytes() for layer in layers(module).values())
    assert packed.layers == 4
    assert packed.bytes - operators == plain.bytes - inventory._operators("float", ()) - before + stored


def test_what_knows_other_formats_alone_says_so(toy: Format) -> None:
    packed = quantize_rtn(torch.randn(64, 64), Grid(toy.bits[0], 16, True, toy))
    assert kernel_for(packed) == f"no kernel for {toy.name}"
    assert obstacle((64, 64), packed.grid) == "bitsandbytes has no such grid"
    with pytest.raises(ValueError, match="no equal steps"):
        FakeWeight(packed)
    from compresskit.ops.calibration.moments import Moments

    with pytest.raises(ValueError, match="no equal steps"):
        quantize_gptq(torch.randn(4, 32), packed.grid, Moments(torch.eye(32)[None], torch.zeros(1, 32), 9))


def test_a_name_that_no_format_has_is_an_input_error() -> None:
    with pytest.raises(InputError, match="'powers' is no format"):
        format_named("powers")


@pytest.mark.parametrize(
    ("bits", "levels"), [((4,), (0.0, 1.0)), ((2,), (0.0, 2.0, 1.0, 3.0)), ((2,), (1.0, 2.0, 3.0, 4.0)), ((5,), None)]
)
def test_formats_that_mean_nothing_are_refused(bits: tuple[int, ...], levels: tuple[float, ...] | None) -> None:
    with pytest.raises(ValueError, match=r"a level for each code|no such format"):
        Format("odd", bits, levels)
