"""transformers' own ``generate`` with its cache, on a module that was loaded: bundles and Hugging Face folders."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskit.errors import InputError, UsageError, missing_extra
from compresskit.runtimes.text.writer import Chat, Made, Request, Writer, room

if TYPE_CHECKING:
    from torch import nn


class Transformers(Writer):
    """See :class:`Writer`."""

    def __init__(self, path: Path, threads: int, context: int, loader: Callable[[Path], nn.Module]) -> None:
        """Load a module.

        Args:
            path: A bundle or a Hugging Face folder.
            threads: Of torch; 0 leaves them.
            context: Most tokens of prompt and answer together.
            loader: Gives the module of a path.
        """
        try:
            import transformers
        except ImportError as error:
            raise missing_extra("transformers", "hf") from error
        import torch

        if threads:
            torch.set_num_threads(threads)
        self._path, self._transformers, self._kept = path, transformers, None
        self._module: Any = loader(path)
        if not callable(getattr(self._module, "generate", None)):
            raise UsageError(f"{path} is no language model that writes text", "give a bundle of a causal model")
        config: Any = self._module.config
        most = getattr(config.get_text_config(), "max_position_embeddings", None)
        self._context = min(context, most or context)

    def write(self, request: Request, show: Callable[[str], object]) -> Made:
        """See :class:`Writer`."""
        import torch

        text, tokenizer = request.prompt, None
        if isinstance(text, (str, Chat)):
            tokenizer = self._tokenizer()
            prompt = _encoded(tokenizer, text)
        else:
            prompt = list(text)
        new = room(len(prompt), request.tokens, self._context)
        marking = _Marking(_shown(self._transformers, tokenizer, show))
        ends: dict[str, Any] = {"eos_token_id": None} if request.to_the_end else {}
        drawn: dict[str, Any] = {"do_sample": False}
        if request.temperature:
            drawn = {"do_sample": True, "temperature": request.temperature, "top_k": 0, "top_p": request.top_p}
            torch.manual_seed(request.seed)
        ids = torch.tensor([prompt])
        begin = time.perf_counter()
        with torch.inference_mode():
            made = self._module.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, use_cache=True, streamer=marking,
                stopping_criteria=[marking.ends], pad_token_id=0, **drawn, **ends,
            )  # fmt: skip
        given = 1 if getattr(self._module.config, "is_encoder_decoder", False) else len(prompt)
        found = tuple(made[0, given:].tolist())
        first = marking.marks[0] if marking.marks else time.perf_counter()
        cut = not marking.enough and len(found) == new and not self._is_end(found[-1])
        return Made(len(prompt), len(found), first - begin, time.perf_counter() - first, found, cut)

    def _is_end(self, token: int) -> bool:
        ends = self._module.generation_config.eos_token_id
        return token in (ends if isinstance(ends, list) else [ends])

    def _tokenizer(self) -> Any:
        if self._kept is None:
            self._kept = self._opened()
        return self._kept

    def _opened(self) -> Any:
        try:
            return self._transformers.AutoTokenizer.from_pretrained(
                str(self._path), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # whatever is wrong with its files
            raise InputError(
                f"{self._path} has no tokenizer that transformers opens", "put it into the folder"
            ) from error


def _encoded(tokenizer: Any, text: str | Chat) -> list[int]:
    if isinstance(text, str):
        return list(tokenizer(text)["input_ids"])
    if not tokenizer.chat_template:
        raise InputError("the model has no chat template", "leave `chat` out")
    try:
        found = tokenizer.apply_chat_template(text.listed(), add_generation_prompt=True, return_dict=True)
    except Exception as error:  # templates refuse roles and orders in their own words
        raise InputError(f"the model's chat template refuses the messages: {error}") from error
    return list(found["input_ids"])


def _shown(transformers: Any, tokenizer: Any, show: Callable[[str], object]) -> Any:
    """What is given tokens and shows them as text, with ``enough`` when that is enough; None without a tokenizer."""
    if tokenizer is None:
        return None

    class Shown(transformers.TextStreamer):  # type: ignore[misc]
        enough = False

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.enough |= show(text) is True

    return Shown(tokenizer, skip_prompt=True, skip_special_tokens=True)


class _Marking:
    """What ``generate`` calls: first with the prompt, then with each token, then once at the end."""

    def __init__(self, shown: Any) -> None:
        self.marks: list[float] = []
        self._shown, self._prompted = shown, False

    @property
    def enough(self) -> bool:
        """Nothing more is wanted."""
        return self._shown is not None and self._shown.enough

    def put(self, value: Any) -> None:
        """Take tokens."""
        if self._prompted:
            self.marks.append(time.perf_counter())
        self._prompted = True
        if self._shown is not None:
            self._shown.put(value)

    def end(self) -> None:
        """Show what was kept back."""
        if self._shown is not None:
            self._shown.end()

    def ends(self, ids: Any, _scores: Any, **_: Any) -> Any:
        """Which rows are ended, ``(rows,)`` bools: a stopping criterion."""
        return ids.new_full(ids.shape[:1], self.enough, dtype=bool)
