"""K-quants: scales in two levels, found before codes are rounded to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.exporter.onnx_export import export_onnx
from compresskit.exporter.parity import parity
from compresskit.exporter.targets.gguf_blocks import Layout, block_bytes, packed_kind
from compresskit.facts import read_facts
from compresskit.facts.quantize import QuantizeFacts
from compresskit.model import InputSpec
from compresskit.ops.calibration.moments import Moments, output_error
from compresskit.ops.inspect import packed_zeros
from compresskit.ops.inspect_onnx import inspect_onnx
from compresskit.ops.packed.format import LINEAR
from compresskit.ops.packed.grid import Grid, Packed, dequantize, sqnr
from compresskit.ops.packed.k_quant import K_QUANT
from compresskit.ops.packed.modules import PackedLayer
from compresskit.ops.quantize.awq import quantize_weighted
from compresskit.ops.quantize.gptq import quantize_gptq
from compresskit.ops.quantize.refine import refine
from compresskit.ops.quantize.rtn import quantize_rtn
from compresskit.ops.quantize.select import Selection
from compresskit.ops.quantize.weights import quantize_module, replay

EXPECTED = {2: 84, 3: 110, 4: 144, 5: 176, 6: 210}
"""Bytes of a super-block in llama.cpp."""
SPEC = (InputSpec("ids", "int64", ("batch", 8), 50),)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.up, self.odd, self.head = (
            nn.Embedding(50, 256), nn.Linear(256, 512), nn.Linear(512, 64), nn.Linear(64, 32)
        )  # fmt: skip

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.head(self.odd(self.up(self.words(ids)).relu()).relu())
        return found


def grid(bits: int) -> Grid:
    found = K_QUANT.two_level_of(bits)
    assert found is not None
    return Grid(bits, found.group_size, True, K_QUANT)


def weight(rows: int = 48, columns: int = 512, seed: int = 0) -> Tensor:
    made = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rows, columns, generator=made)
        * (0.3 + torch.rand(rows, columns // 16, generator=made)).repeat_interleave(16, 1)
        * 0.02
    )


def moments(columns: int = 512) -> Moments:
    made = torch.Generator().manual_seed(1)
    x = torch.randn(4 * columns, columns, generator=made) @ torch.randn(columns, columns, generator=made)
    x = x / columns**0.5 * torch.rand(columns, generator=made).exp()
    return Moments((x.mT @ x / len(x))[None], x.mean(0)[None], len(x))


def of_gguf(packed: Packed) -> Tensor:
    """What the gguf package reads in the bytes of a weight."""
    gguf = pytest.importorskip("gguf")
    kind = packed_kind(packed)
    assert kind is not None
    stored = block_bytes(packed, kind)
    assert stored.nbytes == Layout(kind, packed.shape).nbytes
    return torch.from_numpy(gguf.dequantize(stored, gguf.GGMLQuantizationType[kind]))


@pytest.fixture(scope="module", params=K_QUANT.bits)
def made(request: pytest.FixtureRequest) -> tuple[int, nn.Module, dict[str, object]]:
    torch.manual_seed(0)
    module = Words().eval()
    facts, _ = quantize_module(module, Selection(request.param, 0, format=K_QUANT), quantize_rtn, lambda *_: None)
    return request.param, module, facts


def layers(module: nn.Module) -> dict[str, PackedLayer]:
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, PackedLayer)}


@pytest.mark.parametrize("bits", K_QUANT.bits)
def test_a_weight_takes_the_bytes_of_llama_cpp_and_holds_what_it_reads(bits: int) -> None:
    w = weight()
    w[3], w[5, :256], w[7, 256:272], w[9, :32] = 0, 1e-9, 0.25, -0.25
    packed = quantize_rtn(w, grid(bits))
    assert packed.nbytes() == packed.grid.nbytes((48, 512)) == 48 * 2 * EXPECTED[bits]
    assert torch.equal(of_gguf(packed), dequantize(packed))
    assert torch.equal(of_gguf(packed.rows(torch.tensor([9, 3, 3]))), dequantize(packed)[[9, 3, 3]])
    assert (dequantize(packed)[3] == 0).all() and dequantize(packed)[5].abs().amax() < 0.2
    assert packed_zeros(packed) == int((dequantize(packed) == 0).sum())
    assert sqnr(w, packed) > 5.8 * bits - 2


@pytest.mark.parametrize("bits", K_QUANT.bits)
def test_no_other_code_is_nearer_and_searching_pays(bits: int) -> None:
    w = weight()
    packed, plain = quantize_rtn(w, grid(bits)), quantize_rtn(w, grid(bits), clip=False)
    assert sqnr(w, packed) > sqnr(w, plain)
    size, least = packed.grid.group_size, (dequantize(packed) - w).abs()
    lowest = packed.holding({"codes": torch.zeros_like(packed.codes)})
    highest = packed.holding({"codes": torch.full_like(packed.codes, 255)})
    steps = torch.linspace(0, 1, 1 << bits)
    ends = [dequantize(p).reshape(48, -1, size)[..., 0] for p in (lowest, highest)]
    values = (ends[0].unsqueeze(-1) + (ends[1] - ends[0]).unsqueeze(-1) * steps).repeat_interleave(size, 1)
    assert torch.allclose((values - w.unsqueeze(-1)).abs().amin(-1), least, atol=1e-6)


@pytest.mark.parametrize("bits", K_QUANT.bits)
def test_moments_lower_the_error_and_the_bytes_stay_llama_cpps(bits: int) -> None:
    w, seen = weight(), moments()
    w[3], w[7, 256:288], w[11, :32] = 0, 0, 1e-9  # groups without a scale of their own
    rounded = quantize_rtn(w, grid(bits))
    weighted, spread = quantize_weighted(w, grid(bits), seen), quantize_gptq(w, grid(bits), seen)
    ordered, refined = quantize_gptq(w, grid(bits), seen, order=True), refine(w, spread, seen)
    found = [rounded, weighted, spread, refined]
    errors = [float(output_error(w, dequantize(packed), seen).sum()) for packed in (*found, ordered)]
    assert errors[3] < errors[2] < 0.7 * errors[1] < 0.72 * errors[0]
    assert errors[4] < 0.75 * errors[0]
    for packed in (*found, ordered):
        assert torch.equal(of_gguf(packed), dequantize(packed))
        assert packed.nbytes() == rounded.nbytes()


def test_at_fewer_bytes_it_is_nearer_than_float_scales() -> None:
    w, seen = weight(), moments()
    ours, linear = (refine(w, quantize_gptq(w, g, seen), seen) for g in (grid(4), Grid(4, 32)))
    errors = [float(output_error(w, dequantize(packed), seen).sum()) for packed in (ours, linear)]
    assert ours.nbytes() < linear.nbytes() and errors[0] < errors[1]


def test_half_a_row_and_convolutions_get_groups_that_gguf_has_too() -> None:
    chosen = Selection(3, 0, format=K_QUANT, layer_bits={"a": (6, None), "b": (8, None)})
    assert chosen.grid_for("x", (8, 512)) == grid(3) and chosen.grid_for("a", (8, 512)) == grid(6)
    assert chosen.grid_for("x", (8, 384)) == Grid(4, 32, True) and chosen.grid_for("a", (8, 384)) == Grid(8, 32, True)
    assert chosen.grid_for("b", (8, 512)) == Grid(8, 32, True)
    assert chosen.grid_for("x", (8, 32, 3, 3)) == Grid(4, 0, True)


def test_facts_and_tensors_rebuild_the_module(made: tuple[int, nn.Module, dict[str, object]]) -> None:
    bits, module, facts = made
    fresh = Words().eval()
    assert not replay(fresh, read_facts(QuantizeFacts, facts))
    fresh.load_state_dict(module.state_dict())
    ids = torch.arange(16).reshape(2, 8)
    assert torch.equal(fresh(ids), module(ids))
    grids = {name: layer.grid for name, layer in layers(fresh).items()}
    assert grids.pop("head").format is LINEAR and set(grids.values()) == {grid(bits)} and len(grids) == 3
    wrong = read_facts(QuantizeFacts, facts | {"layers": {"head": {**facts["layers"]["head"], "grid": "k-quant"}}})  # type: ignore[index]
    with pytest.raises(InputError, match=r"layer 'head': .*(super-blocks of 256|groups of|no such grid)"):
        replay(Words(), wrong)


def test_the_onnx_file_holds_the_same_numbers(made: tuple[int, nn.Module, dict[str, object]], tmp_path: Path) -> None:
    bits, module, _ = made
    export_onnx(module, SPEC, tmp_path / "m.onnx")
    assert parity(module, tmp_path / "m.onnx", SPEC).passed
    entries = {e["name"].removesuffix(".codes"): e for e in inspect_onnx(tmp_path / "m.onnx")["layers"]}
    for name, layer in layers(module).items():
        assert entries[name]["dtype"] == (
            "int4" if name == "head" and bits < 5 else "int8" if name == "head" else f"q{bits}_k"
        )
        bias = getattr(layer, "bias", None)
        assert entries[name]["bytes"] - layer.packed.nbytes() in (0, 0 if bias is None else 4 * bias.numel())

    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.up = layers(module)["words"], layers(module)["up"]

        def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
            return self.words(ids), self.up.weight + 0 * ids.sum()

    export_onnx(Read(), SPEC, tmp_path / "values.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "values.onnx", providers=["CPUExecutionProvider"])
    rows, values = session.run(None, {"ids": np.arange(8)[None]})
    assert np.array_equal(rows[0], dequantize(layers(module)["words"].packed)[:8].numpy())
    assert np.array_equal(values, dequantize(layers(module)["up"].packed).numpy())


def test_a_weight_with_nan_is_refused() -> None:
    w = weight()
    w[1, 7] = torch.nan
    with pytest.raises(InputError, match="NaN or Inf"):
        quantize_rtn(w, grid(4))
