import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compresskit import runtimes
from compresskit.errors import InputError, MachineError, UsageError
from compresskit.model import InputSpec
from compresskit.runtimes.onnxfile import folds_weights, index_limits, scan
from compresskit.runtimes.onnxruntime import OnnxRuntime

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def value(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


def save(path, nodes, inputs, weights, output="y"):
    graph = helper.make_graph(nodes, "g", inputs, [value(output, FLOAT, None)], weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def weight_only(path, consumer, size=24):
    """A quantized weight (int8 codes, one scale a column) in front of one operator; the weight as floats comes too."""
    rng = np.random.default_rng(0)
    shape = {"Conv": (8, 3, 3, 3), "Gather": (50, size)}.get(consumer, (size, size))
    codes = rng.integers(-127, 128, shape, np.int8)
    axis = 0 if consumer == "Conv" else 1
    scales = rng.uniform(0.001, 0.01, shape[axis]).astype(np.float32)
    weights = [numpy_helper.from_array(codes, "codes"), numpy_helper.from_array(scales, "scales")]
    nodes = [helper.make_node("DequantizeLinear", ["codes", "scales"], ["w"], axis=axis)]
    order = ["w", "x"] if consumer == "Gather" else ["x", "w"]
    nodes.append(helper.make_node(consumer, order, ["y"]))
    x = {"Conv": value("x", FLOAT, ["batch", 3, 8, 8]), "Gather": value("x", INT64, ["batch", "sequence"])}
    broadcast = scales.reshape(-1, *[1] * (len(shape) - 1)) if axis == 0 else scales
    dense = codes * broadcast
    return save(path, nodes, [x.get(consumer, value("x", FLOAT, ["batch", size]))], weights), dense


def static_int8(path):
    """Convolution with quantized activations and weights."""
    rng = np.random.default_rng(0)
    codes = numpy_helper.from_array(rng.integers(-127, 128, (8, 3, 3, 3), np.int8), "codes")
    weights = [codes]
    for name, array in (
        ("ws", np.full(8, 0.01, np.float32)),
        ("wz", np.zeros(8, np.int8)),
        ("xs", np.float32(0.05)),
        ("xz", np.uint8(128)),
    ):
        weights.append(numpy_helper.from_array(np.asarray(array), name))
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["codes", "ws", "wz"], ["w"], axis=0),
        helper.make_node("Conv", ["xd", "w"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "xs", "xz"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "xs", "xz"], ["y"]),
    ]
    return save(path, nodes, [value("x", FLOAT, ["batch", 3, 8, 8])], weights)


def executed(path, tmp_path, monkeypatch):
    """The operators that onnxruntime keeps when our runtime opens the file."""
    options = OnnxRuntime.options

    def saving(self, ort, threads):
        found = options(self, ort, threads)
        found.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        found.log_severity_level = 4  # it warns that such a file suits this machine only
        return found

    monkeypatch.setattr(OnnxRuntime, "options", saving)
    OnnxRuntime().open(path)
    return {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}


@pytest.mark.parametrize("consumer", ["Conv", "Gather"])
def test_weight_only_file_runs_as_floats(tmp_path, monkeypatch, consumer):
    path, _ = weight_only(tmp_path / "m.onnx", consumer)
    assert folds_weights(scan(path))
    assert "DequantizeLinear" not in executed(path, tmp_path, monkeypatch)


def test_folded_weights_give_the_same_numbers(tmp_path):
    path, dense = weight_only(tmp_path / "m.onnx", "Conv")
    x = value("x", FLOAT, ["batch", 3, 8, 8])
    plain = save(
        tmp_path / "plain.onnx",
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        [x],
        [numpy_helper.from_array(dense.astype(np.float32), "w")],
    )
    feeds = {"x": np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)}
    expected = OnnxRuntime().open(plain).run(feeds)["y"]
    np.testing.assert_allclose(OnnxRuntime().open(path).run(feeds)["y"], expected, rtol=1e-5, atol=1e-5)


def test_matmul_weights_are_left_to_the_engines_own_fusion(tmp_path, monkeypatch):
    path, _ = weight_only(tmp_path / "m.onnx", "MatMul")
    assert not folds_weights(scan(path))
    assert executed(path, tmp_path, monkeypatch) == {"MatMulNBits"}


def test_exact_keeps_float_arithmetic_where_the_default_rounds_activations(tmp_path):
    path, dense = weight_only(tmp_path / "m.onnx", "MatMul", size=256)
    x = np.random.default_rng(1).standard_normal((1, 256)).astype(np.float32)
    expected = x @ dense.astype(np.float32)
    error = {
        exact: np.abs(OnnxRuntime(exact=exact).open(path).run({"x": x})["y"] - expected).max()
        for exact in (True, False)
    }
    assert error[True] < 1e-4
    assert error[True] <= error[False]


def test_static_int8_keeps_its_integer_kernels(tmp_path, monkeypatch):
    path = static_int8(tmp_path / "m.onnx")
    assert not folds_weights(scan(path))
    assert "QLinearConv" in executed(path, tmp_path, monkeypatch)


def test_inputs_name_free_axes_and_the_vocabulary(tmp_path):
    path, _ = weight_only(tmp_path / "m.onnx", "Gather")
    session = runtimes.get("onnxruntime").open(path, threads=1)
    assert session.inputs == (InputSpec("x", "int64", ("batch", "sequence"), high=50),)
    assert session.outputs == ("y",)
    assert session.run({"x": np.array([[0, 49]])})["y"].shape == (1, 2, 24)


def test_axis_without_a_name_gets_one(tmp_path):
    relu = [helper.make_node("Relu", ["x"], ["y"])]
    path = save(tmp_path / "m.onnx", relu, [value("x", FLOAT, [None, 4])], [])
    assert OnnxRuntime().open(path).inputs == (InputSpec("x", "float32", ("x_0", 4)),)


def test_scan_reads_the_graph_that_onnx_reads(tmp_path):
    path, _ = weight_only(tmp_path / "m.onnx", "Gather")
    graph, proto = scan(path), onnx.load(path).graph
    assert [(n.op, n.inputs, n.outputs) for n in graph.nodes] == [
        (n.op_type, list(n.input), list(n.output)) for n in proto.node
    ]
    assert graph.shapes == {t.name: tuple(t.dims) for t in proto.initializer}
    assert graph.nodes[0].ints == {"axis": 1}
    assert index_limits(graph) == {"x": 50}


@pytest.mark.parametrize("cut", [0, 1, 7, 60, 200])
def test_scan_of_a_damaged_file_never_raises(tmp_path, cut):
    path, _ = weight_only(tmp_path / "m.onnx", "Gather")
    path.write_bytes(path.read_bytes()[:cut])
    folds_weights(scan(path))


@pytest.mark.parametrize("content", [b"", b"not a model at all", b"\x1b[31mred\x1b[0m" * 20, bytes(1000)])
def test_a_file_that_is_no_model_is_an_input_error_of_one_printable_line(tmp_path, content):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.onnx") as caught:
        OnnxRuntime().open(path)
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("name", ["missing.onnx", "."])
def test_a_path_that_is_no_file(tmp_path, name):
    with pytest.raises(InputError, match="is not a file"):
        OnnxRuntime().open(tmp_path / name)


@pytest.mark.parametrize(
    "feeds",
    [{}, {"z": np.zeros((1, 24), np.float32)}, {"x": np.zeros((1, 24), np.int64)}, {"x": np.zeros((1, 5), np.float32)}],
)
def test_wrong_feeds_are_input_errors(tmp_path, feeds):
    path, _ = weight_only(tmp_path / "m.onnx", "MatMul")
    with pytest.raises(InputError, match=r"m\.onnx"):
        OnnxRuntime().open(path).run(feeds)


def test_devices(tmp_path):
    path, _ = weight_only(tmp_path / "m.onnx", "MatMul")
    with pytest.raises(UsageError, match="abacus"):
        OnnxRuntime().open(path, device="abacus")
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(MachineError, match="CUDA"):
            OnnxRuntime().open(path, device="cuda")


def test_a_missing_engine_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install" in (OnnxRuntime().missing() or "")
    with pytest.raises(MachineError, match="pip install"):
        OnnxRuntime().open(tmp_path / "m.onnx")


@pytest.mark.parametrize("name", runtimes.names())
def test_a_runtime_is_got_without_importing_engines(name):
    code = (
        f"import sys; from compresskit import runtimes; runtimes.get({name!r}).missing();"
        "print([m for m in ('torch', 'onnxruntime', 'onnx', 'openvino') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # Which providers there are only onnxruntime itself knows.
    assert done.stdout.strip() == ("['onnxruntime']" if name.startswith("onnxruntime-") else "[]")


def test_a_provider_that_does_not_start_is_no_silent_figure_of_the_cpu(tmp_path, monkeypatch):
    path, _ = weight_only(tmp_path / "m.onnx", "MatMul")
    runtime = runtimes.get("onnxruntime-cuda")
    monkeypatch.setattr(type(runtime), "missing", lambda self: None)
    monkeypatch.setattr(type(runtime), "providers", lambda self: ["CPUExecutionProvider"])
    assert runtime.open(path).providers() == ["CPUExecutionProvider"]
    monkeypatch.setattr("compresskit.runtimes.onnxruntime.OnnxSession.providers", lambda self: ["OtherProvider"])
    with pytest.raises(MachineError, match="did not start here"):
        runtime.open(path)


def test_telemetry_is_off_before_the_engine_loads(tmp_path):
    path, _ = weight_only(tmp_path / "m.onnx", "MatMul")
    code = (
        "import os, sys, pathlib; os.environ.pop('ORT_DISABLE_TELEMETRY', None)\n"
        "from importlib.abc import MetaPathFinder\n"
        "class Watch(MetaPathFinder):\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'onnxruntime': print(os.environ.get('ORT_DISABLE_TELEMETRY'))\n"
        "sys.meta_path.insert(0, Watch())\n"
        "from compresskit.runtimes import get\n"
        f"get('onnxruntime').open(pathlib.Path({str(path)!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"1"}


def test_unknown_runtime_names_the_nearest():
    assert runtimes.names()[:5] == ["onnxruntime", "openvino", "openvino-bf16", "torch", "torch-compile"]
    with pytest.raises(UsageError, match="onnxrutnime") as caught:
        runtimes.get("onnxrutnime")
    assert "did you mean onnxruntime" in caught.value.hint
