"""Hostile, damaged and foreign torch files: one InputError each, and nothing runs."""

from __future__ import annotations

import collections
import io
import os
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compresskit.checkpoint.guard import check_torch_file
from compresskit.checkpoint.tensors import open_tensors
from compresskit.errors import InputError


def saved(value: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def state() -> dict[str, torch.Tensor]:
    return {"w": torch.arange(64.0).reshape(8, 8), "b": torch.ones(8), "n": torch.tensor(3)}


ZIP = saved(state())
LEGACY = saved(state(), _use_new_zipfile_serialization=False)


def repack(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


class Evil:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> object:
        return os.system, (self.command,)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("where", ["alone", "inside", "key"])
def test_code_in_a_pickle_never_runs(tmp_path: Path, legacy: bool, where: str) -> None:
    mark = tmp_path / "ran"
    evil = Evil(f"echo > {mark}")
    value = {"alone": evil, "inside": {"w": torch.ones(2), "x": evil}, "key": {"state_dict": state(), "opt": [evil]}}[
        where
    ]
    path = tmp_path / "m.pt"
    path.write_bytes(saved(value, _use_new_zipfile_serialization=not legacy))
    with pytest.raises(InputError, match=r"asks for '\w+\.system', which is code") as caught:
        open_tensors(path)
    assert "state_dict" in caught.value.hint
    assert not mark.exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_bare_pickle_is_refused(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "m.pt"
    mark = tmp_path / "ran"
    path.write_bytes(pickle.dumps(Evil(f"echo > {mark}"), protocol))
    with pytest.raises(InputError):
        open_tensors(path)
    path.write_bytes(pickle.dumps({"w": [1.0]}, protocol))
    with pytest.raises(InputError, match=r"not a file of torch\.save"):
        open_tensors(path)
    assert not mark.exists()


def test_programs_and_whole_models_are_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    net = torch.nn.Linear(2, 2)
    torch.save(net, path)
    with pytest.raises(InputError, match="whole pickled model") as caught:
        check_torch_file(path)
    assert "`arch`" in caught.value.hint
    for name, kind in [
        ("code/x.py", "TorchScript"),
        ("constants.pkl", "TorchScript"),
        ("archive_format", "torch.export"),
    ]:
        path.write_bytes(repack({"m/data.pkl": b"", f"m/{name}": b"pt2"}))
        with pytest.raises(InputError, match=re.escape(kind)):
            check_torch_file(path)
    path.write_bytes(repack({"m/models/model.json": b"{}", "m/data/sample_inputs/model.pt": b""}))
    with pytest.raises(InputError, match=r"\.pt2"):
        check_torch_file(path)


def test_a_real_pt2_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    exported = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
    torch.export.save(exported, path)
    with pytest.raises(InputError, match=r"torch\.export"):
        check_torch_file(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty", b"", "empty"),
        ("text", b"epoch,loss\n1,0.5\n", "looks like text"),
        ("npz", repack({"x.npy": b"1"}), "not a torch checkpoint"),
        ("binary", bytes(range(256)), "not a model"),
        ("two roots", repack({"a/data.pkl": b"", "b/data.pkl": b""}), "found 2"),
        ("climbs", repack({"a/data.pkl": b"", "a/../../x": b""}), "not a plain name"),
        ("absolute", repack({"a/data.pkl": b"", "/etc/x": b""}), "not a plain name"),
        ("zip bomb", repack({"a/data.pkl": b"", "a/data/0": bytes(1 << 16)}, zipfile.ZIP_DEFLATED), "compressed"),
    ],
)
def test_not_a_checkpoint(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        open_tensors(path)
    assert "m.pt" in caught.value.message
    assert str(caught.value).count("\n") <= 1


def test_missing_folder_and_fifo(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        open_tensors(tmp_path / "none.pt")
    with pytest.raises(InputError, match="is a folder"):
        open_tensors(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "f.pt")
        with pytest.raises(InputError, match="not a regular file"):
            open_tensors(tmp_path / "f.pt")


def views(storage_bytes: int, count: int, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> bytes:
    """A checkpoint whose one tensor claims whatever is asked."""
    original = members(saved({"w": torch.zeros(1)}))
    root = next(name for name in original if name.endswith("data.pkl")).removesuffix("data.pkl")

    class Storage:
        pass

    class Tensor:
        def __reduce__(self) -> object:
            arguments = (Storage(), offset, shape, strides, False, collections.OrderedDict())
            return torch._utils._rebuild_tensor_v2, arguments

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return ("storage", torch.FloatStorage, "0", "cpu", count) if isinstance(value, Storage) else None

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({"w": Tensor()})
    return repack({**original, f"{root}data.pkl": buffer.getvalue(), f"{root}data/0": bytes(storage_bytes)})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (views(16, 4, (1 << 30, 16), (0, 0)), "claims 68719476736 bytes"),
        (views(16, 4, (8,), (0,)), "claims 32 bytes"),
        (views(16, 4, (5,), (1,)), "claims 20 bytes"),
        (views(16, 4, (2,), (1,), 3), "claims 20 bytes"),
        (views(16, 4, (2,), (-1,), 3), "make no sense"),
        (views(16, 1 << 40, (2,), (1,)), "the file holds 16"),
        (views(16, 4, (2, 2), (1,)), "make no sense"),
    ],
)
def test_a_view_beyond_its_storage_is_refused_before_it_is_made(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(said)):
        open_tensors(path)


def test_an_expanded_row_of_one_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(views(16, 4, (1, 4), (0, 1)))
    assert open_tensors(path).get("w").shape == (1, 4)


@pytest.mark.parametrize(
    "opcodes",
    [
        b"\x80\x02}r\xff\xff\xff\xff.",  # a memo slot that asks for 64 GB
        b"\x80\x02cbuiltins\neval\n(X\x01\x00\x00\x001tR.",
        b"\x80\x02ctorch\nload\n(X\x01\x00\x00\x001tR.",
        b"\x80\x02ccollections\nOrderedDict\n}X\x05\x00\x00\x00itemsK\x01sb.",  # alters a class
        b"\x80\x02X\xff\xff\xff\x7f.",
        b"\x80\x02" + b"(" * 100_000 + b"l" * 100_000 + b".",
        b"\x80\x02.",
        b"",
    ],
)
def test_hostile_opcodes(tmp_path: Path, opcodes: bytes) -> None:
    original = members(ZIP)
    name = next(n for n in original if n.endswith("data.pkl"))
    path = tmp_path / "m.pt"
    path.write_bytes(repack({**original, name: opcodes}))
    with pytest.raises(InputError):
        open_tensors(path)


def expected() -> dict[str, torch.Tensor]:
    return state()


def outcome(path: Path, content: bytes) -> dict[str, torch.Tensor] | None:
    """The tensors, or None when refused; anything but InputError fails the test."""
    path.write_bytes(content)
    try:
        return dict(open_tensors(path).items())
    except InputError as error:
        assert "\n" not in error.message and error.message.isprintable()
        return None


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_never_changes_a_number_silently(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(ZIP) * 8 - 1))
    content = bytearray(ZIP)
    content[at // 8] ^= 1 << at % 8
    found = outcome(tmp_path_factory.getbasetemp() / "flip.pt", bytes(content))
    if found is not None:
        assert set(found) == set(expected())
        assert all(torch.equal(found[name], value) for name, value in expected().items())


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_the_old_format_never_crashes(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(LEGACY)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    outcome(tmp_path_factory.getbasetemp() / "old.pt", bytes(content))


@pytest.mark.parametrize("content", [ZIP, LEGACY], ids=["zip", "legacy"])
def test_every_truncation_is_found(tmp_path: Path, content: bytes) -> None:
    for size in [*range(0, len(content) - 1, 37), len(content) - 1]:
        assert outcome(tmp_path / "cut.pt", content[:size]) is None


def test_message_holds_no_terminal_codes(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(saved({"\x1b[31mred": torch.tensor([float("nan")])}))
    with pytest.raises(InputError) as caught:
        open_tensors(path)
    assert "\x1b" not in str(caught.value)
