"""What all programs that let a model write have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compresskit.errors import InputError


@dataclass(frozen=True)
class Chat:
    """What was said; the model's chat template is put around it.

    Attributes:
        messages: (role, text) each, the last one to be answered; roles are ``system``, ``user`` and ``assistant``.
    """

    messages: tuple[tuple[str, str], ...]

    def listed(self) -> list[dict[str, str]]:
        """As chat templates take them."""
        return [{"role": role, "content": text} for role, text in self.messages]


@dataclass(frozen=True)
class Request:
    """What is to be written.

    Attributes:
        prompt: Text, numbers of tokens, or a conversation.
        tokens: Maximum number of new tokens.
        temperature: 0 takes the likeliest token each time; else probabilities are sharpened or flattened by it.
        top_p: Draws are from the likeliest tokens that together have this probability, above 0 to 1.
        seed: Of the draws.
        to_the_end: Exactly ``tokens`` are written, whatever ends an answer.
        ids: Numbers of the new tokens are wanted; some programs then show the text at the end, and can't be timed.
    """

    prompt: str | Sequence[int] | Chat
    tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    to_the_end: bool = False
    ids: bool = False


@dataclass(frozen=True)
class Made:
    """What a request took.

    Attributes:
        prompt_tokens: Of the prompt, with what is put around it.
        new_tokens: Written.
        first_s: Seconds until the first token was there.
        rest_s: Seconds for all that followed it.
        ids: Numbers of the new tokens, where they were asked for or cost nothing.
        cut: The answer was ended by the number of tokens, not by the model.
    """

    prompt_tokens: int
    new_tokens: int
    first_s: float
    rest_s: float
    ids: tuple[int, ...] | None = None
    cut: bool = False


class TooLong(InputError):
    """A prompt that leaves no room for an answer."""


class Writer(ABC):
    """A program with a model opened; for one request at a time."""

    @abstractmethod
    def write(self, request: Request, show: Callable[[str], object]) -> Made:
        """Write text.

        Args:
            request: What is asked for. More tokens than there is room for are cut.
            show: Given each piece of text as it comes; where it returns True, nothing more is written.

        Raises:
            TooLong: The prompt leaves no room for an answer.
            InputError: The model has no tokenizer or chat template, or the program refuses the request.
        """


def room(prompt: int, tokens: int, context: int) -> int:
    """How many of some new tokens there is room for behind a prompt.

    Raises:
        TooLong: There is none.
    """
    if prompt >= context:
        raise TooLong(f"the prompt has {prompt} tokens, prompt and answer together have at most {context}")
    return min(tokens, context - prompt)
