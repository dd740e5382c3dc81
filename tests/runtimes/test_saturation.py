"""Int8Arithmetic that saturate on x86 without VNNI: found, and computed as there."""

import hashlib
import itertools
import math

import numpy as np
import onnx
import pytest
from int8_models import CASES, build, feeds
from onnx import numpy_helper

from compresskit.errors import InputError, MachineError
from compresskit.runtimes import saturating
from compresskit.runtimes.onnxruntime import OnnxRuntime
from compresskit.runtimes.saturating import SaturatingOnnxRuntime, rewrite
from compresskit.runtimes.saturation import Product, Saturation, analyse, find, fused, ordered

# What onnxruntime 1.32.0 itself gives under `qemu-x86_64 -cpu Haswell`, which has AVX2 and no VNNI: SHA-256, 16 digits.
HASWELL = {
    "conv-padded": "8a538843bcd30de4",
    "conv-odd": "30c1d80d9ab5406c",
    "conv-groups": "8dfe85a35e05c9b7",
    "conv-same": "379a6653eef4bb06",
    "conv-1d": "dd2a9c6a3e123264",
    "conv-deep": "bf302ae93c7ca08b",
    "matmul": "85238f71c766c678",
    "matmul-float": "bc5afa3ff74de079",
    "gemm": "3ed79d2fec8fc9ae",
}


def out(runtime, path, case):
    return runtime.open(path, threads=1).run(feeds(case))["y"]


@pytest.mark.parametrize("case", CASES)
def test_it_computes_the_very_bits_of_a_processor_without_vnni(tmp_path, case):
    found = out(SaturatingOnnxRuntime(), build(tmp_path / "m.onnx", case), case)
    assert hashlib.sha256(found.tobytes()).hexdigest()[:16] == HASWELL[case]


@pytest.mark.parametrize("case", CASES)
def test_without_clipping_it_computes_what_the_exact_products_give(tmp_path, case):
    """The plain operators that take the place of fused ones add nothing of their own."""
    path = build(tmp_path / "m.onnx", case)
    exact, clipped = out(SaturatingOnnxRuntime(clips=False), path, case), out(SaturatingOnnxRuntime(), path, case)
    np.testing.assert_array_equal(exact, reference(path, case, -(2**31), 2**31))
    assert not np.array_equal(exact, clipped)


@pytest.mark.parametrize("case", ["conv-padded", "conv-odd", "conv-groups", "matmul", "gemm"])
def test_it_agrees_with_a_loop_over_pairs(tmp_path, case):
    path = build(tmp_path / "m.onnx", case)
    expected = reference(path, case, -(2**15), 2**15 - 1)
    np.testing.assert_array_equal(out(SaturatingOnnxRuntime(), path, case), expected)


def reference(path, case, low, high):
    """The definition, in loops: pairs of products, each pair clipped, along the kernel's order."""
    operator, _, _, _, attributes, quantized = CASES[case]
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    codes = np.clip(np.round(feeds(case)["x"] / stored["xs"]) + stored["xz"], 0, 255).astype(int)
    if operator == "Conv":
        rows, shape = windows(codes, stored["w"], int(stored["xz"]), attributes)
        weight = np.moveaxis(stored["w"], 1, -1).reshape(len(stored["w"]), -1).astype(int)
    else:
        weight = (stored["w"] if attributes.get("transB") else stored["w"].T).astype(int)
        rows, shape = np.broadcast_to(codes[None], (len(weight), *codes.shape)), None
    sums = np.zeros((len(weight), *rows.shape[1:-1]), int)
    for row, k in itertools.product(range(len(weight)), range(0, weight.shape[1], 2)):
        sums[row] += np.clip((rows[row, ..., k : k + 2] * weight[row, k : k + 2]).sum(-1), low, high)
    sums -= int(stored["xz"]) * weight.sum(1).reshape(-1, *[1] * (sums.ndim - 1))
    sums = np.moveaxis(sums.reshape(len(weight), *shape), 0, 1) if shape else np.moveaxis(sums, 0, -1)
    scale = stored["xs"] * stored["ws"]
    scale = scale / stored["ys"] if quantized else scale
    scale = scale.reshape(-1, *[1] * (sums.ndim - 2)) if operator == "Conv" else scale
    scaled = sums.astype(np.float32) * scale
    if not quantized:
        return scaled
    codes = np.clip(np.round(scaled) + stored["yz"], 0, 255)
    return (codes - stored["yz"]).astype(np.float32) * stored["ys"]


def windows(codes, weight, zero, attributes):
    """What each output looks at, ``(outputs, n, positions, kernel x channels)``, and the shape of the result."""
    outputs, channels, *kernel = weight.shape
    dims, groups = len(kernel), attributes.get("group", 1)
    strides, spread = attributes.get("strides", [1] * dims), attributes.get("dilations", [1] * dims)
    size = codes.shape[2:]
    if "auto_pad" in attributes:
        result = [math.ceil(s / t) for s, t in zip(size, strides, strict=True)]
        total = [max(0, (r - 1) * t + k - s) for r, t, k, s in zip(result, strides, kernel, size, strict=True)]
        pads = [(p // 2, p - p // 2) for p in total]
    else:
        flat = attributes.get("pads", [0] * 2 * dims)
        pads = list(zip(flat[:dims], flat[dims:], strict=True))
    padded = np.pad(codes, ((0, 0), (0, 0), *pads), constant_values=zero)
    reach = [d * (k - 1) + 1 for d, k in zip(spread, kernel, strict=True)]
    result = [(p - r) // t + 1 for p, r, t in zip(padded.shape[2:], reach, strides, strict=True)]
    found = np.empty((outputs, len(codes), math.prod(result), math.prod(kernel) * channels), int)
    for row, (at, position) in itertools.product(range(outputs), enumerate(itertools.product(*map(range, result)))):
        first = row // (outputs // groups) * channels
        cut = tuple(slice(p * t, p * t + r, d) for p, t, r, d in zip(position, strides, reach, spread, strict=True))
        part = padded[(slice(None), slice(first, first + channels), *cut)]
        found[row, :, at] = np.moveaxis(part, 1, -1).reshape(len(codes), -1)
    return found, (len(codes), *result)


@pytest.mark.parametrize("case", CASES)
def test_weights_of_7_bits_never_saturate(tmp_path, case):
    path = build(tmp_path / "m.onnx", case, weight_limit=64)
    assert analyse(path).risky == {}
    model = fused(path)
    (product,) = find(model)
    weight = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == product.name)
    columns = ordered(product.node, weight)
    rows, pairs = np.nonzero(np.ones((len(columns), -(-columns.shape[1] // 2)), bool))
    rewrite(model, [Product(product.node, product.name, weight, rows, pairs)])
    runtime = OnnxRuntime(exact=True)
    library = runtime.prepare()
    options = runtime.options(library, 1)
    session = runtime.load(library, model.SerializeToString(), options, ["CPUExecutionProvider"], "m", {})
    np.testing.assert_array_equal(session.run(feeds(case))["y"], out(OnnxRuntime(), path, case))


@pytest.mark.parametrize("case", ["conv-padded", "conv-deep", "gemm"])
def test_signed_activations_saturate_too(tmp_path, case):
    """On x86 onnxruntime makes them unsigned; the same codes in the end, so the same bits."""
    path = build(tmp_path / "m.onnx", case, kinds=(np.int8, np.int8))
    known = {**HASWELL, "conv-deep": "2ff989a6"}[case]
    assert analyse(path).risky
    assert hashlib.sha256(out(SaturatingOnnxRuntime(), path, case).tobytes()).hexdigest().startswith(known)


def test_unsigned_weights_do_not_saturate(tmp_path):
    path = build(tmp_path / "m.onnx", "conv-padded", kinds=(np.uint8, np.uint8))
    found = analyse(path)
    assert (found.layers, found.risky) == (1, {})
    np.testing.assert_array_equal(
        out(SaturatingOnnxRuntime(), path, "conv-padded"), out(OnnxRuntime(), path, "conv-padded")
    )


def test_depthwise_convolutions_do_not_saturate(tmp_path, monkeypatch):
    monkeypatch.setitem(CASES, "depthwise", ("Conv", (32, 1, 3, 3), (2, 32, 9, 9), 10, {"group": 32}, True))
    found = analyse(build(tmp_path / "m.onnx", "depthwise"))
    assert (found.layers, found.risky) == (1, {})


@pytest.mark.parametrize(("groups", "risky"), [(1, 1), (2, 2)])
def test_transposed_convolutions_are_integers_in_openvino_alone(tmp_path, groups, risky):
    """Its neighbours are input channels of one group, in pairs from the group's first."""
    path = build(tmp_path / "m.onnx", "conv-padded")
    model = onnx.load(path)
    codes = np.ones((6, 3, 2, 2), np.int8)
    codes[1:3, 2, 0, 1] = 127  # neighbours never
    codes[4:, 1, 1, 0] = -127  # where there is one group
    codes[3:5, 0, 0] = 127  # where there are two, at both positions
    for tensor, array in (("w", codes), ("ws", np.ones(3, np.float32)), ("wz", np.zeros(3, np.int8))):
        index = next(i for i, t in enumerate(model.graph.initializer) if t.name == tensor)
        model.graph.initializer[index].CopyFrom(numpy_helper.from_array(array, tensor))
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    weights = next(node for node in model.graph.node if node.output[0] == "wd")
    weights.attribute[0].i = 1
    node.op_type = "ConvTranspose"
    del node.attribute[:]
    node.attribute.append(onnx.helper.make_attribute("group", groups))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 6
    onnx.save(model, path)
    assert analyse(path) == Saturation(0, {})
    assert analyse(path, "openvino") == Saturation(1, {"w": risky})


def test_what_is_found_is_every_pair_that_leaves_16_bits(tmp_path):
    path = build(tmp_path / "m.onnx", "gemm")
    weight = next(numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer if t.name == "w").astype(int)
    count = 0
    for row, k in itertools.product(range(len(weight)), range(0, weight.shape[1], 2)):
        sums = [int(weight[row, k]) * a + int(weight[row, k + 1]) * b for a in (0, 255) for b in (0, 255)]
        count += max(sums) > 32767 or min(sums) < -32768
    assert list(analyse(path).risky.values()) == [count]
    assert count > 0


def test_a_float_file_is_left_alone(tmp_path):
    x = onnx.helper.make_tensor_value_info("x", 1, [2, 3])
    y = onnx.helper.make_tensor_value_info("y", 1, None)
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    path = tmp_path / "m.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), path)
    assert analyse(path).layers == 0
    assert SaturatingOnnxRuntime().open(path).run({"x": np.ones((2, 3), np.float32)})["y"].tolist() == [[1] * 3] * 2


def test_too_much_to_emulate_is_said(tmp_path, monkeypatch):
    path = build(tmp_path / "m.onnx", "gemm")
    monkeypatch.setattr(saturating, "_MOST_BYTES", 1000)
    with pytest.raises(MachineError, match="too many to emulate"):
        SaturatingOnnxRuntime().open(path)


def test_a_damaged_file_is_an_input_error(tmp_path):
    path = build(tmp_path / "m.onnx", "gemm")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 40])
    with pytest.raises(InputError, match=r"m\.onnx"):
        SaturatingOnnxRuntime().open(path)
    with pytest.raises(InputError, match="is not a file"):
        SaturatingOnnxRuntime().open(tmp_path / "missing.onnx")
