"""Safetensors: headers that lie, and the streaming writer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save

from compresskit.checkpoint.guard import check_safetensors
from compresskit.checkpoint.safetensors_writer import Entry, entry, write_safetensors
from compresskit.checkpoint.tensors import open_tensors
from compresskit.errors import InputError, MachineError

GOOD = save({"a": torch.arange(8.0), "b": torch.ones(2, 3, dtype=torch.float16)})


def file_of(header: Any, data: bytes = b"", size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if size is None else size).to_bytes(8, "little") + text + data


def one(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {
        "w": {
            "dtype": dtype,
            "shape": list(shape) if isinstance(shape, tuple) else shape,
            "data_offsets": list(offsets),
        }
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (file_of(one(), bytes(7)), "ends beyond the file"),
        (file_of(one(), bytes(9)), "1 bytes follow"),
        (file_of(one(offsets=(4, 12)), bytes(12)), "leaves a gap"),
        (file_of({**one(), "v": one()["w"]}, bytes(8)), "overlaps"),
        (file_of(one(shape=(1 << 40,)), bytes(8)), "needs 4398046511104 bytes, has 8"),
        (file_of(one(shape=(-1, -2)), bytes(8)), "not whole numbers"),
        (file_of(one(shape=(2.0,)), bytes(8)), "not whole numbers"),
        (file_of(one(shape="xx"), bytes(8)), "not whole numbers"),
        (file_of(one(dtype="Q7"), bytes(8)), "'Q7', which is not supported"),
        (file_of(one(offsets=(8, 0)), bytes(8)), "needs 8 bytes, has -8"),
        (file_of({"w": 3}), "lacks dtype"),
        (file_of({"__metadata__": {"a": 1}, **one()}, bytes(8)), "metadata"),
        (file_of(b"{" + b" " * 9), "not valid JSON"),
        (file_of(b'{"w":1,"w":2}'), "stands twice"),
        (file_of(one(), bytes(8), size=1 << 40), "not a safetensors file"),
        (file_of(b'{"a":' * 100_000), "not valid JSON"),
        (file_of({}), "no tensors"),
        (file_of({"w": {"dtype": "F32", "shape": [1] * 99, "data_offsets": [0, 4]}}, bytes(4)), "whole numbers"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        open_tensors(path)


def test_the_librarys_own_files_pass(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(GOOD)
    check_safetensors(path)
    assert torch.equal(open_tensors(path).get("a"), torch.arange(8.0))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_mutations_raise_nothing_but_input_errors(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "m.safetensors"
    path.write_bytes(bytes(content))
    try:
        tensors = open_tensors(path, allow_nonfinite=True)
    except InputError:
        return
    assert sum(value.nbytes for _, value in tensors.items()) == 8 * 4 + 6 * 2


def test_every_truncation_is_found(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for size in range(len(GOOD)):
        path.write_bytes(GOOD[:size])
        with pytest.raises(InputError):
            open_tensors(path)


MIXED = {
    "codes": torch.arange(5, dtype=torch.uint8), "scale": torch.randn(3).half(), "w": torch.randn(2, 3),
    "d": torch.randn(2).double(),
    "flag": torch.tensor([True]), "none": torch.zeros(0, 4), "bf": torch.randn(3).bfloat16(), "scalar": torch.tensor(7),
    "turned": torch.randn(3, 2).t(), "f8": torch.ones(3).to(torch.float8_e4m3fn),
}  # fmt: skip


def test_the_library_reads_what_is_written_and_every_tensor_is_aligned(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write_safetensors(path, [entry(n, t) for n, t in MIXED.items()], {"format": "pt", "a": "é"})
    with safe_open(str(path), "pt") as file:
        assert file.metadata() == {"a": "é", "format": "pt"}
        for name, value in MIXED.items():
            got = file.get_tensor(name)
            assert (
                got.dtype == value.dtype and got.shape == value.shape and bool((got.double() == value.double()).all())
            )
    ours = open_tensors(path)
    assert ours.names() == list(MIXED), "the order of the file is the order given"
    for name in ours:
        assert ours.region(name).start % max(1, ours.get(name).element_size()) == 0


def test_bytes_are_the_same_whatever_the_order_of_the_metadata(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    pairs = {f"k{i}": str(i) for i in range(9)}
    for path, metadata in zip(paths, [pairs, dict(reversed(pairs.items()))], strict=True):
        write_safetensors(path, [entry(n, t) for n, t in MIXED.items()], metadata)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_one_tensor_at_a_time_in_the_order_given(tmp_path: Path) -> None:
    calls: list[str] = []

    def produce(name: str) -> torch.Tensor:
        calls.append(name)
        return torch.full((2,), float(len(calls)), dtype=torch.float16 if name == "s" else torch.float32)

    names = ["s", "w", "x"]
    dtypes = {"s": "float16", "w": torch.float32, "x": "float32"}
    write_safetensors(tmp_path / "m", [Entry(n, dtypes[n], (2,), lambda n=n: produce(n)) for n in names])
    assert calls == names
    assert [float(v[0]) for _, v in open_tensors(tmp_path / "m").items()] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([entry("a", torch.ones(1)), entry("a", torch.ones(1))], "twice"),
        ([Entry("a", "float32", (2,), lambda: torch.ones(3))], "announced"),
        ([Entry("a", "float16", (3,), lambda: torch.ones(3))], "announced"),
        ([entry("a", torch.ones(1, dtype=torch.complex128))], "the format lacks"),
    ],
)
def test_wrong_entries_are_a_callers_bug(tmp_path: Path, entries: list[Entry], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        write_safetensors(tmp_path / "m", entries)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="cannot write"):
        write_safetensors(tmp_path / "none" / "m", [entry("a", torch.ones(1))])
