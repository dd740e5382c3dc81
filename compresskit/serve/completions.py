"""The completions of OpenAI's API: JSON to a request for a language model, and its text to JSON.

Whatever a client sends is checked, and the first thing that doesn't fit is named. What this server can't do is refused
unless its value asks for nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn

from compresskit.runtimes.text import Chat, Made, Request
from compresskit.serve.refused import Refused

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_COMMON = {
    "model", "max_tokens", "temperature", "top_p", "seed", "stop", "stream", "stream_options", "user", "n", "best_of",
}  # fmt: skip
_OWN = {"prompt": _COMMON | {"prompt"}, "messages": _COMMON | {"messages", "max_completion_tokens"}}
_NEUTRAL = ("auto", "none", "text", {"type": "text"})
"""Values of what isn't supported that ask for nothing, as empty ones do: they are taken."""
_FEW = 16
"""New tokens of a completion that names no number, as OpenAI has it; a chat goes on up to the context."""
_STOPS = 4


@dataclass(frozen=True)
class Asked:
    """What a client asked for.

    Attributes:
        request: For the model.
        chat: The answer is a message.
        stops: Texts that end the answer; they aren't part of it.
        stream: The answer comes piece by piece.
        usage: A stream ends with the numbers of tokens.
    """

    request: Request
    chat: bool
    stops: tuple[str, ...] = ()
    stream: bool = False
    usage: bool = False


def read_asked(body: bytes, model: str, *, chat: bool, context: int) -> Asked:
    """Read the body of a request.

    Args:
        body: JSON.
        model: The name of the only model there is.
        chat: It has ``messages``, else a ``prompt``.
        context: Most tokens of prompt and answer together.

    Raises:
        Refused: Something is wrong with it (400), or it asks for another model (404).
    """
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON") from None
    if not isinstance(given, dict):
        raise Refused(400, "the body is not an object in JSON")
    asked_of = given.get("model", model)
    if asked_of != model:
        raise Refused(404, f"there is no model {asked_of!r}, only '{model}'", about="model", code="model_not_found")
    key = "messages" if chat else "prompt"
    for name, value in given.items():
        if name in ("n", "best_of") and value is not None and (value is True or value != 1):
            _bad(name, "is 1 here: ask again for another answer")
        if name not in _OWN[key] and value and value not in _NEUTRAL:
            _bad(name, "is not supported here", code="unsupported_parameter")
    most = "max_completion_tokens" if given.get("max_completion_tokens") is not None else "max_tokens"
    options = given.get("stream_options") or {}
    if not isinstance(options, dict):
        _bad("stream_options", "should be an object")
    request = Request(
        prompt=_messages(given.get("messages")) if chat else _prompt(given.get("prompt")),
        tokens=int(_number(given, most, context if chat else _FEW, 1, 1 << 30, whole=True)),
        temperature=_number(given, "temperature", 1.0, 0.0, 2.0),
        top_p=max(_number(given, "top_p", 1.0, 0.0, 1.0), 1e-6),
        seed=int(_number(given, "seed", 0, 0, (1 << 31) - 1, whole=True)),
    )
    stream, usage = _flag(given, "stream"), _flag(options, "include_usage")
    return Asked(request, chat, _stops(given.get("stop")), stream, usage)


def _bad(name: str, what: str, *, code: str | None = None) -> NoReturn:
    raise Refused(400, f"'{name}' {what}", about=name, code=code)


def _number(
    given: dict[str, Any], name: str, default: float, least: float, most: float, *, whole: bool = False
) -> float:
    value = given.get(name)
    if value is None:
        return default
    right = type(value) is int or (type(value) is float and not whole)
    if not right or not least <= value <= most:
        _bad(name, f"should be a {'whole number' if whole else 'number'} from {least:g} to {most:g}")
    found: float = value
    return found


def _flag(given: dict[str, Any], name: str) -> bool:
    value = given.get(name)
    if value is not None and not isinstance(value, bool):
        _bad(name, "should be true or false")
    return bool(value)


def _stops(given: Any) -> tuple[str, ...]:
    found = [given] if isinstance(given, str) else [] if given is None else given
    if not isinstance(found, list) or len(found) > _STOPS or not all(isinstance(s, str) and s for s in found):
        _bad("stop", f"should be a text or up to {_STOPS} of them")
    return tuple(found)


def _prompt(given: Any) -> str | list[int]:
    if isinstance(given, list) and len(given) == 1 and not isinstance(given[0], int):
        given = given[0]
    if isinstance(given, list) and given and all(type(token) is int and 0 <= token < 1 << 31 for token in given):
        return given
    if not isinstance(given, str) or not given:
        _bad("prompt", "should be one text, or a list of the numbers of its tokens")
    return given


def _messages(given: Any) -> Chat:
    if not isinstance(given, list) or not given:
        _bad("messages", "should be a list of objects with role and content")
    return Chat(tuple(_message(index, message) for index, message in enumerate(given)))


def _message(index: int, given: Any) -> tuple[str, str]:
    name = f"messages[{index}]"
    if not isinstance(given, dict):
        _bad(name, "should be an object with role and content")
    role, content = given.get("role"), given.get("content")
    if not isinstance(role, str) or role not in _ROLES:
        _bad(f"{name}.role", f"should be one of {', '.join(_ROLES)}")
    if isinstance(content, list):
        parts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        content = "".join(parts) if all(isinstance(part, str) for part in parts) else None  # type: ignore[arg-type]
    if not isinstance(content, str):
        _bad(f"{name}.content", "should be text, or a list of parts of type text")
    return _ROLES[role], content


class Stopping:
    """Text up to the first of some texts that end it; what may be the beginning of one is kept back until it is known.

    Attributes:
        stopped: One of them came.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops, self._kept = stops, ""
        self.stopped = False

    def take(self, text: str) -> str:
        """What can be shown after one more piece."""
        self._kept += text
        found = [at for at in (self._kept.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped = True
            shown, self._kept = self._kept[: min(found)], ""
            return shown
        held = max((_overlap(self._kept, stop) for stop in self._stops), default=0)
        shown, self._kept = self._kept[: len(self._kept) - held], self._kept[len(self._kept) - held :]
        return shown

    def rest(self) -> str:
        """What was kept back, at the end of the text."""
        return "" if self.stopped else self._kept


def _overlap(text: str, stop: str) -> int:
    """How many letters at the end of a text may begin a stop."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


@dataclass(frozen=True)
class Named:
    """What all parts of one answer share.

    Attributes:
        id: Of the answer.
        created: Seconds since 1970.
        model: The name.
        chat: It is a message.
    """

    id: str
    created: int
    model: str
    chat: bool

    def _whole(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {
            "id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices, **more
        }  # fmt: skip

    def answer(self, text: str, made: Made) -> dict[str, Any]:
        """The whole answer."""
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": reason(made)}
        if self.chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
            return self._whole("chat.completion", [choice], usage=usage(made))
        return self._whole("text_completion", [{**choice, "text": text}], usage=usage(made))

    def piece(self, text: str, finish: str | None = None, *, first: bool = False) -> dict[str, Any]:
        """A part of an answer that is streamed."""
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish}
        if self.chat:
            delta = {**({"role": "assistant"} if first else {}), **({"content": text} if text or first else {})}
            return self._whole("chat.completion.chunk", [{**choice, "delta": delta}])
        return self._whole("text_completion", [{**choice, "text": text}])

    def counted(self, made: Made) -> dict[str, Any]:
        """The last part of a stream that tells numbers of tokens."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return self._whole(kind, [], usage=usage(made))


def reason(made: Made) -> str:
    """Why an answer ended."""
    return "length" if made.cut else "stop"


def usage(made: Made) -> dict[str, int]:
    """Numbers of tokens."""
    return {
        "prompt_tokens": made.prompt_tokens,
        "completion_tokens": made.new_tokens,
        "total_tokens": made.prompt_tokens + made.new_tokens,
    }
