"""Reading ``.npz`` without trusting it: what it claims is checked before anything is allocated.

Stored members are mapped, not read. numpy alone would unpickle nothing here either, but it allocates whatever a
header asks for and never checks the CRC of what it maps.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from compresskit.errors import InputError, printable

MAX_RATIO = 100
"""Largest size of all members to the size of the file; real compressed images and tokens reach about 20."""
SMALL = 64 << 20
"""Archives that unpack to less than this many bytes may have any ratio."""
_BROKEN = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, RuntimeError, KeyError, OverflowError)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Arrays of an ``.npz`` by name; read-only, memory-mapped where the member isn't compressed.

    Raises:
        InputError: Missing, not a zip of ``.npy`` members, damaged, holding pickled objects, or a zip bomb.
    """
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_members(path, members, size)
            return {m.filename[: -len(".npy")]: _array(path, archive, m, size) for m in members}
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except _BROKEN as error:
        raise InputError(f"{path} is not a readable .npz: {error}", "write it with numpy.savez") from error


def _check_members(path: Path, members: list[zipfile.ZipInfo], size: int) -> None:
    names = [m.filename for m in members]
    if not names:
        raise InputError(f"{path} holds no arrays")
    for member in members:
        name = printable(member.filename, 80)
        if not member.filename.endswith(".npy"):
            raise InputError(f"{path}: member '{name}' is not an array", "write it with numpy.savez")
        if names.count(member.filename) > 1:
            raise InputError(f"{path}: member '{name}' is there twice")
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"{path}: member '{name}' is encrypted or compressed in another way than deflate")
    total = sum(m.file_size for m in members)
    if total > SMALL and total > MAX_RATIO * size:
        raise InputError(
            f"{path} has {size} bytes and unpacks to {total}, more than {MAX_RATIO} times as much",
            "if it is yours, write it with numpy.savez (not compressed)",
        )


def _array(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, size: int) -> np.ndarray:
    where = f"{path}: array '{printable(member.filename[:-4], 80)}'"
    with archive.open(member) as stream:
        shape, fortran, dtype = _header(stream, where)
        start = stream.tell()
        claimed = math.prod(shape) * dtype.itemsize
        if claimed != member.file_size - start:
            raise InputError(f"{where}: {shape} of {dtype} takes {claimed} bytes, found {member.file_size - start}")
    if member.compress_type == zipfile.ZIP_DEFLATED or claimed == 0:
        with archive.open(member) as stream:
            array: np.ndarray = np.lib.format.read_array(stream, allow_pickle=False)
            array.setflags(write=False)
            return array
    begin = _data_offset(path, member)
    if member.file_size != member.compress_size or begin + member.file_size > size:
        raise InputError(f"{where} reaches past the end of the file")
    raw = np.memmap(path, np.uint8, "r", begin, (member.file_size,))
    if _crc(raw) != member.CRC:
        raise InputError(f"{where} is damaged: its checksum doesn't match", "copy or download the file again")
    flat = raw[start:].view(np.ndarray).view(dtype)
    return flat.reshape(shape, order="F" if fortran else "C")


def _header(stream: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(stream)
    if version not in readers:
        raise InputError(f"{where} is in .npy version {version}, this program reads 1.0 and 2.0")
    try:
        shape, fortran, dtype = readers[version](stream)
    except Exception as error:  # it is read as Python's literals, whose parser raises several kinds
        raise InputError(f"{where} has a damaged header ({error})", "copy or download the file again") from error
    if dtype.kind not in "buif":
        raise InputError(f"{where} should hold numbers, found dtype {dtype}", "pickled objects and strings are refused")
    if any(n < 0 for n in shape):
        raise InputError(f"{where} claims the shape {shape}")
    return shape, fortran, dtype


def _data_offset(path: Path, member: zipfile.ZipInfo) -> int:
    with path.open("rb") as file:
        file.seek(member.header_offset)
        local = file.read(30)
    if len(local) != 30 or local[:4] != b"PK\x03\x04":
        raise InputError(f"{path}: member '{printable(member.filename, 80)}' has no local header")
    return member.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")


def _crc(raw: np.ndarray) -> int:
    value = 0
    for start in range(0, len(raw), 1 << 23):
        value = zlib.crc32(raw[start : start + (1 << 23)].data, value)
    return value
