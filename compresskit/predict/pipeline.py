"""A model that answers to what users have: its inputs prepared, run, and its outputs read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from compresskit.checkpoint.load import kind_of, load
from compresskit.data.prepare import parse_normalize
from compresskit.errors import InputError, UsageError
from compresskit.model import Model
from compresskit.predict.answers import Answers, answers
from compresskit.predict.samples import Feeds, Preparing
from compresskit.quality.forward import forward
from compresskit.runtimes import get, runs_modules
from compresskit.runtimes.base import Session, require
from compresskit.usage import Pixels

Given = str | Path | np.ndarray | Mapping[str, np.ndarray] | Sequence[str | Path]
BATCH = 32


class Pipeline:
    """Answers of one model; opened by :func:`pipeline`.

    Attributes:
        card: What is known of the model; ``card.usage`` has its labels and how its inputs are prepared.
    """

    def __init__(self, model: Model, session: Session, folder: Path) -> None:
        self.card = model.card
        self._session = session
        self._preparing = Preparing(session.inputs, model.card.usage, folder)

    @property
    def kind(self) -> str:
        """What one sample is: ``texts``, ``images``, ``rows`` or ``arrays``."""
        return self._preparing.kind

    def __call__(self, inputs: Given, *, top: int = 5, batch: int = BATCH) -> Any:
        """Answer to one sample, or to several.

        Args:
            inputs: A text or the path of an image, or a list of such; an array ``(n, …)`` of samples, where bytes are
                pixels; or arrays by the names of the model's inputs.
            top: Classes to name, the best first; 0 is all.
            batch: Samples of one call of the model.

        Returns:
            Of a classifier, for each sample, a list of ``{"label": …, "score": …}``, the best first. Of a model of
            embeddings an array ``(n, width)`` ``float32``. Else a dictionary of the outputs by name, each ``(n, …)``.
            For one text or path it is that sample's own: a list of classes, an array ``(width,)``, outputs without
            their first axis.

        Raises:
            InputError: A sample is missing, damaged, or not what the model takes.
            MachineError: Pillow or the tokenizers library isn't installed, or memory runs out.
        """
        alone = isinstance(inputs, (str, Path))
        parts = [
            answers(forward(self._session, feeds, batch), feeds.get("attention_mask"), self.card.usage, top)
            for feeds in self._feeds([inputs] if isinstance(inputs, (str, Path)) else inputs, batch)
        ]
        if not parts:
            raise InputError("there are no samples to predict")
        found = _joined(parts)
        if not alone:
            return found
        return {name: array[0] for name, array in found.items()} if isinstance(found, dict) else found[0]

    def _feeds(
        self, inputs: np.ndarray | Mapping[str, np.ndarray] | Sequence[str | Path], batch: int
    ) -> Iterator[Feeds]:
        preparing = self._preparing
        if isinstance(inputs, np.ndarray):
            yield preparing.arrays({"x": inputs})
        elif isinstance(inputs, Mapping):
            yield preparing.arrays(inputs)
        else:
            for start in range(0, len(inputs), batch):
                part = inputs[start : start + batch]
                if preparing.kind == "texts":
                    yield preparing.texts([str(text) for text in part])
                elif preparing.kind == "images":
                    yield preparing.images([Path(path) for path in part])
                else:
                    raise UsageError("this model takes neither texts nor images", "give an array, or arrays by input")


def _joined(parts: Sequence[Any]) -> Answers:
    """The answers to several batches as one."""
    first = parts[0]
    if isinstance(first, np.ndarray):
        return np.concatenate(parts)
    if isinstance(first, list):
        return [one for part in parts for one in part]
    joined = {}
    for name in first:
        arrays = [part[name] for part in parts]
        if len({array.shape[1:] for array in arrays}) > 1:  # vectors of tokens, padded to the longest text of a batch
            arrays = [_padded(array, max(array.shape[1] for array in arrays)) for array in arrays]
        joined[name] = np.concatenate(arrays)
    return joined


def _padded(array: np.ndarray, length: int) -> np.ndarray:
    return np.pad(array, [(0, 0), (0, length - array.shape[1]), *((0, 0) for _ in array.shape[2:])])


def pipeline(
    model: str | Path,
    *,
    labels: Sequence[str] | None = None,
    normalize: str | None = None,
    runtime: str = "onnxruntime",
    threads: int = 0,
    allow_nonfinite: bool = False,
) -> Pipeline:
    """Open a bundle or an ONNX file, to be asked. Needs no torch.

    Args:
        model: A bundle with a ``model.onnx``, or an ``.onnx`` file; a tokenizer is found beside it.
        labels: Names of the classes, in the order of the outputs; None are those of the bundle.
        normalize: Of images, as ``.5,.5,.5/.2,.2,.2`` or ``imagenet``; None is that of the bundle.
        runtime: ``onnxruntime`` or ``openvino``, or one of their variants.
        threads: Of one operator; 0 is the runtime's choice.
        allow_nonfinite: Accept NaN among the weights.

    Raises:
        InputError: There is no ONNX file, or it is damaged, or it is a language model, which needs a loop around it.
        MachineError: The runtime isn't installed.
        UsageError: There is no such runtime, or it runs no ONNX files.
    """
    path = Path(model)
    kind = kind_of(path)
    if kind not in ("onnx", "bundle"):
        raise InputError(f"{path} is neither an .onnx file nor a bundle", f"compresskit export {path} first")
    if runs_modules(runtime):
        raise UsageError(f"{runtime} runs modules, not ONNX files", "take onnxruntime or openvino")
    require(get(runtime))
    loaded = load(path, allow_nonfinite=allow_nonfinite, shipped=True)
    body = loaded.body
    if not isinstance(body, Path) or body.suffix != ".onnx":
        raise InputError(f"{path} holds no model.onnx", "make the bundle without `no_export`")
    if loaded.card.task == "causal-lm":
        raise InputError(f"{path} is a language model: predict runs a model once, and generates no text")
    if labels is not None:
        usage = loaded.card.usage
        named = replace(usage, labels=tuple(labels), scores=usage.scores or "softmax")
        loaded = replace(loaded, card=replace(loaded.card, usage=named))
    if (given := parse_normalize(normalize)) is not None:
        pixels = replace(loaded.card.usage.pixels or Pixels(), mean=given.mean, std=given.std)
        loaded = replace(loaded, card=replace(loaded.card, usage=replace(loaded.card.usage, pixels=pixels)))
    session = get(runtime).open(body, threads)
    return Pipeline(loaded, session, path if path.is_dir() else path.parent)
