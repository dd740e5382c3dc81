"""The zip archive that ``torch.save`` writes, checked member by member before anything in it is used."""

from __future__ import annotations

import mmap
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from compresskit.checkpoint.files import is_plain_name
from compresskit.errors import InputError

_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_BLOCK = 1 << 24
WAY_OUT = "save the weights with torch.save(model.state_dict(), ...) and pass the class with `arch` FILE.py:NAME"


@dataclass(frozen=True)
class Member:
    """One stored member: where its bytes lie in the file."""

    name: str
    start: int
    size: int


def read_archive(path: Path, data: mmap.mmap) -> dict[str, Member]:
    """The members of a torch checkpoint by name, without the archive's root folder.

    Checked: stored without compression or encryption, plain unique names under one root, the local headers agree with
    the directory, members inside the file and apart from each other, every CRC.

    Raises:
        InputError: Damaged, or not a checkpoint of tensors (TorchScript, ``torch.export``, any other zip).
    """
    infos = _directory(path)
    refuse_programs(path, [info.filename for info in infos])
    members = [_member(path, data, info) for info in infos]
    end = 0
    for member in sorted(members, key=lambda m: m.start):
        if member.start < end:
            raise InputError(f"{path} is damaged: its member '{member.name}' overlaps another one")
        end = member.start + member.size
    for member, info in zip(members, infos, strict=True):
        if _crc(data, member) != info.CRC:
            raise InputError(
                f"{path} is damaged: its member '{member.name}' has not the checksum that was saved",
                "get the file again",
            )
    return _rooted(path, members)


def refuse_programs(path: Path, names: list[str]) -> None:
    """Refuse the archives that hold code: TorchScript, and ``torch.export``'s .pt2 (which also holds free pickles).

    Raises:
        InputError: It is one.
    """
    tails = [name.partition("/")[2] for name in names]
    if any(tail == "constants.pkl" or tail.startswith("code/") for tail in tails):
        raise InputError(f"{path} is a TorchScript program, which is code; weights were expected", WAY_OUT)
    for tail, name in zip(tails, names, strict=True):
        model = tail.startswith("models/") and tail.endswith(".json")
        if model or tail in ("archive_format", "archive_version") or "serialized_exported_program" in name:
            raise InputError(
                f"{path} is a torch.export program (.pt2), which holds code; weights were expected", WAY_OUT
            )


def _directory(path: Path) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except Exception as error:  # zipfile raises many kinds on damaged files
        raise InputError(
            f"{path} is damaged or cut off: a zip archive whose directory cannot be read ({error})",
            "get the file again",
        ) from error


def _member(path: Path, data: mmap.mmap, info: zipfile.ZipInfo) -> Member:
    name = info.filename
    root, _, rest = name.partition("/")
    # torch.save names the root after the file, whose name may hold anything (a time of day with colons).
    if root in ("", ".", "..") or (rest and not is_plain_name(rest)):
        raise InputError(f"{path} is refused: its member '{name}' is not a plain name")
    if info.flag_bits & 1:
        raise InputError(f"{path} is refused: its member '{name}' is encrypted")
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise InputError(f"{path} is refused: its member '{name}' is compressed, torch.save stores without compression")
    damaged = InputError(
        f"{path} is damaged: its member '{name}' is not where the directory says", "get the file again"
    )
    if info.header_offset < 0 or info.header_offset + _LOCAL.size > len(data):
        raise damaged
    signature, *_, name_size, extra_size = _LOCAL.unpack_from(data, info.header_offset)
    begin = info.header_offset + _LOCAL.size
    start = begin + name_size + extra_size
    if signature != b"PK\x03\x04" or start + info.file_size > len(data):
        raise damaged
    if data[begin : begin + name_size] != info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437"):
        raise damaged
    return Member(name, start, info.file_size)


def _crc(data: mmap.mmap, member: Member) -> int:
    value = 0
    with memoryview(data) as view:
        for at in range(member.start, member.start + member.size, _BLOCK):
            value = zlib.crc32(view[at : min(at + _BLOCK, member.start + member.size)], value)
    return value


def _rooted(path: Path, members: list[Member]) -> dict[str, Member]:
    pickles = [m.name for m in members if m.name.endswith("/data.pkl") and m.name.count("/") == 1]
    if len(pickles) != 1:
        found = "none" if not pickles else f"{len(pickles)}"
        raise InputError(
            f"{path} is a zip archive, but not a torch checkpoint: one data.pkl was expected, found {found}"
        )
    root = pickles[0].removesuffix("data.pkl")
    out = {m.name.removeprefix(root): m for m in members if m.name.startswith(root)}
    if len(out) != len(members):
        raise InputError(f"{path} is refused: its archive has more than one root folder, or a member twice")
    return out
