from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from compresskit.model import InputSpec
from compresskit.ops.inspect import count_zeros, inspect_module, inspect_tensors
from compresskit.ops.macs import count_macs
from compresskit.ops.packed.grid import Grid, dequantize
from compresskit.ops.packed.modules import packed_twin
from compresskit.ops.quantize.rtn import quantize_rtn

IDS = InputSpec("ids", "int64", ("batch", "sequence"), 50)


def floats(*shape: int | str) -> tuple[InputSpec, ...]:
    return (InputSpec("x", "float32", shape),)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 50, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("positions", torch.arange(10), persistent=False)
        self.register_buffer("scale", torch.ones(3))

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.embedding(ids)))


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Linear(8, 5), (2, 3, 8), 6 * 40),
        (nn.Conv1d(4, 6, 3), (1, 4, 10), 8 * 72),
        (nn.Conv2d(4, 8, 3, padding=1, stride=2), (1, 4, 8, 8), 16 * 288),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), (1, 8, 4, 4), 16 * 72),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 5, 5), 25 * 96),
        (nn.GRU(8, 16, batch_first=True), (1, 7, 8), 7 * 3 * 16 * (8 + 16)),
        (nn.LSTM(8, 16, num_layers=2, bidirectional=True), (7, 1, 8), 7 * 2 * 4 * 16 * (8 + 16 + 32 + 16)),
        (nn.LSTMCell(8, 16), (2, 8), 2 * 4 * 16 * (8 + 16)),
        (nn.BatchNorm2d(4), (1, 4, 8, 8), 0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_macs_of_a_layer(layer: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    assert sum(count_macs(nn.Sequential(layer), [torch.zeros(shape)]).values()) == macs


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Linear(40, 6), (2, 40)), (nn.Conv2d(4, 8, 3, groups=2), (1, 4, 6, 6))],
    ids=["linear", "conv"],
)
def test_a_packed_layer_counts_like_the_original(
    layer: nn.Module, shape: tuple[int, ...], bits: int, symmetric: bool
) -> None:
    weight = layer.get_parameter("weight").detach().clone()
    weight.view(-1)[::3] = 0
    packed = quantize_rtn(weight, Grid(bits, 16, symmetric))
    specs = (InputSpec("x", "float32", shape),)
    plain = inspect_module(nn.Sequential(layer), specs)
    found = inspect_module(nn.Sequential(packed_twin(layer, packed)), specs)
    assert found["totals"]["parameters"] == plain["totals"]["parameters"]
    assert found["totals"]["macs"] == plain["totals"]["macs"] > 0
    entry = found["layers"][0]
    bias = layer.get_parameter("bias")
    assert entry["dtype"] == f"int{bits}"
    assert entry["group_size"] == 16
    assert entry["bytes"] == packed.nbytes() + bias.numel() * 4
    assert entry["sparsity"] * entry["parameters"] == pytest.approx(int((dequantize(packed) == 0).sum()))


def test_attention_projections_are_counted_with_the_fused_kernels_off() -> None:
    module = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    found = inspect_module(module, (InputSpec("src", "float32", (1, 5, 16)),))
    assert found["totals"]["macs"] == 5 * (4 * 16 * 16 + 2 * 16 * 32)
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_layer_called_twice_counts_twice() -> None:
    layer = nn.Linear(4, 4)
    assert count_macs(nn.Sequential(layer, layer), [torch.zeros(1, 4)]) == {"0": 32}


def test_tied_weights_count_once_and_buffers_only_as_bytes() -> None:
    found = inspect_module(Tied(), (IDS,))
    assert found["totals"]["parameters"] == 50 * 8 + 16
    assert found["totals"]["bytes"] == 4 * (50 * 8 + 16 + 3)
    assert found["totals"]["macs"] == 128 * 400
    assert found["inputs"] == {"ids": [1, 128]}
    assert {entry["name"]: entry.get("tied_to") for entry in found["layers"]} == {
        "": None, "embedding": None, "norm": None, "head": "embedding",
    }  # fmt: skip
    assert "head" not in found["biggest"]


def test_tied_packed_layers_count_once() -> None:
    module = Tied()
    packed = quantize_rtn(module.embedding.weight, Grid(4, 8))
    module.embedding, module.head = packed_twin(module.embedding, packed), packed_twin(module.head, packed)  # type: ignore[assignment]
    found = inspect_module(module, (IDS,))
    assert found["totals"]["parameters"] == 50 * 8 + 16
    assert found["totals"]["bytes"] == packed.nbytes() + 4 * (16 + 3)


def test_the_module_is_left_as_it_was() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    module[2].eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    inspect_module(module, floats("batch", 3, 8, 8))
    assert [layer.training for layer in module] == [True, True, False]
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert not any(layer._forward_hooks for layer in module.modules())


def test_it_is_json_and_sparsity_is_of_exact_zeros() -> None:
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        module[0].weight.fill_(1.0)[:, 0] = 0
        module[2].weight.fill_(1e-30)
    found = json.loads(json.dumps(inspect_module(module, floats("batch", 4))))
    assert [entry["sparsity"] for entry in found["layers"]] == [0.25, 0.0]
    assert found["totals"]["sparsity"] == pytest.approx(4 / 24)
    assert found["dtypes"] == {"float32": 96}
    assert found["biggest"] == ["0", "2"]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [((), "`input_shape`"), (floats("batch", 5), "failed: RuntimeError"), (floats("batch", "height"), "`input_shape`")],
    ids=["none", "wrong", "open"],
)
def test_without_a_fitting_input_there_are_no_macs_but_all_else(inputs: tuple[InputSpec, ...], words: str) -> None:
    found = inspect_module(nn.Sequential(nn.Linear(4, 2)), inputs)
    assert found["totals"]["macs"] is None
    assert found["layers"][0]["macs"] is None
    assert found["totals"]["parameters"] == 10
    assert len(found["notes"]) == 1
    assert words in found["notes"][0] or "no fixed size" in found["notes"][0]


def test_a_module_without_data_is_described() -> None:
    with torch.device("meta"):
        module = nn.Linear(4, 2)
    found = inspect_module(module)
    assert found["totals"] == {"layers": 1, "parameters": 10, "bytes": 40, "macs": None, "sparsity": None}


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8,
     torch.int64, torch.bool, torch.complex64],
    ids=str,
)  # fmt: skip
def test_zeros_of_every_dtype(dtype: torch.dtype) -> None:
    values = torch.tensor([0.0, 1.0, 0.0, 1.0, -0.0]).to(dtype)
    assert count_zeros(values) == 3


class File:
    """A file of tensors that remembers how many are alive at once."""

    def __init__(self, tensors: dict[str, Tensor], ties: dict[str, str] | None = None) -> None:
        self.tensors, self.ties = tensors, ties or {}
        self.read: list[str] = []

    def names(self) -> Iterable[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def dtype(self, name: str) -> object:
        return self.tensors[name].dtype

    def get(self, name: str) -> Tensor:
        self.read.append(name)
        return self.tensors[name]


def test_bare_tensors_agree_with_the_module() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    plain = inspect_module(module)["totals"]
    file = File(module.state_dict())
    found = inspect_tensors(file)
    assert {k: found["totals"][k] for k in ("parameters", "bytes", "sparsity")} == {
        k: plain[k] for k in ("parameters", "bytes", "sparsity")
    }
    assert file.read == list(module.state_dict())
    assert found["totals"]["macs"] is None
    assert json.dumps(found)


def test_tied_tensors_of_a_file_count_once() -> None:
    weight = torch.ones(4, 4)
    found = inspect_tensors(File({"a": weight, "b": weight}, {"b": "a"}))
    assert found["totals"]["parameters"] == 16
    assert found["totals"]["bytes"] == 64
    assert found["layers"][1]["tied_to"] == "a"
