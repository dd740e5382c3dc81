import importlib.util
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from int8_models import CASES, build, feeds
from onnx import TensorProto, helper, numpy_helper

from compresskit.benchmark import target
from compresskit.errors import InputError, MachineError, UsageError
from compresskit.runtimes import get
from compresskit.runtimes.onnxruntime import OnnxRuntime
from compresskit.runtimes.openvino import OpenVino
from compresskit.runtimes.saturating import SaturatingOnnxRuntime
from compresskit.runtimes.saturation import analyse

if importlib.util.find_spec("openvino") is None:
    pytest.skip("openvino is not installed", allow_module_level=True)

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def value(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


def save(path, nodes, inputs, outputs, weights, **options):
    graph = helper.make_graph(
        nodes, "g", inputs, outputs, [numpy_helper.from_array(w, name) for name, w in weights.items()]
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path, **options)
    return path


def two_outputs(path, **options):
    """A table that is looked up, then a matrix product; both are outputs, and the inputs are of two types."""
    rng = np.random.default_rng(0)
    weights = {"table": rng.normal(size=(50, 64)), "w": rng.normal(size=(64, 32))}
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Add", ["rows", "shift"], ["moved"]),
        helper.make_node("MatMul", ["moved", "w"], ["y"]),
    ]
    inputs = [value("shift", FLOAT, ["batch", None, 64]), value("ids", INT64, ["batch", "sequence"])]
    outputs = [value("y", FLOAT, None), value("rows", FLOAT, None)]
    return save(path, nodes, inputs, outputs, {k: v.astype(np.float32) for k, v in weights.items()}, **options)


FEEDS = {
    "shift": np.random.default_rng(1).normal(size=(2, 1, 64)).astype(np.float32),
    "ids": np.array([[0, 49, 7], [3, 3, 3]]),
}


def static_int8(path, largest):
    """A convolution with quantized inputs, its weights' codes up to ``largest``, and an output in float."""
    rng = np.random.default_rng(0)
    weights = {
        "codes": rng.integers(-largest, largest + 1, (16, 4, 3, 3), np.int8),
        "ws": rng.uniform(0.001, 0.01, 16).astype(np.float32),
        "wz": np.zeros(16, np.int8),
        "xs": np.float32(0.05),
        "xz": np.uint8(128),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["codes", "ws", "wz"], ["w"], axis=0),
        helper.make_node("Conv", ["xd", "w"], ["y"]),
    ]
    x = [value("x", FLOAT, ["batch", 4, 8, 8])]
    return save(path, nodes, x, [value("y", FLOAT, None)], {k: np.asarray(v) for k, v in weights.items()})


@pytest.mark.parametrize("external", [False, True])
def test_it_computes_what_onnxruntime_computes(tmp_path, external):
    options = {"save_as_external_data": True, "location": "m.onnx.data", "size_threshold": 0} if external else {}
    path = two_outputs(tmp_path / "m.onnx", **options)
    expected, found = OnnxRuntime().open(path).run(FEEDS), OpenVino().open(path, threads=1).run(FEEDS)
    assert list(found) == list(expected)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-5)


def test_inputs_and_outputs_are_those_of_the_file(tmp_path):
    path = two_outputs(tmp_path / "m.onnx")
    ours, theirs = OpenVino().open(path), OnnxRuntime().open(path)
    assert ours.inputs == theirs.inputs
    assert ours.outputs == theirs.outputs == ("y", "rows")


IMAGES = {"x": np.random.default_rng(1).normal(size=(2, 4, 8, 8)).astype(np.float32)}


@pytest.mark.parametrize("largest", [64, 127])
def test_static_int8_agrees_within_a_step_or_is_said_to_saturate(tmp_path, largest):
    path = static_int8(tmp_path / "m.onnx", largest)
    expected, found = (runtime.open(path).run(IMAGES)["y"] for runtime in (OnnxRuntime(exact=True), OpenVino()))
    agrees = np.allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert agrees is not (target.here().saturates and bool(analyse(path, "openvino").risky))


OPENED = """
import pathlib, sys
import numpy as np
from compresskit.runtimes import get
for path in map(pathlib.Path, sys.argv[1:]):
    with np.load(path.with_suffix(".npz")) as given:
        np.save(path.with_suffix(".npy"), get("openvino").open(path, threads=1).run(dict(given))["y"])
"""
ALIKE = ("conv-padded", "conv-groups", "conv-deep", "matmul", "matmul-float", "gemm")


@pytest.fixture(scope="module")
def without_vnni(tmp_path_factory):
    """Opens files in a process whose OpenVINO takes the processor for one without VNNI, and gives what they compute."""
    if target.here().name not in ("x86-vnni", "x86-avx2"):
        pytest.skip("needs an x86 processor")

    def run(*files):
        for path, given in files:
            np.savez(path.with_suffix(".npz"), **given)
        paths = [path for path, _ in files]
        environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
        subprocess.run([sys.executable, "-c", OPENED, *map(str, paths)], env=environment, check=True)
        return [np.load(path.with_suffix(".npy")) for path in paths]

    return run


def test_without_vnni_weights_of_7_bits_are_exact_and_others_are_clipped(tmp_path, without_vnni):
    """Where channels are even, its neighbours are those of onnxruntime: the same bits are lost."""
    files = {
        (case, largest): build(tmp_path / f"{case}-{largest}.onnx", case, weight_limit=largest)
        for case in CASES
        for largest in (64, 127)
    }
    computed = without_vnni(*((path, feeds(case)) for (case, _), path in files.items()))
    for (case, largest), found in zip(files, computed, strict=True):
        path, step = files[case, largest], 0.25 if CASES[case][5] else 1e-4
        clipped, exact = (SaturatingOnnxRuntime(clips=c).open(path).run(feeds(case))["y"] for c in (True, False))
        off = np.abs(found - exact) > 1e-4
        assert bool(analyse(path, "openvino").risky) is (largest > 64)
        if largest > 64:
            assert off.any(), case
            assert case not in ALIKE or np.abs(found - clipped).max() <= 1e-4, case
        else:  # a sum half way between two codes may be rounded to the other one
            assert np.abs(found - exact).max() <= step and off.mean() < 0.01, case


def test_what_saturates_in_it_alone_is_found(tmp_path, without_vnni):
    """Convolutions that onnxruntime computes in float, since their output isn't quantized."""
    files = [static_int8(tmp_path / f"{largest}.onnx", largest) for largest in (64, 127)]
    for path, found in zip(files, without_vnni(*((path, IMAGES) for path in files)), strict=True):
        expected = OnnxRuntime(exact=True).open(path).run(IMAGES)["y"]
        risky = analyse(path, "openvino").risky
        assert np.allclose(found, expected, rtol=1e-4, atol=1e-4) is not bool(risky)
        assert risky.keys() == ({"codes"} if path.stem == "127" else set())
        assert analyse(path).layers == 0


def test_ranges_found_at_run_time_leave_its_products_in_float(tmp_path, without_vnni):
    rng = np.random.default_rng(0)
    weights = {"w": rng.choice(np.int8([-127, 127]), (64, 16)), "ws": np.float32([0.01]), "wz": np.int8([0])}
    weights["w"][:, :8] = 127
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        helper.make_node("MatMulInteger", ["xq", "w", "xz", "wz"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["real"], to=FLOAT),
        helper.make_node("Mul", ["xs", "ws"], ["scale"]),
        helper.make_node("Mul", ["real", "scale"], ["y"]),
    ]
    path = save(tmp_path / "m.onnx", nodes, [value("x", FLOAT, ["n", 64])], [value("y", FLOAT, None)], weights)
    given = {"x": rng.uniform(0, 1, (4, 64)).astype(np.float32)}
    (found,) = without_vnni((path, given))
    exact, clipped = (SaturatingOnnxRuntime(clips=c).open(path).run(given)["y"] for c in (False, True))
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-4)
    assert np.abs(clipped - exact).max() > 1
    assert analyse(path).risky and not analyse(path, "openvino").layers


def test_results_are_the_callers_own(tmp_path):
    session = OpenVino().open(two_outputs(tmp_path / "m.onnx"))
    first = session.run(FEEDS)["y"]
    kept = first.copy()
    session.run({**FEEDS, "shift": FEEDS["shift"] + 1})
    np.testing.assert_array_equal(first, kept)


def test_bfloat16_is_a_runtime_of_its_own(tmp_path):
    path = two_outputs(tmp_path / "m.onnx")
    expected = OnnxRuntime().open(path).run(FEEDS)["y"]
    try:
        rounded = get("openvino-bf16").open(path).run(FEEDS)["y"]
    except MachineError as error:
        assert "bfloat16" in error.message
        return
    assert 1e-4 < np.abs(rounded - expected).max() < 0.5
    assert np.abs(get("openvino").open(path).run(FEEDS)["y"] - expected).max() < 1e-4


def test_it_says_what_it_does_to_activations_of_packed_weights(tmp_path):
    weights = {"codes": np.ones((64, 32), np.int8), "scales": np.ones(32, np.float32)}
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scales"], ["w"], axis=1),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    path = save(tmp_path / "m.onnx", nodes, [value("x", FLOAT, ["n", 64])], [value("y", FLOAT, None)], weights)
    assert all("8 bit in groups of" in note for note in OpenVino().open(path).notes)
    assert OpenVino().open(two_outputs(tmp_path / "float.onnx")).notes == ()


@pytest.mark.parametrize(("blocks", "expected"), [((64, 64), 64), ((128, 64), 64), ((32, 32), 32), ((16, 64), None)])
def test_activations_are_rounded_in_the_groups_of_the_weights(tmp_path, blocks, expected):
    rng, nodes, weights, last = np.random.default_rng(0), [], {}, "x"
    for i, block in enumerate(blocks):
        weights[f"w{i}"] = rng.integers(0, 256, (128, 128 // block, block // 2), np.uint8)
        weights[f"s{i}"] = rng.uniform(0.01, 0.02, 128 * 128 // block).astype(np.float32)
        options = {"K": 128, "N": 128, "bits": 4, "block_size": block, "domain": "com.microsoft"}
        nodes.append(helper.make_node("MatMulNBits", [last, f"w{i}", f"s{i}"], [f"y{i}"], **options))
        last = f"y{i}"
    path = save(tmp_path / "m.onnx", nodes, [value("x", FLOAT, ["n", 128])], [value(last, FLOAT, None)], weights)
    session = OpenVino().open(path)
    if expected and session.notes:  # other processors have no such kernels, and no such property
        assert f"in groups of {expected} " in session.notes[0]
    x = {"x": rng.standard_normal((4, 128)).astype(np.float32)}
    found, wanted = session.run(x)[last], OnnxRuntime(exact=True).open(path).run(x)[last]
    assert np.linalg.norm(found - wanted) < 0.03 * np.linalg.norm(wanted)


@pytest.mark.parametrize("content", [b"", b"not a model at all", b"\x1b[31mred\x1b[0m" * 20, bytes(1000)])
def test_a_file_that_is_no_model_is_an_input_error_of_one_printable_line(tmp_path, content, capfd):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.onnx") as caught:
        OpenVino().open(path)
    assert caught.value.message.isprintable()
    assert capfd.readouterr() == ("", "")


def test_an_operator_it_lacks_is_named(tmp_path):
    nodes = [helper.make_node("NoSuchOperator", ["x"], ["y"])]
    path = save(tmp_path / "m.onnx", nodes, [value("x", FLOAT, [1])], [value("y", FLOAT, None)], {})
    with pytest.raises(InputError, match="NoSuchOperator") as caught:
        OpenVino().open(path)
    assert "src/" not in caught.value.message


@pytest.mark.parametrize("name", ["missing.onnx", "."])
def test_a_path_that_is_no_file(tmp_path, name):
    with pytest.raises(InputError, match="is not a file"):
        OpenVino().open(tmp_path / name)


@pytest.mark.parametrize(
    "change",
    [
        {"shift": None},
        {"more": np.zeros(1)},
        {"ids": FEEDS["ids"].astype(np.int32)},
        {"shift": np.zeros((2, 1, 63), np.float32)},
        {"shift": np.zeros((2, 64), np.float32)},
    ],
)
def test_wrong_feeds_are_input_errors_also_after_right_ones(tmp_path, change):
    """OpenVINO itself converts types, keeps the last value of a missing input, and reads beyond a short one."""
    session = OpenVino().open(two_outputs(tmp_path / "m.onnx"))
    session.run(FEEDS)
    feeds = {name: array for name, array in {**FEEDS, **change}.items() if array is not None}
    with pytest.raises(InputError, match=r"m\.onnx"):
        session.run(feeds)
    with pytest.raises(InputError, match=r"m\.onnx"):
        OpenVino().open(tmp_path / "m.onnx").run({})


def test_devices(tmp_path):
    path = two_outputs(tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="abacus"):
        OpenVino().open(path, device="abacus")
    with pytest.raises(MachineError, match="npu"):
        OpenVino().open(path, device="npu")


def test_a_missing_engine_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'compresskit[openvino]'" in (OpenVino().missing() or "")
    with pytest.raises(MachineError, match="pip install"):
        OpenVino().open(tmp_path / "m.onnx")


WATCHED = """
import pathlib, socket, sys
def refuse(*_): raise SystemExit("connects to the network")
socket.socket.connect = refuse
from compresskit.runtimes import get
session = get("openvino").open(pathlib.Path(sys.argv[1]))
print(sorted(m for m in sys.modules if m.split(".")[0] == "openvino_telemetry"))
"""


def test_nothing_is_written_or_sent(tmp_path):
    """Its import alone would create an id under the home folder and report the use."""
    path = two_outputs(tmp_path / "m.onnx")
    home = tmp_path / "home"
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "TF_BUILD", "JENKINS_URL")}
    environment |= {"HOME": str(home), "USERPROFILE": str(home), "LOCALAPPDATA": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(path)], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip(), list(home.iterdir())) == (0, "[]", []), done.stderr
