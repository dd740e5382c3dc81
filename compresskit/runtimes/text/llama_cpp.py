"""llama.cpp through xllamacpp: GGUF files."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compresskit.errors import InputError, missing_extra
from compresskit.runtimes.text.writer import Made, Request, Writer


class LlamaCpp(Writer):
    """See :class:`Writer`."""

    def __init__(self, path: Path, threads: int, context: int) -> None:
        os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # else a failed check of its own starts a debugger
        try:
            import xllamacpp
        except ImportError as error:
            raise missing_extra("xllamacpp", "llama-cpp") from error
        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel = str(path), context, 1
        params.verbosity, params.warmup = -1, False
        if threads:
            params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise InputError(f"llama.cpp can't open {path}", "export it again: compresskit export --to gguf") from error

    def write(self, request: Request, show: Callable[[str], object]) -> Made:
        """See :class:`Writer`."""
        asked: dict[str, Any] = {
            "max_tokens": request.tokens, "temperature": request.temperature, "seed": request.seed, "stream": True,
            "stream_options": {"include_usage": True}, "cache_prompt": False, "ignore_eos": request.to_the_end,
        }  # fmt: skip
        if request.ids:  # streamed, only those are told that end a character
            del asked["stream_options"]
            asked |= {"stream": False, "return_tokens": True, "verbose": True}
        prompt = request.prompt if isinstance(request.prompt, str) else list(request.prompt)
        call = self._server.handle_completions
        if request.chat:
            call, asked["messages"] = self._server.handle_chat_completions, [{"role": "user", "content": prompt}]
        else:
            asked["prompt"] = prompt
        usage: dict[str, int] = {}
        marks: list[float] = []
        ids: list[int] = []

        def take(chunk: Any) -> None:
            parts = chunk if isinstance(chunk, list) else [chunk]
            for part in parts:
                if "error" in part or "code" in part:
                    error = part.get("error", part)
                    raise InputError(f"llama.cpp refuses the request: {error.get('message', error)}")
                usage.update(part.get("usage") or {})
                ids.extend(part.get("__verbose", {}).get("tokens", []))
                for choice in part.get("choices", []):
                    text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
                    if text or not marks:
                        marks.append(time.perf_counter())
                        show(text)

        begin = time.perf_counter()
        call(asked, take)
        first = marks[0] if marks else time.perf_counter()
        new = usage.get("completion_tokens", len(marks))
        told = tuple(ids) if request.ids else None
        return Made(usage.get("prompt_tokens", 0), new, first - begin, time.perf_counter() - first, told)
