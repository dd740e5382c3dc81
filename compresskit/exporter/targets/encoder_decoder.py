"""The parts of an encoder-decoder as functions of flat tensors."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from compresskit.model import InputSpec

SIZES = {"encoder_sequence": 7, "past_sequence": 5}
"""Of axes while tracing; two that are equal by chance could be taken for one."""
SIDES, PARTS = ("decoder", "encoder"), ("key", "value")


@dataclass(frozen=True)
class Shape:
    """What the files of a model need to know of it.

    Attributes:
        layers: Of the decoder.
        heads: Of the decoder's attention, of keys and values.
        head: Width of one.
        width: Of the encoder's output.
        vocabulary: Number of tokens.
        source: What the encoder takes.
        length: Of the encoder's output: an axis, or a number where it is fixed.
        masked: The source has a mask.
    """

    layers: int
    heads: int
    head: int
    width: int
    vocabulary: int
    source: tuple[InputSpec, ...]
    length: str | int
    masked: bool

    @classmethod
    def of(cls, module: Any) -> Shape:
        """Of a transformers model: T5, BART and Whisper name their sizes differently."""
        config = module.config

        def first(*names: str) -> Any:
            return next(value for name in names if (value := getattr(config, name, None)) is not None)

        width, heads = first("d_model"), first("decoder_attention_heads", "num_heads")
        layers, vocabulary = first("num_decoder_layers", "decoder_layers"), first("vocab_size")
        head = getattr(config, "d_kv", None) or width // heads
        if hears(module):
            frames = 2 * config.max_source_positions
            source: tuple[InputSpec, ...] = (
                InputSpec("input_features", "float32", ("batch", config.num_mel_bins, frames)),
            )
            return cls(layers, heads, head, width, vocabulary, source, config.max_source_positions, False)
        axes = ("batch", "encoder_sequence")
        source = (InputSpec("input_ids", "int64", axes, vocabulary), InputSpec("attention_mask", "int64", axes, 2))
        return cls(layers, heads, head, width, vocabulary, source, "encoder_sequence", True)

    def cache(self, prefix: str) -> list[str]:
        """The names of a cache's tensors."""
        return [f"{prefix}.{i}.{side}.{part}" for i in range(self.layers) for side in SIDES for part in PARTS]

    def decoder(self, *, past: bool) -> tuple[InputSpec, ...]:
        """What the decoder takes, for its first step or with a cache."""
        tokens = InputSpec("input_ids", "int64", ("batch", 1 if past else "sequence"), self.vocabulary)
        hidden = InputSpec("encoder_hidden_states", "float32", ("batch", self.length, self.width))
        mask = [InputSpec("encoder_attention_mask", "int64", ("batch", self.length), 2)] if self.masked else []
        lengths = {"decoder": "past_sequence", "encoder": self.length}
        kept = [
            InputSpec(name, "float32", ("batch", self.heads, lengths[name.split(".")[2]], self.head))
            for name in self.cache("past_key_values")
        ]
        return (*mask, tokens, hidden, *(kept if past else ()))


def hears(module: Any) -> bool:
    """The source is sound."""
    return getattr(module, "main_input_name", "") == "input_features"


class Encoder(nn.Module):
    """``source`` to ``last_hidden_state``."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.encoder = whole.get_encoder()

    def forward(self, **given: Tensor) -> dict[str, Tensor]:
        """The encoder's last hidden states, ``(batch, length, width)``."""
        return {"last_hidden_state": self.encoder(**given, return_dict=True).last_hidden_state}


class Decoder(nn.Module):
    """A step of the decoder: logits, and the cache as flat tensors ``(batch, heads, length, head)``."""

    def __init__(self, whole: Any, shape: Shape, *, past: bool) -> None:
        super().__init__()
        self.whole, self.shape, self.past = whole, shape, past
        taken = inspect.signature(whole.forward).parameters
        self.word = "cache" if "cache" in taken else "past_key_values"  # as transformers calls it

    def forward(self, **given: Tensor) -> dict[str, Tensor]:
        """``logits`` and ``present.…``; with a cache only what a step changes of it."""
        from transformers.cache_utils import DynamicCache, EncoderDecoderCache
        from transformers.modeling_outputs import BaseModelOutput

        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        own, cross = cache.self_attention_cache, cache.cross_attention_cache
        for i in range(self.shape.layers if self.past else 0):
            for side, kept in zip(SIDES, (own, cross), strict=True):
                kept.update(*(given[f"past_key_values.{i}.{side}.{part}"] for part in PARTS), i)
            cache.is_updated[i] = True
        mask = {"attention_mask": given["encoder_attention_mask"]} if self.shape.masked else {}
        out = self.whole(
            encoder_outputs=BaseModelOutput(last_hidden_state=given["encoder_hidden_states"]),
            decoder_input_ids=given["input_ids"], use_cache=True, return_dict=True, **{self.word: cache}, **mask,
        )  # fmt: skip
        found = {"logits": out.logits}
        for i in range(self.shape.layers):
            for side, kept in zip(SIDES, (own, cross), strict=True):
                if side == "decoder" or not self.past:
                    layer = kept.layers[i]
                    found |= {f"present.{i}.{side}.key": layer.keys, f"present.{i}.{side}.value": layer.values}
        return found


@contextmanager
def plain_attention(module: Any) -> Iterator[None]:
    """Attention as single operations: the fused one of T5 can't be exported."""
    before = module.config._attn_implementation
    module.set_attn_implementation("eager")
    try:
        yield
    finally:
        module.set_attn_implementation(before)
