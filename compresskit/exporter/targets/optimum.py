"""A folder of an encoder-decoder for optimum and transformers.js: an encoder, and a decoder with a cache."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from compresskit.errors import GateError, UsageError
from compresskit.exporter.accuracy import set_accuracy_level
from compresskit.exporter.checked import LEVEL, export_checked
from compresskit.exporter.onnx_export import export_onnx
from compresskit.exporter.parity import USUAL
from compresskit.exporter.slim import DATA_ABOVE
from compresskit.exporter.targets.encoder_decoder import SIZES, Decoder, Encoder, Shape, hears, plain_attention
from compresskit.exporter.targets.merged_decoder import write_merged
from compresskit.exporter.targets.target import Target, Written, copy_extras
from compresskit.model import Model, reads_and_writes
from compresskit.ops.packed.layout import Grid
from compresskit.report import Gate
from compresskit.runtimes.text import DECODER
from compresskit.runtimes.text.encoder_decoder import ENCODER, Pair
from compresskit.stage import Progress, silent

_SOURCE, _NEW = 12, 16
_FAR = 1e-3
"""How far logits through the cache may be from the module's whole passes, relative: sums are taken in other orders."""


class Optimum(Target):
    """A folder with encoder_model.onnx, decoder_model_merged.onnx, the config and the tokenizer."""

    name: ClassVar[str] = "optimum"
    package: ClassVar[str] = "transformers"
    extra: ClassVar[str] = "hf"
    ending: ClassVar[str] = "-optimum"
    marker: ClassVar[str | None] = ENCODER
    data_above: ClassVar[int] = DATA_ABOVE
    """Bytes of a part's weights from which on they lie beside its file."""
    architectures: ClassVar[tuple[str, ...]] = ("t5", "mt5", "bart", "mbart", "marian", "pegasus", "whisper")

    def reason_against(self, grid: Grid) -> str | None:
        """See :class:`Target`: all formats have ONNX operators."""
        return None

    def check(self, model: Model, grids: Iterable[tuple[str, Grid]] = ()) -> None:
        """See :class:`Target`."""
        self.check_package()
        config = getattr(model.body, "config", None)
        kind = getattr(config, "model_type", "")
        if not reads_and_writes(model.body) or kind not in self.architectures:
            raise UsageError(
                f"`to` optimum can't carry {model.card.arch.reference}",
                f"it carries encoder-decoders that generate: {', '.join(self.architectures)}",
            )

    def write(self, model: Model, place: Path, progress: Progress = silent) -> Written:
        """See :class:`Target`. The gates: the parity of each part, logits through the cache, and greedy tokens."""
        module = model.module.eval()
        shape = Shape.of(module)
        progress("writing for optimum", 0, 4)
        with plain_attention(module):
            found = export_checked(
                Encoder(module), shape.source, place / ENCODER, accuracy_level=0, data_above=self.data_above
            )
            limit = f"≤ {USUAL.relative:g} relative"
            gates = [Gate(name="encoder parity", limit=limit, value=found.parity.rel_l2, passed=found.parity.passed)]
            for at, past in enumerate((False, True), 1):
                progress("writing for optimum", at, 4)
                part = Decoder(module, shape, past=past)
                export_onnx(
                    part, shape.decoder(past=past), place / _part(past), sizes=SIZES, data_above=self.data_above
                )
            parts = (place / _part(False), place / _part(True))
            write_merged(*parts, shape, place / DECODER, data_above=self.data_above)
            for written in parts:
                for file in place.glob(f"{written.name}*"):  # the graph, and weights beside it
                    file.unlink()
            copy_extras(model, place)
            progress("writing for optimum", 3, 4)
            gates += prove(module, place, shape)
        notes = ["both steps of the decoder are in one file, with each weight once: optimum calls it merged"]
        fast = [set_accuracy_level(place / name, LEVEL) for name in (ENCODER, DECODER)]
        if any(fast):
            notes.append("packed matrix products round activations to 8 bit")
        progress("writing for optimum", 4, 4)
        return Written(gates, notes)


def _part(past: bool) -> str:
    return "decoder_with_past_model.onnx" if past else "decoder_model.onnx"


def prove(module: Any, place: Path, shape: Shape) -> list[Gate]:
    """Greedy tokens and their logits, through the files with their cache and by whole passes of the module.

    Raises:
        GateError: They differ.
    """
    generator = torch.Generator().manual_seed(0)
    if hears(module):
        spec = shape.source[0]
        source = {spec.name: torch.randn((1, *map(int, spec.shape[1:])), generator=generator)}
    else:
        ids = torch.randint(3, shape.vocabulary, (1, _SOURCE), generator=generator)
        source = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    seen: list[np.ndarray] = []

    def choose(logits: np.ndarray) -> int:
        seen.append(logits)
        return int(logits.argmax())

    pair = Pair(place)
    steps = pair.steps({name: value.numpy() for name, value in source.items()}, choose)
    tokens = [pair.start, *(next(steps) for _ in range(_NEW))]
    with torch.inference_mode():
        logits = module(**source, decoder_input_ids=torch.tensor([tokens[:-1]])).logits[0].float().numpy()
    off = max(float(np.abs(a - b).max()) for a, b in zip(seen, logits, strict=True)) / float(np.abs(logits).max())
    same = sum(int(a.argmax()) == int(b.argmax()) for a, b in zip(seen, logits, strict=True))
    if off > _FAR or same < _NEW:
        raise GateError(
            f"through the cache logits are {off:.2g} relative from the module's, {same} of {_NEW} greedy tokens equal"
        )
    return [
        Gate(name="cached logits", limit=f"≤ {_FAR:g} relative", value=off, passed=True, reason=f"{_NEW} steps"),
        Gate(name="greedy tokens", limit=f"{_NEW} of {_NEW}", value=float(same), passed=True),
    ]
