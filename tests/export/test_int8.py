"""Static int8: integer operators, small files, quiet and bounded, on convolutions and on attention."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from export_models import make
from torch import Tensor, nn
from torch.nn import functional as F

from compresskit.benchmark import target
from compresskit.errors import InputError
from compresskit.exporter.checked import export_checked
from compresskit.exporter.int8 import Int8Settings, quantize_static_int8
from compresskit.exporter.onnx_export import export_onnx
from compresskit.model import InputSpec
from compresskit.runtimes import get
from compresskit.runtimes.base import Runtime
from compresskit.runtimes.onnxruntime import OnnxRuntime
from compresskit.runtimes.saturating import SaturatingOnnxRuntime
from compresskit.runtimes.saturation import analyse

IMAGE = (InputSpec("x", "float32", ("batch", 3, 16, 16)),)
EXACT = SaturatingOnnxRuntime(clips=False)  # whatever this machine's products do
CLOSE = 0.03


class Shortcut(nn.Module):
    """A residual net with a padded, strided shortcut and a mean at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.down(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("float") / "m.onnx"
    export_onnx(Shortcut().eval(), IMAGE, path)
    return path


def images(count: int = 4, size: int = 8) -> Iterator[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield {"x": rng.standard_normal((size, 3, 16, 16)).astype(np.float32), "unused": np.zeros(size)}


def distance(one: Path, other: Path, feeds: dict[str, np.ndarray], runtime: Runtime = EXACT) -> float:
    """Relative L2 distance of the outputs; only the other's 8-bit products depend on the runtime."""
    a, b = (next(iter(runtime.open(path).run(feeds).values())) for path in (one, other))
    return float(np.linalg.norm(a - b) / np.linalg.norm(a))


def stored_codes(path: Path) -> set[str]:
    """The weights that a file holds as 8-bit codes, told from the file alone."""
    kinds = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    tensors = (t for t in onnx.load(path).graph.initializer if t.data_type in kinds and len(t.dims) > 1)
    return {t.name.removesuffix("_quantized") for t in tensors}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "percentile"},
        {"method": "mse"},
        {"method": "entropy"},
        {"activation": "int8"},
        {"activation": "int8", "symmetric": True},
        {"per_channel": False, "reduce_range": True},
    ],
    ids=str,
)
def test_int8_stays_close_in_all_its_forms(
    options: dict[str, Any], floats: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    before = floats.read_bytes()
    facts = quantize_static_int8(floats, tmp_path / "q.onnx", images(), Int8Settings(**options))
    assert capfd.readouterr() == ("", "")
    assert floats.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["q.onnx"]
    feeds = {"x": next(images())["x"]}
    assert distance(floats, tmp_path / "q.onnx", feeds) < 0.08
    assert facts["layers"].keys() == {"stem.weight", "down.weight", "head.weight"} and not facts["skipped"]
    scales = {name: layer["scales"] for name, layer in facts["layers"].items()}
    assert scales["down.weight"] == (16 if options.get("per_channel", True) else 1)
    assert facts["samples"] == 32


@pytest.fixture(scope="module")
def extreme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net whose weights lie at the ends of their range: with positive inputs its products are as large as can be."""
    torch.manual_seed(0)
    module = Shortcut().eval()
    with torch.no_grad():
        for weight in (module.stem.weight, module.down.weight, module.head.weight):
            weight.copy_(weight.sign() * weight.abs().max() * (0.9 + 0.1 * torch.rand_like(weight)))
    path = tmp_path_factory.mktemp("extreme") / "m.onnx"
    export_onnx(module, IMAGE, path)
    return path


def written_for(made_for: target.Target, source: Path, folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """The file as ``int8-static`` writes it for a target, and what to feed it."""
    feeds = {"x": np.abs(next(images())["x"])}
    options = {**made_for.int8.options(), "symmetric": made_for.name == "gpu"}
    quantize_static_int8(source, folder / "q.onnx", [feeds], Int8Settings(**options))
    return folder / "q.onnx", feeds


@pytest.mark.parametrize("name", target.names())
def test_the_form_of_each_target_is_exact_there(name: str, extreme: Path, tmp_path: Path) -> None:
    made_for = target.get(name)
    path, feeds = written_for(made_for, extreme, tmp_path)
    assert distance(extreme, path, feeds, SaturatingOnnxRuntime(clips=made_for.saturates)) < CLOSE
    for runtime in ("onnxruntime", "openvino"):
        assert bool(analyse(path, runtime).risky) is not made_for.saturates
    if not made_for.saturates:
        assert distance(extreme, path, feeds, SaturatingOnnxRuntime()) > 2 * CLOSE, "the net doesn't tell"


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_what_is_written_for_this_machine_is_exact_here(runtime: str, extreme: Path, tmp_path: Path) -> None:
    engine = get(runtime)
    if engine.missing():
        pytest.skip(f"{runtime} is not installed")
    path, feeds = written_for(target.here(), extreme, tmp_path)
    assert distance(extreme, path, feeds, engine) < CLOSE


def test_the_graph_runs_on_integers_from_end_to_end(floats: Path, tmp_path: Path) -> None:
    quantize_static_int8(floats, tmp_path / "q.onnx", images())
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(str(tmp_path / "q.onnx"), options, providers=["CPUExecutionProvider"])
    count = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert count["QLinearConv"] == 2 and count["QLinearAdd"] == 1 and count["QGemm"] == 1
    assert count["QuantizeLinear"] == count["DequantizeLinear"] == 1, count
    assert count["Slice"] == 1 and not count["BatchNormalization"]


def test_the_file_is_small_plain_and_the_same_every_time(floats: Path, tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        quantize_static_int8(floats, tmp_path / name, images())
    data = (tmp_path / "a.onnx").read_bytes()
    assert data == (tmp_path / "b.onnx").read_bytes()
    assert str(tmp_path).encode() not in data and b"onnx.infer" not in data
    model = onnx.load(tmp_path / "a.onnx")
    assert not model.graph.value_info and not model.metadata_props


def test_attention_keeps_its_normalization_in_float(tmp_path: Path) -> None:
    module, inputs = make("bert")
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith(".bias"):
                parameter.uniform_(-0.1, 0.1)
    export_checked(module, inputs, tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    shape = (4, 12)
    batch = {
        "input_ids": rng.integers(0, 40, shape),
        "attention_mask": np.ones(shape, np.int64),
        "token_type_ids": np.zeros(shape, np.int64),
    }
    facts = quantize_static_int8(tmp_path / "m.onnx", tmp_path / "q.onnx", [batch])
    assert distance(tmp_path / "m.onnx", tmp_path / "q.onnx", batch) < 0.08
    kinds = Counter(layer["kind"] for layer in facts["layers"].values())
    assert kinds["Embedding"] == 3 and kinds["MatMul"] + kinds["Gemm"] == 7
    assert "encoder.layer.0.attention.self.key.weight" in facts["layers"]
    assert facts["layers"].keys() == stored_codes(tmp_path / "q.onnx")
    assert all("two activations" in reason for reason in facts["skipped"].values())
    graph = onnx.load(tmp_path / "q.onnx").graph
    count = Counter(node.op_type for node in graph.node)
    assert count["LayerNormalization"] and count["Softmax"] and not count["IsNaN"]
    # queries, keys and values share one quantized input, and nothing but inputs of weighted products is quantized
    assert count["QuantizeLinear"] == facts["tensors"] == 5


def test_what_stays_in_float_is_listed_with_its_reason(tmp_path: Path) -> None:
    module, inputs = make("GRU")
    export_onnx(module, inputs, tmp_path / "m.onnx")
    batch = {"ids": np.random.default_rng(0).integers(0, 20, (4, 12))}
    facts = quantize_static_int8(tmp_path / "m.onnx", tmp_path / "q.onnx", [batch])
    assert facts["layers"].keys() == {"head.weight"} | stored_codes(tmp_path / "q.onnx")
    reason = "GRU is not among the operators to quantize"
    assert facts["skipped"]["core.weight_ih_l0"] == reason == facts["skipped"]["core.weight_hh_l1"]


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([], "empty"),
        ([{"y": np.zeros((1, 3, 16, 16), np.float32)}], "lack the model's input 'x'"),
        ([{"x": np.zeros((1, 3, 5), np.float32)}], r"input 'x' is \(1, 3, 5\), the model takes \(batch, 3, 16, 16\)"),
        ([{"x": np.zeros((1, 3, 5, 16), np.float32)}], r"input 'x' is \(1, 3, 5, 16\)"),
        ([{"x": np.full((1, 3, 16, 16), np.nan, np.float32)}], "NaN or Inf in input 'x'"),
        ([{"x": np.zeros((0, 3, 16, 16), np.float32)}], "empty"),
    ],
)
def test_data_that_does_not_fit(batches: list[dict[str, np.ndarray]], words: str, floats: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        quantize_static_int8(floats, tmp_path / "q.onnx", batches)
    assert not list(tmp_path.iterdir())


def test_codes_in_the_file_are_the_rounded_weights(floats: Path, tmp_path: Path) -> None:
    facts = quantize_static_int8(floats, tmp_path / "q.onnx", images())
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "q.onnx").graph.initializer}
    weight = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(floats).graph.initializer}["head.weight"]
    assert facts["layers"].keys() == stored_codes(tmp_path / "q.onnx")
    codes = tensors["head.weight_quantized"]
    scales = np.abs(weight).max(1, keepdims=True) / 127
    assert codes.dtype == np.int8 and facts["layers"]["head.weight"]["scales"] == len(weight)
    assert np.abs(codes * scales - weight).max() <= scales.max() / 2 * 1.01
    error = codes * tensors["head.weight_scale"][:, None] - weight
    sqnr = 10 * np.log10(np.square(weight).sum() / np.square(error).sum())
    assert facts["layers"]["head.weight"]["sqnr"] == pytest.approx(sqnr, abs=0.06)


@pytest.mark.parametrize("options", [{}, {"per_channel": False}, {"weight": "uint8"}, {"activation": "int8"}], ids=str)
def test_every_weight_tells_its_rounding(options: dict[str, Any], floats: Path, tmp_path: Path) -> None:
    """A bit is worth 6 dB, in all forms of codes."""
    eight, seven = (
        quantize_static_int8(floats, tmp_path / "q.onnx", images(), settings)["layers"]
        for settings in (Int8Settings(**options), Int8Settings(reduce_range=True, **options))
    )
    assert all(35 < layer["sqnr"] < 55 for layer in eight.values()), eight
    assert all(4 < eight[name]["sqnr"] - layer["sqnr"] < 8 for name, layer in seven.items())


def test_a_model_with_a_fixed_batch_takes_any_number_of_samples(tmp_path: Path) -> None:
    inputs = (InputSpec("x", "float32", (3, 3, 16, 16)),)
    export_onnx(Shortcut().eval(), inputs, tmp_path / "m.onnx")
    facts = quantize_static_int8(tmp_path / "m.onnx", tmp_path / "q.onnx", images(2))
    assert facts["samples"] == 16


def test_a_softmax_at_the_end_is_no_attention(tmp_path: Path) -> None:
    torch.manual_seed(0)
    export_onnx(nn.Sequential(Shortcut(), nn.Softmax(-1)).eval(), IMAGE, tmp_path / "m.onnx")
    quantize_static_int8(tmp_path / "m.onnx", tmp_path / "q.onnx", images())
    count = Counter(node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node)
    assert count["QuantizeLinear"] > 5


def test_a_tensor_that_is_not_finite_stays_in_float(tmp_path: Path) -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.good, self.bad = nn.Linear(8, 16), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            y = self.good(x)
            return y + torch.nan_to_num(self.bad(y / 0.0), 0.0, 0.0, 0.0)

    inputs = (InputSpec("x", "float32", ("batch", 8)),)
    export_onnx(Broken().eval(), inputs, tmp_path / "m.onnx")
    batch = {"x": np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)}
    facts = quantize_static_int8(tmp_path / "m.onnx", tmp_path / "q.onnx", [batch])
    assert facts["layers"].keys() == {"good.weight"} == stored_codes(tmp_path / "q.onnx")
    assert "not finite" in facts["skipped"]["bad.weight"]


@pytest.mark.parametrize(
    ("inputs", "outputs", "groups", "stays"),
    [(16, 32, 16, True), (16, 32, 4, True), (64, 64, 2, False), (16, 16, 16, False), (16, 32, 1, False)],
)
def test_a_grouped_convolution_that_8_bits_slow_down_stays_in_float(
    inputs: int, outputs: int, groups: int, stays: bool, tmp_path: Path
) -> None:
    module = nn.Sequential(nn.Conv2d(3, inputs, 3), nn.ReLU(), nn.Conv2d(inputs, outputs, 3, groups=groups))
    export_onnx(module.eval(), (InputSpec("x", "float32", ("batch", 3, 8, 8)),), tmp_path / "f.onnx")
    batches = [{"x": np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype("float32")}]
    facts = quantize_static_int8(tmp_path / "f.onnx", tmp_path / "q.onnx", batches)
    assert ("2.weight" in facts["layers"]) is not stays and "0.weight" in facts["layers"]
    assert ("no fast 8-bit kernel" in facts["skipped"].get("2.weight", "")) is stays
    asked = Int8Settings(op_types=("Conv",))
    assert "2.weight" in quantize_static_int8(tmp_path / "f.onnx", tmp_path / "a.onnx", batches, asked)["layers"]


def test_batches_are_read_one_at_a_time(floats: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    given: list[int] = []

    def lazy() -> Iterator[dict[str, np.ndarray]]:
        for index, batch in enumerate(images()):
            given.append(index)
            assert len(given) - len(seen) == 1, "the next batch was asked for before the last one was used"
            yield batch

    quantize_static_int8(floats, tmp_path / "q.onnx", lazy(), progress=lambda _, done, total: seen.append(done))
    assert seen == [1, 2, 3, 4]


@pytest.mark.slow
def test_resnet20_loses_at_most_015_points(shared: Path, root: Path, tmp_path: Path) -> None:
    sys.path.insert(0, str(root / "examples"))
    from cifar_resnet import resnet20

    state = torch.load(shared / "models/resnet20.th", map_location="cpu", weights_only=True)["state_dict"]
    module = resnet20()
    module.load_state_dict({k.removeprefix("module."): v for k, v in state.items()})
    inputs = (InputSpec("x", "float32", ("batch", 3, 32, 32)),)
    export_checked(module.eval(), inputs, tmp_path / "m.onnx")

    def batches(name: str, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        with np.load(shared / f"cifar10/{name}.npz") as data:
            images, labels = data["x"][:count], data["y"][:count]
        mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
        for at in range(0, len(images), 128):
            x = (images[at : at + 128].astype(np.float32) / 255 - mean) / std
            yield np.ascontiguousarray(x.transpose(0, 3, 1, 2)), labels[at : at + 128]

    quantize_static_int8(tmp_path / "m.onnx", tmp_path / "q.onnx", ({"x": x} for x, _ in batches("train", 512)))
    session = OnnxRuntime(exact=True).open(tmp_path / "q.onnx")  # in float, so the same on every CPU
    hits = [session.run({"x": x})["output"].argmax(1) == y for x, y in batches("test", 10_000)]
    accuracy = 100 * np.concatenate(hits).mean()
    assert abs(accuracy - 91.695) <= 0.15, accuracy
    assert (tmp_path / "q.onnx").stat().st_size <= 1.15 * sum(p.numel() for p in module.parameters())


class Masked(nn.Module):
    """Attention with a mask of the caller's."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        q, k, v = (t.reshape(*t.shape[:2], 2, 4).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=keep[:, None, None, :] > 0)


@pytest.mark.parametrize("infinite", [False, True])
def test_tidy_attention_keeps_what_it_computes(infinite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx_ir as ir

    from compresskit.exporter import onnx_export
    from compresskit.exporter.attention import tidy_attention

    torch.manual_seed(0)
    specs = (InputSpec("x", "float32", ("batch", "tokens", 8)), InputSpec("keep", "int64", ("batch", "tokens"), 2))
    export_onnx(Masked().eval(), specs, tmp_path / "tidied.onnx")
    assert "IsNaN" not in {node.op_type for node in ir.load(tmp_path / "tidied.onnx").graph}
    monkeypatch.setattr(onnx_export, "tidy_attention", lambda model: 0)
    export_onnx(Masked().eval(), specs, tmp_path / "m.onnx")
    model = ir.load(tmp_path / "m.onnx")
    if infinite:  # then a row that sees nothing is NaN, and the guard has to stay
        value = next(v for v in model.graph.initializers.values() if (v.const_value.numpy() < -1e30).any())
        value.const_value = ir.Tensor(np.full_like(value.const_value.numpy(), -np.inf), name=value.name)
        ir.save(model, tmp_path / "m.onnx")
    assert tidy_attention(model) == 2 - infinite
    ir.save(model, tmp_path / "t.onnx")
    count = Counter(node.op_type for node in model.graph)
    assert count["IsNaN"] == infinite and count["Transpose"] == 3
    x = np.random.default_rng(0).standard_normal((3, 5, 8)).astype(np.float32)
    keep = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]])  # the last sees nothing at all
    assert distance(tmp_path / "m.onnx", tmp_path / "t.onnx", {"x": x, "keep": keep}) < 1e-6
