"""Dynamic int8: close without data, small, codes as reported, and what it leaves alone is listed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_models import make

from compresskit.errors import InputError
from compresskit.exporter.dynamic import quantize_dynamic_int8
from compresskit.exporter.onnx_export import export_onnx
from compresskit.runtimes.saturating import SaturatingOnnxRuntime

EXACT = SaturatingOnnxRuntime(clips=False)  # whatever this machine's products do


def codes(path: Path) -> dict[str, np.ndarray]:
    found = {}
    for tensor in onnx.load(path).graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1:
            found[tensor.name.removesuffix("_quantized").removesuffix("_Transposed")] = onnx.numpy_helper.to_array(
                tensor
            )
    return found


def test_a_transformer_stays_close_and_every_code_is_reported(tmp_path: Path) -> None:
    module, inputs = make("bert")
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith(".bias"):
                parameter.uniform_(-0.1, 0.1)
    export_onnx(module, inputs, tmp_path / "m.onnx")
    facts = quantize_dynamic_int8(tmp_path / "m.onnx", tmp_path / "q.onnx")
    rng = np.random.default_rng(0)
    feeds = {"input_ids": rng.integers(0, 40, (3, 9)), "attention_mask": np.ones((3, 9), np.int64)}
    feeds["token_type_ids"] = np.zeros((3, 9), np.int64)
    a, b = (EXACT.open(tmp_path / f).run(feeds)["last_hidden_state"] for f in ("m.onnx", "q.onnx"))
    assert np.linalg.norm(a - b) < 0.05 * np.linalg.norm(a)
    assert facts["layers"].keys() == codes(tmp_path / "q.onnx").keys()
    kinds = Counter(layer["kind"] for layer in facts["layers"].values())
    assert kinds == {"Embedding": 3, "MatMul": 7}
    assert facts["layers"]["encoder.layer.0.intermediate.dense.weight"]["scales"] == 48
    assert all(35 < layer["sqnr"] < 55 for layer in facts["layers"].values())
    assert all("two activations" in reason for reason in facts["skipped"].values())
    before = (tmp_path / "q.onnx").read_bytes()
    quantize_dynamic_int8(tmp_path / "m.onnx", tmp_path / "q.onnx")
    assert (tmp_path / "q.onnx").read_bytes() == before


def test_7_bits_for_processors_that_saturate(tmp_path: Path) -> None:
    module, inputs = make("llama")
    export_onnx(module, inputs, tmp_path / "m.onnx")
    facts = quantize_dynamic_int8(tmp_path / "m.onnx", tmp_path / "q.onnx", reduce_range=True)
    found = codes(tmp_path / "q.onnx")
    products = [name for name, layer in facts["layers"].items() if layer["kind"] == "MatMul"]
    assert products and all(np.abs(found[name].astype(int)).max() <= 64 for name in products)


def test_convolutions_and_gated_units_stay_and_say_why(tmp_path: Path) -> None:
    for kind, name in (("cnn", "second.weight"), ("GRU", "core.weight_ih_l0"), ("RNN", "core.weight_ih_l0")):
        module, inputs = make(kind)
        export_onnx(module, inputs, tmp_path / "m.onnx")
        facts = quantize_dynamic_int8(tmp_path / "m.onnx", tmp_path / "q.onnx")
        assert "head.weight" in facts["layers"]
        assert "float" in facts["skipped"][name]


@pytest.mark.parametrize("per_channel", [True, False])
def test_an_lstm_runs_on_codes(per_channel: bool, tmp_path: Path) -> None:
    module, inputs = make("LSTM")
    export_onnx(module, inputs, tmp_path / "m.onnx")
    facts = quantize_dynamic_int8(tmp_path / "m.onnx", tmp_path / "q.onnx", per_channel=per_channel)
    names = {f"core.weight_{part}_l{layer}" for part in ("ih", "hh") for layer in (0, 1)}
    assert facts["layers"].keys() == {"head.weight", *names} and facts["skipped"].keys() == {"embed.weight"}
    assert all(facts["layers"][name]["kind"] == "LSTM" and facts["layers"][name]["sqnr"] > 30 for name in names)
    assert {facts["layers"][name]["scales"] for name in names} == ({40} if per_channel else {2})
    feeds = {"ids": np.random.default_rng(0).integers(0, 20, (3, 9))}
    a, b = (EXACT.open(tmp_path / f).run(feeds) for f in ("m.onnx", "q.onnx"))
    assert a.keys() == b.keys()
    for name in a:
        assert np.linalg.norm(a[name] - b[name]) < 0.05 * np.linalg.norm(a[name])


def test_nothing_to_quantize_is_an_error(tmp_path: Path) -> None:
    from torch import nn

    from compresskit.model import InputSpec

    export_onnx(nn.Conv2d(3, 4, 3), (InputSpec("x", "float32", ("batch", 3, 8, 8)),), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="no matrix product has a stored weight"):
        quantize_dynamic_int8(tmp_path / "m.onnx", tmp_path / "q.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize(("kind", "said"), [("GRU", "not among"), ("LSTM", "int8-dynamic")])
def test_a_recurrent_layer_alone_gets_one_line(kind: str, said: str, tmp_path: Path) -> None:
    from torch import nn

    from compresskit.exporter.int8 import quantize_static_int8
    from compresskit.model import InputSpec

    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.core = getattr(nn, kind)(16, 16, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.core(x)[0]

    export_onnx(Alone().eval(), (InputSpec("x", "float32", ("batch", 5, 16)),), tmp_path / "m.onnx")
    batches = [{"x": np.ones((2, 5, 16), np.float32)}]
    with pytest.raises(InputError, match=said):
        quantize_static_int8(tmp_path / "m.onnx", tmp_path / "q.onnx", batches)
    if kind == "GRU":
        with pytest.raises(InputError, match="no 8-bit form"):
            quantize_dynamic_int8(tmp_path / "m.onnx", tmp_path / "q.onnx")
