"""What a client may send, and what is said when it sends something else."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serve_material import body, tensor

from compresskit.errors import InputError
from compresskit.model import InputSpec
from compresskit.serve.refused import Refused
from compresskit.serve.tensors import Limits, check_types, read_request, write_response

FLOAT = (InputSpec("x", "float32", ("batch", 8)),)


def read(content: bytes, inputs=FLOAT, header=None):
    return read_request(content, header, inputs, ("y",), Limits(4, 16))


def integers(dtype: str, high: int | None = None) -> tuple[InputSpec, ...]:
    return (InputSpec("x", dtype, ("batch", 2), high),)


def test_flat_and_nested_data_are_the_same():
    flat = read(body(tensor(2))).feeds["x"]
    nested = read(body(tensor(2, data=[list(range(8)), list(range(8, 16))]))).feeds["x"]
    assert flat.dtype == np.float32 and flat.shape == (2, 8)
    assert np.array_equal(flat, nested) and np.array_equal(flat, np.arange(16, dtype=np.float32).reshape(2, 8))


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "not JSON"), (b"{", "not JSON"), (b"[]", "a list"), (b"\xff{}", "UTF-8"), (b"{}", "inputs"),
        (b"[" * 200_000, "deeply"), (b'{"a":' * 50_000, "deeply"), (b'{"inputs": ' + b"9" * 5000 + b"}", ""),
        (body(tensor(), extra=1), "'extra'"), (body(tensor(), id=7), "id"), (body(), "'x' is missing"),
        (body(7), "an input"), (body(tensor(name="z")), "'z'"), (body(tensor(name=["x"])), "takes x"),
        (body(tensor(), tensor()), "twice"), (body(tensor(typo=1)), "'typo'"),
        (body(tensor(datatype="FP64")), "FP32"), (body(tensor(datatype=None)), "FP32"),
        (body(tensor(shape=[8])), "1 axes"), (body(tensor(shape=[1, 9])), "[-1, 8]"),
        (body(tensor(shape=[True, 8])), "numbers"), (body(tensor(shape=[-1, 8])), "at least 1"),
        (body(tensor(shape=[0, 8], data=[])), "at least 1"), (body(tensor(shape="1,8")), "numbers"),
        (body(tensor(shape=[1 << 70, 8])), "batch"), (body(tensor(5)), "a batch of at most 4"),
        (body(tensor(data=None)), "no data"), (body(tensor(data="abc")), "a string"),
        (body(tensor(data=[1.0] * 7)), "found 7"), (body(tensor(data=[[1.0] * 7])), "found 7"),
        (body(tensor(data=[[1.0] * 4, [1.0] * 4])), "[2, 4]"), (body(tensor(data=[[1.0] * 8, 1.0])), "nested"),
        (body(tensor(2, data=[[1.0] * 8, [1.0] * 7])), "nested"), (body(tensor(data=[[[1.0] * 8]])), "nested"),
        (body(tensor(data=["1"] * 8)), "a string"), (body(tensor(data=[True] * 8)), "a boolean"),
        (body(tensor(data=[None] * 8)), "null"), (body(tensor(data=[{}] * 8)), "an object"),
        (body(tensor(data=[1e300] + [0.0] * 7)), "too large"), (body(tensor(data=[10**400] + [0] * 7)), "too large"),
        (body(tensor()).replace(b"7.0", b"1e999"), "NaN, Inf"), (body(tensor()).replace(b"7.0", b"NaN"), "NaN"),
        (body(tensor()).replace(b"7.0", b"-Infinity"), "Infinity"),
        (body(tensor(), outputs=[{"name": "z"}]), "gives y"), (body(tensor(), outputs={}), "a list"),
        (body(tensor(), outputs=[{"name": "y", "parameters": {"binary_data": 1}}]), "true or false"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(content, word):
    with pytest.raises(Refused) as refused:
        read(content)
    assert refused.value.status == 400
    assert word in refused.value.message and "\n" not in refused.value.message


@pytest.mark.parametrize(
    ("dtype", "value", "word"),
    [
        ("int8", 128, "too large"), ("uint8", -1, "too large"), ("int64", 1 << 63, "too large"),
        ("uint64", 1 << 64, "too large"), ("int32", 1.0, "a fraction"), ("bool", 1, "an integer"),
    ],
)  # fmt: skip
def test_integers_and_booleans_are_taken_as_they_are(dtype, value, word):
    kind = {"bool": "BOOL"}.get(dtype, dtype.upper())
    with pytest.raises(Refused, match=word):
        read(body(tensor(shape=[1, 2], datatype=kind, data=[value, value])), integers(dtype))


def test_the_ends_of_a_type_pass():
    for dtype in ("int8", "uint8", "int64", "uint64"):
        ends = [int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)]
        found = read(body(tensor(shape=[1, 2], datatype=dtype.upper(), data=ends)), integers(dtype)).feeds["x"]
        assert found.tolist() == [ends]


def test_rows_of_a_table_stay_inside_of_it():
    spec = integers("int64", 10)
    assert read(body(tensor(shape=[1, 2], datatype="INT64", data=[9, 0])), spec).feeds["x"].tolist() == [[9, 0]]
    for value in (10, -11):
        with pytest.raises(Refused, match="table of 10"):
            read(body(tensor(shape=[1, 2], datatype="INT64", data=[0, value])), spec)


def test_axes_that_vary_have_a_limit():
    spec = (InputSpec("x", "float32", (1, "sequence")),)
    assert read(body(tensor(shape=[1, 16], data=[0.0] * 16)), spec).feeds["x"].shape == (1, 16)
    with pytest.raises(Refused, match="at most 16"):
        read(body(tensor(shape=[1, 17], data=[0.0] * 17)), spec)


def binary(values: bytes, **changes) -> tuple[bytes, int]:
    given = tensor(parameters={"binary_data_size": len(values)})
    del given["data"]
    head = body({**given, **changes})
    return head + values, len(head)


def test_bytes_after_the_json_are_data():
    values = np.arange(8, dtype="<f4")
    content, header = binary(values.tobytes())
    assert np.array_equal(read(content, header=header).feeds["x"], values.reshape(1, 8))


@pytest.mark.parametrize(
    ("values", "changes", "word"),
    [
        (bytes(31), {}, "binary_data_size is 31"), (bytes(33), {}, "binary_data_size is 33"),
        (struct.pack("<8f", *[float("nan")] * 8), {}, "NaN"),
        (bytes(32), {"data": [0.0] * 8}, "has data and"),
        (bytes(16), {"parameters": {"binary_data_size": 32}}, "16 follow"),
        (bytes(32), {"parameters": {"binary_data_size": True}}, "binary_data_size is True"),
        (bytes(40), {"parameters": {"binary_data_size": 32}}, "8 bytes follow"),
    ],
)  # fmt: skip
def test_bytes_that_do_not_fit_are_refused(values, changes, word):
    content, header = binary(values, **changes)
    with pytest.raises(Refused, match=word):
        read(content, header=header)


def test_a_header_past_the_end_is_refused():
    with pytest.raises(Refused, match="Inference-Header"):
        read(b"{}", header=3)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["name", "shape", "data", "inputs",
        "datatype", "parameters", "outputs", "id", "binary_data_size"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(JSON, JSON, JSON)
def test_any_json_is_read_or_refused(data, shape, parameters):
    for document in (data, {"inputs": data}, {"inputs": [tensor(data=data, shape=shape)]},
                     {"inputs": [tensor(parameters=parameters)], "outputs": data}):  # fmt: skip
        try:
            found = read(json.dumps(document).encode()).feeds["x"]
        except Refused as refused:
            assert refused.status == 400
        else:
            assert found.dtype == np.float32 and found.shape[1] == 8 and np.isfinite(found).all()


def test_a_response_says_what_it_holds():
    request = read(body(tensor(), id="a7"))
    payload, header = write_response("m", request, {"y": np.float32([[1.5, -2]])})
    assert header is None
    assert json.loads(payload) == {
        "model_name": "m", "id": "a7",
        "outputs": [{"name": "y", "shape": [1, 2], "datatype": "FP32", "data": [1.5, -2.0]}],
    }  # fmt: skip


def test_a_response_in_bytes():
    request = read(body(tensor(), parameters={"binary_data_output": True}))
    payload, header = write_response("m", request, {"y": np.float32([[1.5, -2]])})
    (output,) = json.loads(payload[:header])["outputs"]
    assert output["parameters"] == {"binary_data_size": 8} and "data" not in output
    assert payload[header:] == struct.pack("<2f", 1.5, -2)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_output_that_is_no_number_is_an_error(value):
    with pytest.raises(Refused, match="'y' holds NaN or Inf") as refused:
        write_response("m", read(body(tensor())), {"y": np.float32([value])})
    assert refused.value.status == 500


def test_types_without_a_word_are_refused_at_the_start():
    with pytest.raises(InputError, match="'t' is of type string"):
        check_types((InputSpec("t", "string", (1,)),), {})
    with pytest.raises(InputError, match="'y' is of type"):
        check_types((), {"y": [{"a": 1}]})
