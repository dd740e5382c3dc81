"""The lines of Python that run a bundle, as its README.md shows them; each block runs in the bundle's own folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compresskit.checkpoint.bundle import ONNX_NAME, WEIGHTS_NAME
from compresskit.checkpoint.files import read_json
from compresskit.checkpoint.onnx_metadata import TOKENIZER
from compresskit.data.folder import wanted
from compresskit.data.prepare import primary, taken
from compresskit.data.tokens import longest
from compresskit.errors import InputError
from compresskit.model import Card, InputSpec
from compresskit.usage import EMBEDDING, Pixels

SAMPLES = {"texts": "A text.", "images": "picture.jpg", "rows": "rows.csv", "arrays": "samples.npz"}
"""What a user would type for each kind of model."""
_SIZE = 64
_LENGTH = 8


def kind_of_samples(folder: Path, card: Card) -> str | None:
    """What :func:`compresskit.pipeline` takes for a bundle (a key of :data:`SAMPLES`); None where it takes nothing."""
    if not (folder / ONNX_NAME).is_file() or card.task == "causal-lm" or not card.inputs:
        return None
    kind = taken(card.inputs)
    unknown = (kind == "texts" and not (folder / TOKENIZER).is_file()) or (kind == "images" and not card.usage.pixels)
    return "arrays" if unknown else kind


def with_compresskit(card: Card, kind: str) -> str:
    """Three lines with this package.

    Args:
        card: Of the bundle.
        kind: A key of :data:`SAMPLES`.
    """
    given = f'"{SAMPLES[kind]}"' if kind in ("texts", "images") else _zeros(card.inputs)
    first = "import compresskit" if kind in ("texts", "images") else "import compresskit\nimport numpy as np"
    return f'{first}\n\nask = compresskit.pipeline(".")\nprint(ask({given}))'


def alone(folder: Path, card: Card, kind: str, outputs: Sequence[str]) -> str:
    """Lines with onnxruntime, and without this package.

    Args:
        folder: The bundle.
        card: Its card.
        kind: A key of :data:`SAMPLES`.
        outputs: Of the graph.
    """
    imports = ["import numpy as np", "import onnxruntime"]
    if kind == "texts":
        imports.append("from tokenizers import Tokenizer")
        lines = _texts(folder, card)
    elif kind == "images":
        imports.append("from PIL import Image, ImageOps")
        lines = _image(card)
    else:
        lines = [f"feeds = {_zeros(card.inputs)}"]
    lines.append(f'session = onnxruntime.InferenceSession("{ONNX_NAME}")')
    if card.usage.scores is not None:
        wanted_output = '["logits"]' if "logits" in outputs else "None"
        lines.append(f"scores = session.run({wanted_output}, feeds)[0]")
        if card.usage.labels:
            imports.insert(0, "import json\nfrom pathlib import Path\n")
            lines.append('labels = json.loads(Path("compresskit.json").read_text(encoding="utf-8"))["usage"]["labels"]')
            lines.append("print([labels[best] for best in scores.argmax(axis=1)])")
        else:
            lines.append("print(scores.argmax(axis=1))")
    elif EMBEDDING in outputs:
        lines += [f'embeddings = session.run(["{EMBEDDING}"], feeds)[0]', "print(embeddings.shape)"]
    else:
        lines += ["outputs = session.run(None, feeds)", "print([output.shape for output in outputs])"]
    return "\n".join([*imports, "", *lines])


def without_onnx(folder: Path, card: Card) -> str:
    """Lines for a bundle that holds no ONNX file: with the transformers library where it reads the folder."""
    if transformers_reads(folder, card):
        return f'import transformers\n\nmodel = transformers.{card.arch.reference}.from_pretrained(".")'
    if card.arch.kind == "python":
        return f'import compresskit\n\nmodel = compresskit.load(".", arch="{card.arch.reference}").module'
    if card.arch.kind == "transformers":
        return 'import compresskit\n\nmodel = compresskit.load(".").module'
    return f'from safetensors.numpy import load_file\n\ntensors = load_file("{WEIGHTS_NAME}")'


def transformers_reads(folder: Path, card: Card) -> bool:
    """Whether the weights are in a format that transformers knows: ours have a config without a method."""
    try:
        told = read_json(folder / "config.json", 1 << 24).get("quantization_config")
    except InputError:
        return False
    return card.arch.kind == "transformers" and (told is None or bool(told.get("quant_method")))


def _texts(folder: Path, card: Card) -> list[str]:
    usage = card.usage
    texts = '["A first text.", "And another one."]'
    if usage.prompt or usage.lower:
        given = f"{usage.prompt!r} + text" if usage.prompt else "text"
        texts = f"[({given}){'.lower()' if usage.lower else ''} for text in {texts}]"
    fields = {"attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    ids = primary(card.inputs)[0].name
    arrays = [
        f'    "{spec.name}": np.array([one.{fields[spec.name]} for one in encoded]),'
        for spec in card.inputs
        if spec.name in fields
    ]
    length = primary(card.inputs)[0].shape[1]
    most = min(usage.tokens or 1 << 30, longest(folder))
    padding = f"pad_id={_pad(folder)}"
    if isinstance(length, int):
        padding, most = f"{padding}, length={length}", length
    return [
        f"texts = {texts}",
        f'tokenizer = Tokenizer.from_file("{TOKENIZER}")',
        f"tokenizer.enable_padding({padding})",
        *([f"tokenizer.enable_truncation({most})"] if most < 1 << 30 else []),
        "encoded = tokenizer.encode_batch(texts)",
        "feeds = {",
        f'    "{ids}": np.array([one.ids for one in encoded]),',
        *arrays,
        "}",
    ]


def _pad(folder: Path) -> int:
    try:
        found = read_json(folder / "config.json", 1 << 24).get("pad_token_id")
    except InputError:
        return 0
    return found if isinstance(found, int) else 0


def _image(card: Card) -> list[str]:
    spec = primary(card.inputs)[0]
    channels, size = wanted(spec)
    pixels = card.usage.pixels or Pixels()
    opened = f'Image.open("picture.jpg").convert("{"L" if channels == 1 else "RGB"}")'
    if size is not None:
        opened = f"ImageOps.fit({opened}, {size[::-1]}, Image.Resampling.BILINEAR)"
    numbers = "/ 255" if abs(pixels.scale * 255 - 1) < 1e-6 else f"* {pixels.scale!r}"
    scaled = f"np.asarray(image, np.float32) {numbers}"
    if pixels.mean:
        scaled = f"({scaled} - {list(pixels.mean)}) / {list(pixels.std)}"
    last = spec.shape[3] == channels and spec.shape[1] != channels
    turn = "pixels" if last else "pixels.transpose(2, 0, 1)"
    shaped = ["pixels = pixels[:, :, None]"] if channels == 1 else []
    return [
        f"image = {opened}",
        f"pixels = {scaled}",
        *shaped,
        f'feeds = {{"{spec.name}": {turn}[None].astype(np.{spec.dtype})}}',
    ]


def _zeros(inputs: Sequence[InputSpec]) -> str:
    """Inputs of zeros, as code."""
    parts = []
    for spec in inputs:
        free = {axis: 1 if axis == spec.batch_axis else _LENGTH for axis in range(len(spec.shape))}
        shape = tuple(size if isinstance(size, int) else free[axis] for axis, size in enumerate(spec.shape))
        kind = "ones" if "mask" in spec.name else "zeros"
        parts.append(f'"{spec.name}": np.{kind}({shape}, np.{spec.dtype})')
    return "{" + ", ".join(parts) + "}"
