"""onnxruntime: folders with an encoder and a decoder with cache, as optimum and transformers.js load them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compresskit.errors import InputError, UsageError, missing_extra
from compresskit.runtimes.text import DECODER
from compresskit.runtimes.text.writer import Chat, Made, Request, Writer, room

ENCODER = "encoder_model.onnx"


class Pair:
    """An encoder and its decoder, opened.

    Attributes:
        start: The token that a decoder begins with.
        ends: Tokens that end an answer.
    """

    def __init__(self, folder: Path, threads: int = 0) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        opened = [
            onnxruntime.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])
            for name in (ENCODER, DECODER)
        ]
        self.encoder, self.decoder = opened
        told = _told(folder)
        self.start = int(told.get("decoder_start_token_id") or 0)
        ends = told.get("eos_token_id")
        self.ends = set() if ends is None else {ends} if isinstance(ends, int) else set(ends)
        self._inputs = {value.name: value for value in self.decoder.get_inputs()}
        self._outputs = [value.name for value in self.decoder.get_outputs()]

    def steps(self, source: Mapping[str, np.ndarray], choose: Callable[[np.ndarray], int]) -> Iterator[int]:
        """The tokens of an answer, without end.

        Args:
            source: What the encoder takes, of one sample.
            choose: Gives the next token from its logits, ``(vocabulary,)``.
        """
        (hidden,) = self.encoder.run(["last_hidden_state"], dict(source))
        feeds: dict[str, np.ndarray] = {
            "encoder_hidden_states": hidden, "input_ids": np.array([[self.start]], np.int64),
            "use_cache_branch": np.array([False]),
        }  # fmt: skip
        if "encoder_attention_mask" in self._inputs:
            feeds["encoder_attention_mask"] = source["attention_mask"]
        for name, value in self._inputs.items():
            if name.startswith("past_key_values."):
                heads, width = value.shape[1], value.shape[3]
                length = hidden.shape[1] if ".encoder." in name else 0
                feeds[name] = np.zeros((1, heads, length, width), np.float32)
        while True:
            found = dict(zip(self._outputs, self.decoder.run(None, feeds), strict=True))
            token = choose(found.pop("logits")[0, -1])
            yield token
            feeds.update({name.replace("present", "past_key_values"): value for name, value in found.items()})
            feeds |= {"input_ids": np.array([[token]], np.int64), "use_cache_branch": np.array([True])}


class EncoderDecoder(Writer):
    """See :class:`Writer`. The prompt is what the encoder reads; there is no chat."""

    def __init__(self, path: Path, threads: int, context: int) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise missing_extra("tokenizers", "hf") from error
        try:
            self._pair = Pair(path, threads)
        except Exception as error:  # whatever onnxruntime says
            raise InputError(f"onnxruntime can't open {path}: {error}") from error
        self._path, self._tokenizers, self._context = path, tokenizers, context

    def write(self, request: Request, show: Callable[[str], object]) -> Made:
        """See :class:`Writer`."""
        if isinstance(request.prompt, Chat):
            raise UsageError("`chat` is for models that continue a text; this one has an encoder")
        tokenizer = None
        if isinstance(request.prompt, str):
            if "input_ids" not in {value.name for value in self._pair.encoder.get_inputs()}:
                raise UsageError(f"{self._path} reads sound, not text", "use optimum or transformers.js for it")
            if not (self._path / "tokenizer.json").is_file():
                raise InputError(f"{self._path} has no tokenizer.json", "put it into the folder")
            tokenizer = self._tokenizers.Tokenizer.from_file(str(self._path / "tokenizer.json"))
            tokenizer.no_padding()
            prompt = tokenizer.encode(request.prompt).ids
        else:
            prompt = list(request.prompt)
        source = {"input_ids": np.array([prompt], np.int64), "attention_mask": np.ones((1, len(prompt)), np.int64)}
        new = room(0, request.tokens, self._context)
        begin = time.perf_counter()
        ids: list[int] = []
        first, shown, enough = begin, "", False
        for token in self._pair.steps(source, _chooser(request)):
            if token in self._pair.ends and not request.to_the_end:
                break
            ids.append(token)
            if len(ids) == 1:
                first = time.perf_counter()
            if tokenizer is not None:
                text = tokenizer.decode(ids)
                if not text.endswith("\ufffd"):  # the rest of a character comes with the next token
                    enough = show(text[len(shown) :]) is True
                    shown = text
            if len(ids) == new or enough:
                break
        cut = len(ids) == new and not enough
        return Made(len(prompt), len(ids), first - begin, time.perf_counter() - first, tuple(ids), cut)


def _chooser(request: Request) -> Callable[[np.ndarray], int]:
    draws = np.random.default_rng(request.seed)

    def choose(logits: np.ndarray) -> int:
        if not request.temperature:
            return int(logits.argmax())
        scaled = logits.astype(np.float64) / request.temperature
        chances = np.exp(scaled - scaled.max())
        order = (-chances).argsort(kind="stable")
        before = chances[order].cumsum() / chances.sum() - chances[order] / chances.sum()
        chances[order[before >= request.top_p]] = 0.0
        return int(draws.choice(len(chances), p=chances / chances.sum()))

    return choose


def _told(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            data = json.loads((folder / name).read_text(encoding="utf-8"))
            found |= {key: value for key, value in data.items() if value is not None}
    return found
