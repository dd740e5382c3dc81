"""What is refused before any library touches a file, and why.

``torch.load`` checks no CRC and believes a view's claimed size, onnxruntime allocates what a tensor claims and follows
links for external data, transformers joins file names without containment: so each format is checked here first.
"""

from __future__ import annotations

from pathlib import Path

from compresskit.checkpoint.files import contained, map_file, regular_file, single_link
from compresskit.checkpoint.onnx_file import read_onnx_file
from compresskit.checkpoint.safetensors_file import read_safetensors_file
from compresskit.checkpoint.torch_file import read_torch_file

__all__ = [
    "check_onnx",
    "check_safetensors",
    "check_torch_file",
    "contained",
    "map_file",
    "regular_file",
    "single_link",
]


def check_torch_file(path: Path | str) -> None:
    """Check a file of ``torch.save``.

    Checked: members stored, plainly named, apart, inside the file and with right CRCs; one pickle that names tensors
    and plain data only; every view inside its storage and no larger than it. The kind before zip has no checksums:
    there the pickles, the sizes of the storages and the file's end are checked.

    Raises:
        InputError: What was found; for TorchScript, ``.pt2``, whole models and code, the way out.
    """
    read_torch_file(Path(path))


def check_safetensors(path: Path | str) -> None:
    """Check a .safetensors file: the header's length and JSON, dtypes, sizes, offsets, no overlap, gap or rest.

    Raises:
        InputError: What was found.
    """
    read_safetensors_file(Path(path))


def check_onnx(path: Path | str) -> None:
    """Check an ONNX file; see :func:`compresskit.checkpoint.onnx_file.read_onnx_file`.

    Raises:
        InputError: What was found.
    """
    read_onnx_file(Path(path))
