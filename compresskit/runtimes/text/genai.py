"""onnxruntime-genai: folders with genai_config.json."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from compresskit.errors import InputError, missing_extra
from compresskit.runtimes.text.writer import Made, Request, Writer


class Genai(Writer):
    """See :class:`Writer`."""

    def __init__(self, path: Path, threads: int, context: int) -> None:
        try:
            import onnxruntime_genai
        except ImportError as error:
            raise missing_extra("onnxruntime_genai", "genai") from error
        self._genai, self._context = onnxruntime_genai, context
        try:
            config = onnxruntime_genai.Config(str(path))
            if threads:
                options = {"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}
                config.overlay(json.dumps(options))
            self._model = onnxruntime_genai.Model(config)
        except Exception as error:  # whatever its C++ says
            raise InputError(f"onnxruntime-genai can't open {path}: {error}") from error

    def write(self, request: Request, show: Callable[[str], object]) -> Made:
        """See :class:`Writer`."""
        genai = self._genai
        stream = None
        if isinstance(request.prompt, str):
            tokenizer = genai.Tokenizer(self._model)
            text = request.prompt
            if request.chat:
                messages = json.dumps([{"role": "user", "content": text}])
                text = tokenizer.apply_chat_template(messages=messages, add_generation_prompt=True)
            prompt, stream = [int(token) for token in tokenizer.encode(text)], tokenizer.create_stream()
        else:
            prompt = list(request.prompt)
        begin = time.perf_counter()
        params = genai.GeneratorParams(self._model)
        longest = len(prompt) + request.tokens
        least = longest if request.to_the_end else 0
        sampled = {"do_sample": True, "temperature": request.temperature, "random_seed": request.seed}
        params.set_search_options(
            max_length=longest, min_length=least, **(sampled if request.temperature else {"do_sample": False})
        )
        generator = genai.Generator(self._model, params)
        generator.append_tokens(prompt)
        ids: list[int] = []
        first = begin
        while not generator.is_done():
            generator.generate_next_token()
            ids.append(int(generator.get_next_tokens()[0]))
            if len(ids) == 1:
                first = time.perf_counter()
            if stream is not None:
                show(stream.decode(ids[-1]))
        return Made(len(prompt), len(ids), first - begin, time.perf_counter() - first, tuple(ids))
