"""Samples from the user's own code."""

from __future__ import annotations

import numpy as np
import pytest

from compresskit.data import input_specs, open_source
from compresskit.errors import InputError, UsageError
from compresskit.model import InputSpec

CODE = """
import numpy as np

def pairs():
    for start in range(0, 10, 4):
        x = np.arange(start, min(start + 4, 10), dtype=np.float64)
        yield np.tile(x[:, None], (1, 3)), x.astype(int) % 2

def ragged():
    yield {"input_ids": np.ones((2, 5), int), "labels": [0, 1]}
    yield {"input_ids": np.ones((2, 7), int), "labels": [1, 1]}

listed = [(np.ones((2, 3), np.float32),), (np.ones((2, 3), np.float32),)]
once = iter(listed)
number = 3

def nothing():
    return []

def fails():
    yield np.ones((2, 3)), [1, 0]
    raise ValueError("no \\x1b[31mmore")

def strings():
    yield "hello"

def nan():
    yield np.full((2, 3), np.nan), [0, 1]

def lengths():
    yield np.ones((2, 3)), [0, 1, 2]

class Tensor:
    def __init__(self, array): self.array = array
    def detach(self): return self
    def cpu(self): return self
    def numpy(self): return self.array

def tensors():
    yield Tensor(np.ones((2, 3), np.float32)), Tensor(np.array([0, 1]))
"""


@pytest.fixture
def code(tmp_path):
    (tmp_path / "mine.py").write_text(CODE)
    return lambda name: f"{tmp_path / 'mine.py'}:{name}"


@pytest.mark.parametrize(("size", "limit", "lengths"), [(4, None, [4, 4, 2]), (3, None, [3, 3, 3, 1]), (64, 7, [7])])
def test_batches_are_cut_and_joined(code, size, limit, lengths):
    source = open_source(code("pairs"))
    for _ in range(2):
        parts = list(source.batches(size, limit))
        assert [len(b.targets) for b in parts] == lengths
        x = np.concatenate([b.inputs["x"] for b in parts])
        assert x.dtype == np.float32 and x[:, 0].tolist() == list(range(sum(lengths)))
    assert len(source) == 10 and source.labelled


def test_batches_of_other_shapes_are_not_joined(code):
    source = open_source(code("ragged"))
    assert source.kind == "tokens"
    assert [b.inputs["input_ids"].shape for b in source.batches(64)] == [(2, 5), (2, 7)]


def test_lists_and_tensors(code):
    listed = open_source(code("listed"))
    assert not listed.labelled and len(listed) == 4
    assert input_specs(listed) == (InputSpec("x", "float32", ("batch", 3)),)
    assert next(open_source(code("tensors")).batches(9)).targets.tolist() == [0, 1]


def test_the_models_names_are_given(code):
    spec = InputSpec("features", "float32", ("batch", 3))
    assert list(next(open_source(code("pairs"), inputs=(spec,)).batches(2)).inputs) == ["features"]
    with pytest.raises(InputError, match=r"\(4, 3\), expected \(batch, 4\)"):
        open_source(code("pairs"), inputs=(InputSpec("features", "float32", ("batch", 4)),))
    with pytest.raises(InputError, match="takes int64, found float32"):
        open_source(code("pairs"), inputs=(InputSpec("ids", "int64", ("batch", 3)),))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("once", ["only once"]),
        ("number", ["int"]),
        ("nothing", ["no batches"]),
        ("strings", ["str"]),
        ("nan", ["'x'", "NaN"]),
        ("lengths", ["differ in length"]),
        ("absent", ["defines no 'absent'"]),
    ],
)
def test_what_is_no_source(code, name, words):
    with pytest.raises(InputError) as caught:
        open_source(code(name))
    assert all(w in str(caught.value) for w in words), str(caught.value)


def test_the_users_exception_is_one_clean_line(code):
    with pytest.raises(InputError, match=r"raised ValueError at line \d+") as caught:
        list(open_source(code("fails")).batches(1))
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "word"), [("1/0", "ZeroDivisionError at line 1"), ("def", "SyntaxError"), ("raise SystemExit(3)", "3")]
)
def test_a_file_that_fails_on_import(tmp_path, text, word):
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(InputError, match=word):
        open_source(f"{tmp_path / 'bad.py'}:NAME")


def test_code_runs_only_when_allowed(tmp_path):
    marker = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\ndef f(): return []")
    with pytest.raises(UsageError, match="`allow_code`"):
        open_source(f"{tmp_path / 'evil.py'}:f", allow_code=False)
    assert not marker.exists()


def test_missing_file_and_normalize(code, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        open_source(f"{tmp_path / 'gone.py'}:f")
    with pytest.raises(UsageError, match="`normalize`"):
        open_source(code("pairs"), normalize="imagenet")


def test_fingerprint_follows_the_batches(code):
    assert open_source(code("pairs")).fingerprint() == open_source(code("pairs")).fingerprint()
    assert open_source(code("pairs")).fingerprint() != open_source(code("listed")).fingerprint()
