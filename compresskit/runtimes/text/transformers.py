"""transformers' own ``generate`` with its cache, on a module that was loaded: bundles and Hugging Face folders."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskit.errors import InputError, UsageError, missing_extra
from compresskit.runtimes.text.writer import Made, Request, Writer

if TYPE_CHECKING:
    from torch import nn


class Transformers(Writer):
    """See :class:`Writer`."""

    def __init__(self, path: Path, threads: int, context: int, loader: Callable[[Path], nn.Module]) -> None:
        """Load a module.

        Args:
            path: A bundle or a Hugging Face folder.
            threads: Of torch; 0 leaves them.
            context: Of no effect: the cache grows.
            loader: Gives the module of a path.
        """
        try:
            import transformers
        except ImportError as error:
            raise missing_extra("transformers", "hf") from error
        import torch

        if threads:
            torch.set_num_threads(threads)
        self._path, self._transformers = path, transformers
        self._module: Any = loader(path)
        if not callable(getattr(self._module, "generate", None)):
            raise UsageError(f"{path} is no language model that writes text", "give a bundle of a causal model")

    def write(self, request: Request, show: Callable[[str], object]) -> Made:
        """See :class:`Writer`."""
        import torch

        text, tokenizer = request.prompt, None
        if isinstance(text, str):
            tokenizer = self._tokenizer()
            prompt = _encoded(tokenizer, text, request.chat)
        else:
            prompt = list(text)
        marks: list[float] = []
        streamer = _streamer(self._transformers, tokenizer, show, marks)
        ends: dict[str, Any] = {"eos_token_id": None} if request.to_the_end else {}
        drawn: dict[str, Any] = {"do_sample": False}
        if request.temperature:
            drawn = {"do_sample": True, "temperature": request.temperature, "top_k": 0, "top_p": 1.0}
            torch.manual_seed(request.seed)
        ids = torch.tensor([prompt])
        begin = time.perf_counter()
        with torch.inference_mode():
            made = self._module.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=request.tokens, use_cache=True,
                streamer=streamer, pad_token_id=0, **drawn, **ends,
            )  # fmt: skip
        given = 1 if self._module.config.is_encoder_decoder else len(prompt)
        new = tuple(made[0, given:].tolist())
        first = marks[0] if marks else time.perf_counter()
        return Made(len(prompt), len(new), first - begin, time.perf_counter() - first, new)

    def _tokenizer(self) -> Any:
        try:
            return self._transformers.AutoTokenizer.from_pretrained(
                str(self._path), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # whatever is wrong with its files
            raise InputError(
                f"{self._path} has no tokenizer that transformers opens", "put it into the folder"
            ) from error


def _encoded(tokenizer: Any, text: str, chat: bool) -> list[int]:
    if not chat:
        return list(tokenizer(text)["input_ids"])
    if not tokenizer.chat_template:
        raise InputError("the model has no chat template", "leave `chat` out")
    messages = [{"role": "user", "content": text}]
    found = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    return list(found["input_ids"])


def _streamer(transformers: Any, tokenizer: Any, show: Callable[[str], object], marks: list[float]) -> Any:
    """What ``generate`` calls: first with the prompt, then with each token, then once at the end."""
    shown = None
    if tokenizer is not None:

        class Shown(transformers.TextStreamer):  # type: ignore[misc]
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                show(text)

        shown = Shown(tokenizer, skip_prompt=True, skip_special_tokens=True)

    class Marking:
        prompted = False

        def put(self, value: Any) -> None:
            if self.prompted:
                marks.append(time.perf_counter())
            self.prompted = True
            if shown is not None:
                shown.put(value)

        def end(self) -> None:
            if shown is not None:
                shown.end()

    return Marking()
