import numpy as np
import pytest

from compresskit.benchmark.feeds import axis_sizes, make_feeds
from compresskit.errors import InputError, UsageError
from compresskit.model import InputSpec

IMAGE = InputSpec("x", "float32", ("batch", 3, 8, 8))
IDS = InputSpec("input_ids", "int64", ("batch", "sequence"), high=100)
MASK = InputSpec("attention_mask", "int64", ("batch", "sequence"), high=2)


def test_arrays_are_of_the_given_types_and_ranges():
    feeds = make_feeds([IMAGE, IDS, MASK], {"batch": 4, "sequence": 50})
    assert {name: (a.dtype.name, a.shape) for name, a in feeds.items()} == {
        "x": ("float32", (4, 3, 8, 8)),
        "input_ids": ("int64", (4, 50)),
        "attention_mask": ("int64", (4, 50)),
    }
    assert abs(feeds["x"].mean()) < 0.2
    assert 0.8 < feeds["x"].std() < 1.2
    assert 0 <= feeds["input_ids"].min() < 5
    assert 95 < feeds["input_ids"].max() < 100
    assert (feeds["attention_mask"] == 1).all()


def test_the_seed_decides():
    same, again, other = (make_feeds([IMAGE], {}, seed)["x"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(same, again)
    assert (same != other).any()


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (InputSpec("input_ids", "int64", (1, 4)), [[0, 0, 0, 0]]),  # no vocabulary known: the row that all tables have
        (InputSpec("position_ids", "int64", (2, 3)), [[0, 1, 2], [0, 1, 2]]),
        (InputSpec("token_type_ids", "int64", (1, 3), high=2), [[0, 0, 0]]),
        (InputSpec("attention_mask", "float32", (1, 2)), [[1.0, 1.0]]),
        (InputSpec("flags", "bool", (1, 2)), [[True, True]]),
        (InputSpec("mask", "float32", (0,)), []),
    ],
)
def test_inputs_with_a_meaning(spec, expected):
    np.testing.assert_array_equal(make_feeds([spec])[spec.name], expected)


def test_bytes_use_their_whole_range():
    array = make_feeds([InputSpec("x", "uint8", (10_000,))])["x"]
    assert (array.min(), array.max()) == (0, 255)


@pytest.mark.parametrize(
    ("shape", "dtype", "sizes", "expected"),
    [
        (("batch", 3), "float32", {}, (1, 3)),
        (("N", 3), "float32", {"batch": 5}, (5, 3)),
        (("x_0", "x_1"), "int64", {"batch": 2}, (2, 128)),
        (("s0", "s1"), "int64", {"s1": 7}, (1, 7)),
        (("batch", "seq_len", 8), "float32", {"sequence": 9}, (1, 9, 8)),
        (("time", "batch", 8), "float32", {"sequence": 9, "batch": 2}, (9, 2, 8)),
        ((4, "sequence"), "int64", {"batch": 9, "sequence": 3}, (4, 3)),
    ],
)
def test_sizes_of_free_axes(shape, dtype, sizes, expected):
    assert axis_sizes(InputSpec("x", dtype, shape), sizes) == expected


def test_an_axis_of_unknown_size_is_named():
    with pytest.raises(UsageError, match=r"'x'.*axis 2.*'height'"):
        make_feeds([InputSpec("x", "float32", ("batch", 3, "height", "width"))])


@pytest.mark.parametrize("dtype", ["string", "bfloat16", "complex64", "seq(tensor(float))"])
def test_types_that_cannot_be_made_up(dtype):
    with pytest.raises(InputError, match="'x'"):
        make_feeds([InputSpec("x", dtype, (1,))])
