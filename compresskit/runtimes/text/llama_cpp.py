"""llama.cpp through xllamacpp: GGUF files."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compresskit.errors import InputError, missing_extra
from compresskit.runtimes.text.writer import Chat, Made, Request, TooLong, Writer


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
            "max_tokens": request.tokens, "temperature": request.temperature, "top_p": request.top_p, "top_k": 0,
            "min_p": 0.0, "seed": request.seed, "stream": True, "stream_options": {"include_usage": True},
            "cache_prompt": False, "ignore_eos": request.to_the_end, "timings_per_token": True,
        }  # fmt: skip
        if request.ids:  # streamed, only those are told that end a character
            del asked["stream_options"]
            asked |= {"stream": False, "return_tokens": True, "verbose": True}
        call = self._server.handle_completions
        if isinstance(request.prompt, Chat):
            call, asked["messages"] = self._server.handle_chat_completions, request.prompt.listed()
        else:
            asked["prompt"] = request.prompt if isinstance(request.prompt, str) else list(request.prompt)
        heard = _Heard(show)
        begin = time.perf_counter()
        try:
            call(asked, heard)
        except ValueError as error:  # what isn't a request at all
            raise InputError(f"llama.cpp refuses the request: {error}") from error
        if heard.error is not None:  # what is raised while it calls is lost
            raise heard.error
        first = heard.marks[0] if heard.marks else time.perf_counter()
        new = heard.usage.get("completion_tokens", len(heard.marks))
        told = tuple(heard.ids) if request.ids else None
        rest = time.perf_counter() - first
        return Made(heard.usage.get("prompt_tokens", 0), new, first - begin, rest, told, heard.cut)


class _Heard:
    """What the server calls with each piece of an answer, or with an error.

    Attributes:
        usage: Numbers of tokens.
        marks: When each piece came.
        ids: Of the new tokens, where they were asked for.
        cut: The number of tokens ended the answer.
        error: What to raise.
    """

    def __init__(self, show: Callable[[str], object]) -> None:
        self.usage: dict[str, int] = {}
        self.marks: list[float] = []
        self.ids: list[int] = []
        self.cut = False
        self.error: InputError | None = None
        self._show = show

    def __call__(self, chunk: Any) -> bool:
        """Take one; True ends the writing."""
        enough = [self._take(part) for part in (chunk if isinstance(chunk, list) else [chunk])]
        return any(enough)

    def _take(self, part: dict[str, Any]) -> bool:
        if "error" in part or "code" in part:
            error = part.get("error", part)
            kind = TooLong if error.get("type") == "exceed_context_size_error" else InputError
            self.error = kind(f"llama.cpp refuses the request: {error.get('message', error)}")
            return True
        if (timings := part.get("timings")) is not None:  # all there is where the writing is ended early
            self.usage.update(prompt_tokens=timings["prompt_n"], completion_tokens=timings["predicted_n"])
        self.usage.update(part.get("usage") or {})
        self.ids.extend(part.get("__verbose", {}).get("tokens", []))
        enough = False
        for choice in part.get("choices", []):
            self.cut |= choice.get("finish_reason") == "length"
            text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
            if text or not self.marks:
                self.marks.append(time.perf_counter())
                enough |= self._show(text) is True
        return enough
