"""The tensors of a file, by name and one at a time: headers first, values from a file map when asked for."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compresskit.checkpoint.files import head
from compresskit.checkpoint.region import ITEM_SIZE, Region
from compresskit.checkpoint.safetensors_file import read_safetensors_file
from compresskit.checkpoint.state_dict_keys import find_state_dict, strip_training
from compresskit.checkpoint.torch_file import read_torch_file
from compresskit.errors import InputError, UsageError, listing

if TYPE_CHECKING:
    import torch

INDEX = ".index.json"
"""How the name of an index of shards ends."""
_BLOCK = 1 << 22
_HALVES = ("bfloat16", "float16")
_PARTS = ("scales", "repair_in", "repair_out")
_FLOATS = ("float64", "float32", "float16", "bfloat16", "complex64", "complex128")


class Tensors:
    """Tensors by name, in the order of the file; nothing is read before it is asked for.

    Attributes:
        ties: A name that shares its values with an earlier one, to that earlier name.
        metadata: Text by name, from a safetensors header.
        notes: Which of the file's tensors these are, where it holds others too.
    """

    def __init__(
        self,
        source: Path,
        parts: list[tuple[dict[str, Region], mmap.mmap]],
        metadata: dict[str, str] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.source = source
        self.metadata = metadata or {}
        self.notes = tuple(notes)
        regions: dict[str, Region] = {}
        self._maps: dict[str, mmap.mmap] = {}
        for entries, data in parts:
            regions.update(entries)
            self._maps.update(dict.fromkeys(entries, data))
        self._regions = regions
        self.ties = self._find_ties()

    def names(self) -> list[str]:
        """All names, tied ones included."""
        return list(self._regions)

    def __iter__(self) -> Iterator[str]:
        return iter(self._regions)

    def __len__(self) -> int:
        return len(self._regions)

    def __contains__(self, name: object) -> bool:
        return name in self._regions

    def region(self, name: str) -> Region:
        """Where a tensor lies in its file; needs no torch.

        Raises:
            InputError: There is no such tensor.
        """
        try:
            return self._regions[name]
        except KeyError:
            raise InputError(f"{self.source} has no tensor '{name}'; it has {listing(self.names())}") from None

    def shape(self, name: str) -> tuple[int, ...]:
        """Sizes of a tensor."""
        return self.region(name).shape

    def dtype_name(self, name: str) -> str:
        """``float32`` …; needs no torch."""
        return self.region(name).dtype

    def dtype(self, name: str) -> torch.dtype:
        """The torch dtype of a tensor, as it is stored."""
        import torch

        found = getattr(torch, self.region(name).dtype)
        assert isinstance(found, torch.dtype)  # narrows the type; ITEM_SIZE names dtypes only
        return found

    def nbytes(self) -> int:
        """Bytes of all tensors, tied ones counted once."""
        return sum(region.nbytes for name, region in self._regions.items() if name not in self.ties)

    def numel(self) -> int:
        """Elements of all tensors, tied ones counted once."""
        return sum(region.numel for name, region in self._regions.items() if name not in self.ties)

    def half(self) -> str | None:
        """``bfloat16`` or ``float16``, whichever more weights are stored in; None where none are.

        Parts of packed weights don't count: their dtype is that of the format.
        """
        count = dict.fromkeys(_HALVES, 0)
        for name, region in self._regions.items():
            if region.dtype in count and name.rpartition(".")[2] not in _PARTS:
                count[region.dtype] += region.numel
        most = max(count, key=lambda dtype: count[dtype])
        return most if count[most] else None

    def get(self, name: str) -> torch.Tensor:
        """One tensor, dense, on the CPU, in its stored dtype.

        A dense tensor is a view of the file map (copy on write: writing to it never reaches the file); one with gaps or
        in another order of axes is copied.
        """
        region = self.region(name)
        return self._view(name, region).contiguous()

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and tensor, one at a time."""
        return ((name, self.get(name)) for name in self._regions)

    def release(self) -> None:
        """Give back the memory of the file maps; what is asked for later is read again.

        Not for tensors that something writes to, or holds and may write to: it would read what the file has.
        """
        advice = getattr(mmap, "MADV_DONTNEED", None)
        if advice is not None:  # elsewhere the system takes pages when it needs them
            for data in {id(data): data for data in self._maps.values()}.values():
                data.madvise(advice)

    def _view(self, name: str, region: Region) -> torch.Tensor:
        import torch

        dtype = self.dtype(name)
        if region.numel == 0:
            return torch.empty(region.shape, dtype=dtype)
        item = ITEM_SIZE[region.dtype]
        begin = region.start + region.offset * item
        last = sum((n - 1) * s for n, s in zip(region.shape, region.strides, strict=True))
        raw = torch.frombuffer(self._maps[name], dtype=torch.uint8, count=(last + 1) * item, offset=begin)
        if begin % item:
            raw = raw.clone()  # a view of another dtype wants its first byte aligned
        # A byte other than 0 and 1 is undefined behaviour in a bool tensor.
        flat = raw.ne(0) if region.dtype == "bool" else raw.view(dtype)
        return flat.as_strided(region.shape, region.strides)

    def _find_ties(self) -> dict[str, str]:
        first: dict[tuple[int, Region], str] = {}
        ties = {}
        for name, region in self._regions.items():
            if region.numel == 0:
                continue
            owner = first.setdefault((id(self._maps[name]), region), name)
            if owner != name:
                ties[name] = owner
        return ties


def open_tensors(path: Path | str, *, allow_nonfinite: bool = False, key: str | None = None) -> Tensors:
    """Open the tensors of a ``torch.save`` file (.pt, .pth, .th, .bin …), a .safetensors file, or shards of them.

    The kind is told by the content. The state dict is taken out of its wrappers (``state_dict``, ``model`` …) and
    what training put into names is taken off.

    Args:
        path: The file; for shards their folder, or their index.
        allow_nonfinite: Accept NaN and infinities.
        key: Which of the state dicts that a ``torch.save`` file holds; keys one inside another are joined by points.

    Raises:
        UsageError: There is nothing under ``key``.
        InputError: The file is missing, damaged, hostile, of another kind, or has NaN or infinite values.
    """
    path = Path(path)
    alone = path.is_dir() or path.name.endswith(INDEX) or head(path, 9)[8:] == b"{"
    if key is not None and alone:
        raise UsageError(f"`key` is for a file of torch.save; {path} holds one set of tensors", "remove `key`")
    if path.is_dir() or path.name.endswith(INDEX):
        from compresskit.checkpoint.shards import open_shards

        tensors = open_shards(path)
    else:
        tensors = _open(path, key)
    if not allow_nonfinite:
        check_finite(tensors)
    return tensors


def _open(path: Path, key: str | None) -> Tensors:
    start = head(path, 9)
    metadata: dict[str, str] = {}
    notes: list[str] = []
    if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[8:] != b"{"):
        saved, data = read_torch_file(path)
        found = find_state_dict(path, saved, key)
        entries, notes = found.entries, found.notes(path)
    elif start[8:] == b"{":
        entries, metadata, data = read_safetensors_file(path)
        if not entries:
            raise InputError(f"{path} holds no tensors")
    else:
        raise InputError(f"{path} is not a model: neither a torch.save file nor safetensors ({_looks_like(start)})")
    return Tensors(path, [(strip_training(entries), data)], metadata, notes)


def _looks_like(start: bytes) -> str:
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start):
        return "it looks like text"
    return f"it begins with {start[:8]!r}"


def check_finite(tensors: Tensors) -> None:
    """Refuse NaN and infinities, block by block.

    Raises:
        InputError: Names the tensors that have them.
    """
    bad = []
    for name in tensors:
        if name not in tensors.ties and not _finite(tensors, name):
            bad.append(name)
        tensors.release()
    if bad:
        raise InputError(
            f"{tensors.source} has NaN or infinite values in {listing(bad)}",
            "pass `allow_nonfinite` to go on all the same",
        )


def stored_dtype(tensor: torch.Tensor, half: str | None) -> torch.dtype:
    """The dtype to write a tensor in: that of the original's weights where it holds every value.

    Args:
        tensor: Of any dtype; only float32 is changed.
        half: See :class:`~compresskit.model.Model`.
    """
    import torch

    if half is None or tensor.dtype != torch.float32:
        return tensor.dtype
    dtype: torch.dtype = getattr(torch, half)
    return dtype if torch.equal(tensor.to(dtype).float(), tensor) else tensor.dtype


def _finite(tensors: Tensors, name: str) -> bool:
    import torch

    region = tensors.region(name)
    if region.numel == 0 or not (region.dtype in _FLOATS or region.dtype.startswith("float8")):
        return True
    tensor = tensors.get(name).reshape(-1)
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor).reshape(-1)
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    for at in range(0, tensor.numel(), _BLOCK):
        block = tensor[at : at + _BLOCK]
        if region.dtype.startswith("float8"):
            block = block.float()
        # A finite sum proves finite terms, in one pass and without a mask; an overflowing one proves nothing.
        if not bool(block.sum(dtype=wide).isfinite()) and not bool(block.isfinite().all()):
            return False
    return True
