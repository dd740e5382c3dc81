"""Samples from ``.npz``: what is read, in which layout, and what is refused."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from compresskit.data import input_specs, open_source
from compresskit.errors import CompressKitError, InputError, UsageError
from compresskit.model import InputSpec

RNG = np.random.default_rng(0)
NHWC = RNG.integers(0, 256, (10, 8, 6, 3), dtype=np.uint8)
IMAGE = (InputSpec("pixels", "float32", ("batch", 3, 8, 6)),)
IDS = InputSpec("input_ids", "int64", ("batch", "sequence"), 100)
MASK = InputSpec("attention_mask", "int64", ("batch", "sequence"))


def save(path: Path, compressed: bool = False, **arrays: np.ndarray) -> str:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return str(path)


def first(spec: str, size: int = 64, **options):
    return next(open_source(spec, **options).batches(size))


def with_member(path: Path, data: bytes, name: str = "x.npy", method: int = zipfile.ZIP_STORED) -> str:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(name, data)
    return str(path)


def npy(header: str, body: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("specs", [(), IMAGE])
def test_bytes_become_nchw_floats(tmp_path, compressed, specs):
    path = save(tmp_path / "a.npz", compressed, x=NHWC, y=np.arange(10, dtype=np.uint8))
    source = open_source(path, normalize=".5,.4,.3/.1,.2,.4", inputs=specs)
    assert (source.kind, source.labelled, len(source)) == ("images", True, 10)
    parts = list(source.batches(4))
    assert [len(b.targets) for b in parts] == [4, 4, 2]
    (name,) = parts[0].inputs
    assert name == ("pixels" if specs else "x")
    got = np.concatenate([b.inputs[name] for b in parts])
    expected = (NHWC.transpose(0, 3, 1, 2) / 255 - np.reshape([0.5, 0.4, 0.3], (3, 1, 1))) / np.reshape(
        [0.1, 0.2, 0.4], (3, 1, 1)
    )
    assert got.dtype == np.float32 and got.flags.c_contiguous
    np.testing.assert_allclose(got, expected, atol=2e-6)
    assert np.concatenate([b.targets for b in parts]).tolist() == list(range(10))


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ((4, 3, 8, 6), (3, 8, 6)),
        ((4, 8, 6, 3), (3, 8, 6)),
        ((4, 8, 6), (1, 8, 6)),
        ((4, 8, 6, 3), (8, 6, 3)),
        ((4, 3, 8, 6), (8, 6, 3)),
        ((4, 3, 3, 3), (3, 3, 3)),
        ((4, 8, 6), (8, 6)),
    ],
)
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_axes_follow_the_model(tmp_path, stored, wanted, dtype):
    path = save(tmp_path / "a.npz", x=RNG.integers(0, 9, stored).astype(dtype))
    batch = first(path, inputs=(InputSpec("in", "float32", ("batch", *wanted)),))
    assert batch.inputs["in"].shape == (4, *wanted)
    assert batch.inputs["in"].dtype == np.float32


def test_floats_keep_their_values_and_are_writable(tmp_path):
    x = RNG.standard_normal((5, 3, 8, 6)).astype(np.float32)
    got = first(save(tmp_path / "a.npz", x=x)).inputs["x"]
    np.testing.assert_array_equal(got, x)
    assert got.flags.writeable


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", ">i8", "<u2"])
def test_any_storage_gives_the_same_values(tmp_path, order, dtype):
    x = np.asarray(RNG.integers(0, 50, (7, 5)), dtype, order=order)
    plain = first(save(tmp_path / "a.npz", x=x)).inputs["x"]
    np.testing.assert_array_equal(plain, x)
    assert plain.dtype.isnative


def test_named_inputs_and_a_mask_of_ones(tmp_path):
    ids = RNG.integers(0, 100, (6, 9))
    position = InputSpec("position_ids", "int64", ("batch", "sequence"))
    types = InputSpec("token_type_ids", "int32", ("batch", "sequence"))
    path = save(tmp_path / "a.npz", input_ids=ids)
    source = open_source(path, inputs=(IDS, MASK, types, position))
    batch = next(source.batches(6))
    assert source.kind == "tokens" and not source.labelled and batch.targets is None
    assert list(batch.inputs) == ["input_ids", "attention_mask", "token_type_ids", "position_ids"]
    np.testing.assert_array_equal(batch.inputs["input_ids"], ids)
    assert batch.inputs["attention_mask"].all() and not batch.inputs["token_type_ids"].any()
    assert batch.inputs["token_type_ids"].dtype == np.int32
    assert batch.inputs["position_ids"][3].tolist() == list(range(9))


@pytest.mark.parametrize("name", ["y", "labels"])
def test_labels_under_either_name(tmp_path, name):
    batch = first(save(tmp_path / "a.npz", x=NHWC, **{name: np.arange(10).reshape(10, 1)}))
    assert batch.targets.shape == (10,) and batch.targets.dtype == np.int64


def test_limit_and_size(tmp_path):
    source = open_source(save(tmp_path / "a.npz", x=NHWC))
    assert [len(b.inputs["x"]) for b in source.batches(4, 6)] == [4, 2]
    assert [len(b.inputs["x"]) for b in source.batches(64, 100)] == [10]
    for bad in ((0, None), (4, 0)):
        with pytest.raises(UsageError, match="at least 1"):
            list(source.batches(*bad))


def test_stored_arrays_are_mapped_not_read(tmp_path):
    source = open_source(save(tmp_path / "a.npz", x=NHWC))
    base = source._arrays["x"]
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)


@pytest.mark.parametrize(
    ("arrays", "options", "error", "words"),
    [
        ({"x": NHWC.astype("f4") * np.nan}, {}, InputError, ["'x'", "NaN"]),
        ({"x": np.full((2, 3), np.inf)}, {}, InputError, ["'x'", "Inf"]),
        ({"x": np.full((2, 3), 1e300)}, {}, InputError, ["'x'", "float32"]),
        ({"x": NHWC, "y": np.full(10, np.nan)}, {}, InputError, ["'y'", "NaN"]),
        ({"x": NHWC[:0]}, {}, InputError, ["'x'", "empty"]),
        ({"x": NHWC, "y": np.arange(9)}, {}, InputError, ["different lengths", "'x' 10", "'y' 9"]),
        ({"x": np.float32(3)}, {}, InputError, ["'x'", "single number"]),
        ({"y": np.arange(9)}, {}, InputError, ["labels only"]),
        ({"x": np.array(["a", "b"])}, {}, InputError, ["'x'", "numbers"]),
        ({"x": np.array([1 + 2j])}, {}, InputError, ["'x'", "numbers"]),
        ({"x": NHWC[:, :5]}, {"inputs": IMAGE}, InputError, ["(5, 6, 3)", "(3, 8, 6)", "pixels"]),
        ({"a": NHWC, "b": NHWC}, {"inputs": IMAGE}, InputError, ["'pixels'", "'a'"]),
        ({"x": np.ones((4, 9), "f4")}, {"inputs": (IDS,)}, InputError, ["integers", "input_ids", "float32"]),
        ({"input_ids": np.full((4, 9), 100)}, {"inputs": (IDS,)}, InputError, ["100", "0 to 99", "tokenizer"]),
        ({"input_ids": np.full((4, 9), -1)}, {"inputs": (IDS,)}, InputError, ["-1", "0 to 99"]),
        (
            {"input_ids": np.ones((4, 9), int), "attention_mask": np.zeros((4, 9), int)},
            {"inputs": (IDS,)},
            InputError,
            ["attention_mask", "padded"],
        ),
        ({"x": NHWC}, {"normalize": ".5/.5"}, UsageError, ["1 channels", "(3, 8, 6)"]),
        ({"x": np.ones((4, 9), "f4")}, {"normalize": ".5/.5"}, UsageError, ["for images"]),
        ({"a": NHWC, "b": NHWC}, {"normalize": "imagenet"}, UsageError, ["one array"]),
    ],
)
def test_bad_arrays_are_named(tmp_path, arrays, options, error, words):
    path = save(tmp_path / "a.npz", **arrays)
    with pytest.raises(error) as caught:
        open_source(path, **options)
    assert all(w in str(caught.value) for w in words), str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "nonsense", ".5", ".5,.5/.5", ".5/.5/.5", "a/b", ".5/0", ".5/-1", ".5/nan", "inf/1", "/", ",/,"]
)
def test_normalize_of_another_form_is_a_usage_error(tmp_path, text):
    with pytest.raises(UsageError, match="`normalize`"):
        open_source(save(tmp_path / "a.npz", x=NHWC), normalize=text)


def test_imagenet_is_the_same_as_its_numbers(tmp_path):
    path = save(tmp_path / "a.npz", x=NHWC)
    typed = open_source(path, normalize=".485,.456,.406/.229,.224,.225")
    named = open_source(path, normalize="imagenet")
    assert named.fingerprint() == typed.fingerprint()
    np.testing.assert_array_equal(next(named.batches(3)).inputs["x"], next(typed.batches(3)).inputs["x"])


def test_fingerprint_is_of_content_and_preparation(tmp_path):
    (tmp_path / "other").mkdir()
    base = open_source(save(tmp_path / "a.npz", x=NHWC, y=np.arange(10))).fingerprint()
    assert len(base) == 64
    assert base == open_source(save(tmp_path / "other" / "b.npz", True, x=NHWC, y=np.arange(10))).fingerprint()
    changed = NHWC.copy()
    changed[7, 0, 0, 0] ^= 1
    others = [
        open_source(save(tmp_path / "c.npz", x=changed, y=np.arange(10))),
        open_source(save(tmp_path / "d.npz", x=NHWC, y=np.arange(10)[::-1])),
        open_source(save(tmp_path / "e.npz", x=NHWC)),
        open_source(str(tmp_path / "a.npz"), normalize="imagenet"),
    ]
    assert len({base, *(s.fingerprint() for s in others)}) == 5


def bomb(path: Path) -> str:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(80 << 20, np.uint8))
    return with_member(path, buffer.getvalue(), method=zipfile.ZIP_DEFLATED)


HUGE = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }"
OBJECT = "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
NEGATIVE = "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -1), }"


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda p: with_member(p, npy(HUGE, b"1234")), "takes 4000000000000 bytes, found 4"),
        (lambda p: with_member(p, npy(HUGE, b"1234"), method=zipfile.ZIP_DEFLATED), "found 4"),
        (lambda p: with_member(p, npy(OBJECT, b"\x80\x04.")), "pickled"),
        (lambda p: with_member(p, npy(NEGATIVE, b"1234")), "claims the shape"),
        (lambda p: with_member(p, b"not numpy"), "not a readable"),
        (lambda p: with_member(p, b"x", "x.txt"), "not an array"),
        (lambda p: with_member(p, npy(HUGE), method=zipfile.ZIP_BZIP2), "compressed in another way"),
        (bomb, "unpacks to"),
        (lambda p: p.write_bytes(b"PK") and str(p), "not a readable"),
        (lambda p: p.write_bytes(b"") or str(p), "not a readable"),
        (lambda p: str(p), "does not exist"),
    ],
)
def test_hostile_archives_are_refused_before_allocation(tmp_path, make, word):
    with pytest.raises(InputError) as caught:
        open_source(make(tmp_path / "a.npz"))
    assert word in str(caught.value), str(caught.value)


def test_a_member_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("x.npy", b"1")
        archive.writestr("x.npy", b"2")
    with pytest.raises(InputError, match="twice"):
        open_source(str(path))


@pytest.mark.parametrize("compressed", [False, True])
def test_no_flipped_bit_loads_unseen(tmp_path, compressed):
    path = Path(save(tmp_path / "a.npz", compressed, x=NHWC, y=np.arange(10)))
    good = path.read_bytes()
    expected = open_source(str(path)).fingerprint()
    rng = np.random.default_rng(1)
    for _ in range(150):
        bad = bytearray(good)
        bad[rng.integers(len(bad))] ^= 1 << int(rng.integers(8))
        path.write_bytes(bad)
        try:
            source = open_source(str(path))
        except CompressKitError:
            continue
        assert source.fingerprint() == expected  # a flip in a date or an attribute


def test_truncation_is_an_input_error(tmp_path):
    path = Path(save(tmp_path / "a.npz", x=NHWC))
    data = path.read_bytes()
    for keep in range(0, len(data), 97):
        path.write_bytes(data[:keep])
        with pytest.raises(InputError):
            open_source(str(path))


def test_input_specs_come_from_data(tmp_path):
    images = open_source(save(tmp_path / "a.npz", x=NHWC))
    assert input_specs(images) == (InputSpec("x", "float32", ("batch", 3, 8, 6)),)
    tokens = open_source(save(tmp_path / "b.npz", input_ids=np.arange(12).reshape(2, 6)))
    assert input_specs(tokens) == (InputSpec("input_ids", "int64", ("batch", "sequence"), 12),)


@pytest.mark.parametrize("name", ["a.bin", "a.pt", "a"])
def test_unknown_forms_are_a_usage_error(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UsageError, match="no known form"):
        open_source(str(tmp_path / name))
