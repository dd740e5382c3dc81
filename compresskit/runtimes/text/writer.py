"""What all programs that let a model write have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """What is to be written.

    Attributes:
        prompt: Text, or numbers of tokens.
        tokens: Maximum number of new tokens.
        temperature: 0 takes the likeliest token each time; else probabilities are sharpened or flattened by it.
        seed: Of the draws.
        chat: The text is what a user says; the model's chat template is put around it.
        to_the_end: Exactly ``tokens`` are written, whatever ends an answer.
        ids: Numbers of the new tokens are wanted; some programs then show the text at the end, and can't be timed.
    """

    prompt: str | Sequence[int]
    tokens: int = 128
    temperature: float = 0.0
    seed: int = 0
    chat: bool = False
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
    """

    prompt_tokens: int
    new_tokens: int
    first_s: float
    rest_s: float
    ids: tuple[int, ...] | None = None


class Writer(ABC):
    """A program with a model opened."""

    @abstractmethod
    def write(self, request: Request, show: Callable[[str], object]) -> Made:
        """Write text.

        Args:
            request: What is asked for.
            show: Given each piece of text as it comes.

        Raises:
            InputError: The model has no tokenizer or chat template, or the program refuses the request.
        """
