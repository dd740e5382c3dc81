"""onnxruntime-genai: folders with genai_config.json."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compresskit.errors import InputError, missing_extra
from compresskit.runtimes.text.writer import Chat, Made, Request, Writer, room


class Genai(Writer):
    """See :class:`Writer`."""

    def __init__(self, path: Path, threads: int, context: int) -> None:
        try:
            import onnxruntime_genai
        except ImportError as error:
            raise missing_extra("onnxruntime_genai", "genai") from error
        self._genai = onnxruntime_genai
        self._tokenizer: Any = None
        try:
            config = onnxruntime_genai.Config(str(path))
            if threads:
                options = {"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}
                config.overlay(json.dumps(options))
            self._model = onnxruntime_genai.Model(config)
            told = json.loads((path / "genai_config.json").read_bytes())["model"]
        except Exception as error:  # whatever its C++ says
            raise InputError(f"onnxruntime-genai can't open {path}: {error}") from error
        self._context = min(context, told.get("context_length", context))
        ends = told.get("eos_token_id", [])
        self._ends = frozenset(ends if isinstance(ends, list) else [ends])

    def write(self, request: Request, show: Callable[[str], object]) -> Made:
        """See :class:`Writer`."""
        genai, stream = self._genai, None
        if isinstance(request.prompt, (str, Chat)):
            if self._tokenizer is None:
                self._tokenizer = genai.Tokenizer(self._model)
            prompt, stream = self._encoded(request.prompt), self._tokenizer.create_stream()
        else:
            prompt = list(request.prompt)
        begin = time.perf_counter()
        params = genai.GeneratorParams(self._model)
        new = room(len(prompt), request.tokens, self._context)
        longest = len(prompt) + new
        drawn: dict[str, Any] = {"do_sample": False}
        if request.temperature:
            drawn = {
                "do_sample": True, "temperature": request.temperature, "top_k": 0, "top_p": request.top_p,
                "random_seed": request.seed,
            }  # fmt: skip
        params.set_search_options(max_length=longest, min_length=longest if request.to_the_end else 0, **drawn)
        generator = genai.Generator(self._model, params)
        generator.append_tokens(prompt)
        ids: list[int] = []
        first, enough = begin, False
        while not (generator.is_done() or enough):
            generator.generate_next_token()
            ids.append(int(generator.get_next_tokens()[0]))
            if len(ids) == 1:
                first = time.perf_counter()
            if stream is not None:
                enough = show(stream.decode(ids[-1])) is True
        cut = not enough and len(ids) >= new and ids[-1] not in self._ends
        return Made(len(prompt), len(ids), first - begin, time.perf_counter() - first, tuple(ids), cut)

    def _encoded(self, prompt: str | Chat) -> list[int]:
        if isinstance(prompt, Chat):
            try:
                messages = json.dumps(prompt.listed())
                prompt = self._tokenizer.apply_chat_template(messages=messages, add_generation_prompt=True)
            except Exception as error:  # whatever its C++ says of the template
                raise InputError("the model has no chat template that onnxruntime-genai reads") from error
        return [int(token) for token in self._tokenizer.encode(prompt)]
