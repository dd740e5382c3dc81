"""Small checkpoints that run no code, and once crashed the reader, hung it or took all memory."""

from __future__ import annotations

import io
import json
import pickle
import struct
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import pytest
import torch

from compresskit.checkpoint.state_dict_keys import find_state_dict
from compresskit.checkpoint.tensors import open_tensors
from compresskit.checkpoint.torch_file import read_torch_file
from compresskit.errors import InputError

SECONDS, MEGABYTES = 2.0, 200


def archive(stream: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as made:
        made.writestr("archive/data.pkl", stream)
        made.writestr("archive/data/0", bytes(64))
    return buffer.getvalue()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode("utf-8", "surrogatepass")


@cache
def number(value: int) -> bytes:
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data if len(data) < 256 else b"\x8b" + struct.pack("<i", len(data)) + data


def tensor(
    *,
    count: int = 16,
    size: tuple[int, ...] = (4, 4),
    stride: tuple[int, ...] = (4, 1),
    offset: int = 0,
    name: bytes = text("w"),
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """The pickle of ``{name: tensor}``, with opcodes before and after it in the dictionary."""
    return b"".join((
        b"\x80\x02}q\x00", before, name, b"ctorch._utils\n_rebuild_tensor_v2\n((", text("storage"),
        b"ctorch\nFloatStorage\n", text("0"), text("cpu"), number(count), b"tQ", number(offset), b"(",
        *map(number, size), b"t(", *map(number, stride), b"t\x89ccollections\nOrderedDict\n)RtRs", after, b".",
    ))  # fmt: skip


SHARED = b"Nq\x01" + b"".join(b"h%ch%c\x86q%c" % (k, k, k + 1) for k in range(1, 60)) + b"0" * 60
"""Memo 60: a tuple of 2**59 leaves, of shared halves."""
LONG = b"X" + struct.pack("<I", 1 << 20) + b"x" * (1 << 20) + b"q\x050"
BIG = 1 << 16_000
DICTS = b"}q\x01(" + b"".join(text(f"k{i}") + b"N" for i in range(300)) + b"u"
for _level in range(2, 6):
    DICTS += b"}q%c(" % _level + b"".join(text(f"k{i}") + b"h%c" % (_level - 1) for i in range(300)) + b"u"


def called(function: bytes, argument: bytes) -> bytes:
    return text("s") + b"c" + function + b"\n" + argument + b"\x85Rs"


EVIL = {
    "shared key": tensor(before=SHARED, after=b"h\x3cNs"),
    "shared key in a mapping": tensor(before=SHARED, after=called(b"collections\nOrderedDict", b"]h\x3cN\x86a")),
    "shared in str": tensor(before=SHARED, after=called(b"__builtin__\nstr", b"h\x3c")),
    "shared in encode": tensor(before=SHARED, after=called(b"_codecs\nencode", b"h\x3c")),
    "shared in set": tensor(before=SHARED, after=called(b"__builtin__\nset", b"]h\x3ca")),
    "shared as storage": tensor(before=SHARED, after=text("s") + b"(" + text("storage") + b"h\x3ch\x3ch\x3cK\x01tQs"),
    "shared as metadata": tensor(before=SHARED, after=text("s") + b"h\x3ch\x3c\x86Qs"),
    "deep key": tensor(after=b"N" + b"\x85" * 1_000_000 + b"Ns"),
    "deep frozen set": tensor(after=b"(" * 100_000 + b"\x91" * 100_000 + b"Ns"),
    "big shape": tensor(size=(BIG, 4)),
    "big stride": tensor(stride=(BIG, 1)),
    "big count": tensor(count=BIG),
    "big offset": tensor(offset=BIG),
    "big negative": tensor(size=(-BIG, 4)),
    "negative": tensor(size=(-5, 4)),
    "shape of 10^20": tensor(size=(10**20, 4)),
    "a shape of a million axes": tensor(size=(1,) * 300_000, stride=(1,) * 300_000),
    "big product": tensor(size=((1 << 8_000_000) - 1,) * 4, stride=(0,) * 4),
    "a tuple in a tuple as key": tensor(after=b"N\x85\x85Ns"),
    "a wide tuple as key": tensor(after=b"(" + b"N" * 9 + b"tNs"),
    "a tuple as key with a list": tensor(after=b"]\x85Ns"),
    "a tuple as key with many digits": tensor(after=number(BIG) + b"\x85Ns"),
    "long keys compared with one another": tensor(before=LONG + LONG.replace(b"q\x05", b"q\x06"),
                                                  after=b"h\x05Ns" + b"h\x06Ns" * 300_000),
    "long keys in tuples": tensor(before=LONG, after=b"h\x05\x85Ns" * 300_000),
    "a key of many digits": tensor(after=number(BIG) + b"Ns"),
    "shared dictionaries": b"\x80\x02" + DICTS + b".",
    "str of a long list": tensor(before=LONG, after=called(b"__builtin__\nstr", b"](" + b"h\x05" * 20_000 + b"e")),
    "encode again and again": tensor(before=LONG, after=(called(b"_codecs\nencode", b"h\x05") * 2_000)),
    "list again and again": tensor(
        before=b"](" + b"N" * 100_000 + b"eq\x050", after=called(b"__builtin__\nlist", b"h\x05") * 2_000
    ),
    "size of text": tensor(before=LONG, after=called(b"torch\nSize", b"h\x05") * 20_000),
    "int of many digits": tensor(before=text("9" * 300_000) + b"q\x050", after=called(b"__builtin__\nint", b"h\x05")),
    "lone surrogate": tensor(name=b"X\x03\x00\x00\x00\xed\xa0\x80"),
}  # fmt: skip
_CHILD = """
import json, resource, sys, time
from pathlib import Path
from compresskit.checkpoint.state_dict_keys import find_state_dict
from compresskit.checkpoint.torch_file import read_torch_file
from compresskit.errors import InputError
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
out = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    start = time.process_time()
    try:
        find_state_dict(path, read_torch_file(path)[0])
        said = "accepted"
    except InputError as error:
        said = error.message
    except Exception as error:
        said = repr(error)
    # ru_maxrss would have the parent's
    used = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024
    out[path.stem] = (said, time.process_time() - start, used)
print(json.dumps(out))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_hostile_pickles_are_refused_within_bounds(tmp_path: Path) -> None:
    for name, stream in EVIL.items():
        (tmp_path / f"{name}.pt").write_bytes(archive(stream))
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert child.returncode == 0, child.stderr[-500:]
    found = json.loads(child.stdout)
    assert set(found) == set(EVIL)
    for name, (said, seconds, megabytes) in found.items():
        assert " is refused: " in said or "holds no tensors" in said, (name, said)
        assert seconds <= SECONDS, name
        assert megabytes <= MEGABYTES, name


def test_the_old_format_with_a_list_of_storages_that_cannot_be_keys(tmp_path: Path) -> None:
    out = io.BytesIO()
    for part in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}):
        out.write(pickle.dumps(part, 2))
    out.write(tensor().replace(text("cpu") + number(16) + b"tQ", text("cpu") + number(16) + b"NtQ"))
    out.write(pickle.dumps(["0", {}], 2) + struct.pack("<q", 16) + bytes(64))
    path = tmp_path / "m.pt"
    path.write_bytes(out.getvalue())
    with pytest.raises(InputError, match="list of storages"):
        open_tensors(path)


def test_a_group_that_is_deep_here_and_shallow_there_is_found(tmp_path: Path) -> None:
    shared = {"w": torch.ones(2)}
    deep: object = shared
    for _ in range(8):
        deep = {"a": deep}
    path = tmp_path / "m.pt"
    torch.save({"a_deep": deep, "state_dict": {"model": shared}}, path)
    saved, _ = read_torch_file(path)
    assert list(find_state_dict(path, saved).entries) == ["w"]


@pytest.mark.parametrize("key", [None, ("adam", 0), (), (None, True, 1.5, -3), 1 << 40, 1.5], ids=repr)
def test_entries_under_other_keys_than_text_are_no_hindrance(tmp_path: Path, key: object) -> None:
    """An optimizer or a table beside the weights is keyed as its owner likes; tensors in it are told like others."""
    weights, path = {"w": torch.ones(2)}, tmp_path / "m.pt"
    torch.save({"state_dict": weights, "meta": {key: {"m": torch.zeros(3)}}, key: 1}, path)
    tensors = open_tensors(path)
    assert list(tensors) == ["w"] and torch.equal(tensors.get("w"), torch.ones(2))
    assert any("meta" in note for note in tensors.notes)
    saved, _ = read_torch_file(path)
    assert saved["meta"][str(key)].keys() == {"m"}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data_beside_the_tensors_is_read_with_every_protocol(tmp_path: Path, protocol: int) -> None:
    beside = {
        "set": {1, "a"}, "frozen": frozenset({2}), "bytes": b"raw", "array": bytearray(b"x" * 9), "none": None,
        "tuple": (1, (2, 3), (1, 2, 3, 4)), "float": 1.5, "state": 1 << 127, "negative": -(10**12), "complex": 1 + 2j,
        7: "number", 1.5: "key", True: 1, None: "none", ("adam", 0, None, 1.5): [1], (): {},
        "size": torch.Size([2, 3]), "long": "ü" * 300,
    }  # fmt: skip
    path = tmp_path / "m.pt"
    torch.save({"w": torch.ones(2), "beside": beside}, path, pickle_protocol=protocol)
    assert torch.equal(open_tensors(path).get("w"), torch.ones(2))
