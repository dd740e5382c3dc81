"""Samples from a folder of class folders: one image a file, labels from the sorted folder names."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from compresskit.data.prepare import Plan, make_plan, parse_normalize, primary, shape_text
from compresskit.data.source import Batch
from compresskit.data.walking import Fingerprint, fair_order, spans
from compresskit.errors import InputError, missing_extra
from compresskit.model import InputSpec
from compresskit.usage import Pixels

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "TIFF", "GIF")
MAX_PIXELS = 100_000_000
"""Images with more pixels are refused before they are unpacked."""
_BITS, _PHOTOMETRIC, _BLACK_IS_ZERO = 258, 262, 1
"""Tags of TIFF: bits of a sample, what its values mean, and the one meaning that is read of those over 8 bit."""


def _pillow() -> Any:
    try:
        return importlib.import_module("PIL.Image")
    except ImportError as error:
        raise missing_extra("Pillow", "images") from error


def read_image(path: Path, mode: str, size: tuple[int, int] | None, pixels: Pixels | None = None) -> np.ndarray:
    """One image as ``uint8`` ``(H, W, C)``.

    An image of another size is scaled until it covers ``size`` (height, width) and its middle is cut out. Pixels of 16
    bit are rounded to 8; alpha is dropped, palettes are looked up.

    Args:
        path: The file; its format is told by its content.
        mode: ``RGB`` or ``L``.
        size: Height and width to give; None keeps the image's.
        pixels: How the model's own files say that images are scaled and cut, before ``size`` is looked at.

    Raises:
        InputError: Not an image, damaged, of more than :data:`MAX_PIXELS`, or of pixels whose range isn't known.
        MachineError: Pillow isn't installed.
    """
    image_module = _pillow()
    try:
        with image_module.open(path, formats=_FORMATS) as file:
            if file.width * file.height > MAX_PIXELS:
                raise InputError(f"{path} has {file.width}×{file.height} pixels, at most {MAX_PIXELS} are read")
            image = _eight_bit(path, file, image_module).convert(mode)
        if pixels is not None:
            image = _fitted(image, pixels)
        if size is not None and (image.height, image.width) != size:
            image = _cover(image, size, image_module.Resampling.BILINEAR)
        found = np.asarray(image)
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise what they like, struct.error and SyntaxError included
        raise InputError(f"{path} is not a readable image: {error}") from error
    return found if found.ndim == 3 else found[:, :, None]


def _eight_bit(path: Path, file: Any, image_module: Any) -> Any:
    """The image with pixels of 8 bit. Pillow's own ``convert`` would clip wider ones: all of them white, or black."""
    if not file.mode.startswith(("I", "F")):
        return file
    tags = getattr(file, "tag_v2", {})
    declared = file.mode.startswith("I;16") or file.format in ("PNG", "PPM")
    if file.mode == "F" or not declared or tags.get(_PHOTOMETRIC, _BLACK_IS_ZERO) != _BLACK_IS_ZERO:
        kind = "floating point" if file.mode == "F" else "32 bit or inverted"
        raise InputError(
            f"{path} has {kind} pixels, whose range is unknown",
            "save it with 8 or 16 bit, or give the prepared samples as an .npz",
        )
    white = 2 ** tags.get(_BITS, (16,))[0] - 1
    pixels = np.asarray(file).astype(np.uint32)
    return image_module.fromarray(((pixels * 255 + white // 2) // white).astype(np.uint8))


def _fitted(image: Any, pixels: Pixels) -> Any:
    """The image as :class:`~compresskit.usage.Pixels` has it; a crop that is larger than the image gets black rims."""
    if len(pixels.resize) == 1:
        short, side = min(image.width, image.height), pixels.resize[0]
        image = image.resize((image.width * side // short, image.height * side // short), resample=pixels.filter)
    elif pixels.resize:
        image = image.resize(pixels.resize[::-1], resample=pixels.filter)
    if not pixels.crop:
        return image
    height, width = pixels.crop
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _cover(image: Any, size: tuple[int, int], resample: Any) -> Any:
    height, width = size
    ratio = max(height / image.height, width / image.width)
    scaled = image.resize(
        (max(width, round(image.width * ratio)), max(height, round(image.height * ratio))), resample=resample
    )
    left, top = (scaled.width - width) // 2, (scaled.height - height) // 2
    return scaled.crop((left, top, left + width, top + height))


class ImageFolder:
    """Images read batch by batch, in a shuffled order: by class and file name, the first would be of one class."""

    kind, labelled = "images", True

    def __init__(self, name: str, files: list[tuple[Path, int]], classes: list[str], mode: str, plan: Plan) -> None:
        self.name, self.classes = name, classes
        order = fair_order(np.array([label for _, label in files], np.int64))
        self._files = files if order is None else [files[index] for index in order]
        self._mode, self._plan = mode, plan
        self.normalize = plan.normalize
        self.scaled = plan.pixels
        height, width = plan.shape[2:] if plan.axes == (0, 3, 1, 2) else plan.shape[1:3]
        self._size = (int(height), int(width))

    def __len__(self) -> int:
        return len(self._files)

    def batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        """See :class:`~compresskit.data.source.Source`."""
        for span in spans(len(self), size, limit):
            yield self._of(self._files[span])

    def take(self, rows: np.ndarray) -> Batch:
        """The images of some rows, int64 ``(n,)``, in that order."""
        return self._of([self._files[row] for row in rows])

    def _of(self, files: list[tuple[Path, int]]) -> Batch:
        block = np.stack([read_image(path, self._mode, self._size) for path, _ in files])
        return Batch({self._plan.name: self._plan.apply(block)}, np.array([label for _, label in files], np.int64))

    def fingerprint(self) -> str:
        """See :class:`~compresskit.data.source.Source`; of the files' bytes and the order of the classes."""
        prepared = Fingerprint({"kind": "folder", "size": self._size, "mode": self._mode, **self._plan.options()})
        for path, label in self._files:
            prepared.data(str(label).encode())
            prepared.data(path.read_bytes())
        return prepared.hex()


def open_folder(name: str, folder: Path, normalize: str | None, specs: tuple[InputSpec, ...]) -> ImageFolder:
    """Images of a folder of class folders; see :func:`compresskit.data.open_source`.

    Raises:
        InputError: No class folders, a class without images, or a model whose input isn't an image.
        MachineError: Pillow isn't installed.
        UsageError: ``normalize`` doesn't fit.
    """
    _pillow()
    inputs = primary(specs)
    if specs and (len(inputs) != 1 or len(inputs[0].shape) != 4):
        found = ", ".join(f"{s.name} {shape_text(s.shape)}" for s in specs)
        raise InputError(f"{name} is a folder of images; the model takes {found}, not one image (batch, C, H, W)")
    files, classes = _listing(folder)
    spec = inputs[0] if inputs else None
    channels, size = wanted(spec)
    mode = "L" if channels == 1 else "RGB"
    sample = read_image(files[0][0], mode, size)
    plan = make_plan(str(files[0][0]), sample[None], spec.name if spec else "x", spec, parse_normalize(normalize))
    return ImageFolder(name, files, classes, mode, plan)


def wanted(spec: InputSpec | None) -> tuple[int | None, tuple[int, int] | None]:
    """The number of channels and the height and width that a model asks for, each None when it leaves it open."""
    if spec is None:
        return None, None
    first, last = spec.shape[1], spec.shape[3]
    channels_last = last in (1, 3) and first not in (1, 3)
    channels, height, width = (last, *spec.shape[1:3]) if channels_last else (first, *spec.shape[2:])
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    return (channels if isinstance(channels, int) else None), size


def _listing(folder: Path) -> tuple[list[tuple[Path, int]], list[str]]:
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not classes:
        raise InputError(
            f"{folder} holds no class folders", "expected FOLDER/CLASS/image.png, one folder for each class"
        )
    files: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        own = sorted(
            p for p in (folder / name).iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")
        )
        if not own:
            raise InputError(f"{folder / name} holds no images", f"images end in {', '.join(SUFFIXES)}")
        files += [(path, label) for path in own]
    return files, classes
