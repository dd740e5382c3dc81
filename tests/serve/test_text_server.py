"""OpenAI's API as a client sees it: a language model in a process of its own, asked over HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lm_folders import PROMPT, make_folder
from serve_material import Server, until

import compresskit
from compresskit.runner.generating import Chat, Request, open_writer
from compresskit.runner.targets import export_to
from compresskit.serve.completions import Stopping

MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "the rain"}]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    from compresskit.exporter.targets import get

    folder = make_folder(tmp_path_factory.mktemp("lm"), "llama")
    template = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    export_to(compresskit.load(folder), get("gguf"), folder.with_name("tiny.gguf"))
    return folder.with_name("tiny.gguf")


@pytest.fixture(scope="module")
def server(file: Path) -> Iterator[Server]:
    running = Server(file, "--threads", 1, "--max-length", 256, "--max-body", 0.1, "--queue", 2)
    yield running
    code, err = running.stop()
    assert (code, err) == (0, "")  # no test here made it say anything


def written(file: Path, prompt: Any, tokens: int) -> tuple[str, int]:
    pieces: list[str] = []
    made = open_writer(file, threads=1, context=256).write(Request(prompt, tokens), pieces.append)
    return "".join(pieces), made.prompt_tokens


def post(server: Server, path: str, **body: Any) -> tuple[int, Any]:
    status, found, _ = server.ask("POST", path, json.dumps(body).encode(), Content_Type="application/json")
    return status, found


def streamed(server: Server, path: str, **body: Any) -> list[dict[str, Any]]:
    status, found = post(server, path, stream=True, **body)
    lines = found.decode().split("\n\n")
    assert status == 200 and lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def test_models_are_listed(server: Server) -> None:
    found = server.ask("GET", "/v1/models")[1]
    assert [(model["id"], model["object"]) for model in found["data"]] == [("tiny", "model")]
    assert server.ask("GET", "/v1/models/tiny")[1] == found["data"][0]
    assert server.ask("GET", "/v2/health/ready")[:2] == (200, {"ready": True})


def test_a_completion_is_what_the_model_writes(server: Server, file: Path) -> None:
    text, asked = written(file, PROMPT, 12)
    status, found = post(server, "/v1/completions", model="tiny", prompt=PROMPT, max_tokens=12, temperature=0)
    assert status == 200 and found["object"] == "text_completion"
    assert found["choices"] == [{"index": 0, "text": text, "logprobs": None, "finish_reason": "length"}]
    assert found["usage"] == {"prompt_tokens": asked, "completion_tokens": 12, "total_tokens": asked + 12}
    assert (
        post(server, "/v1/completions", prompt=[PROMPT], max_tokens=12, temperature=0)[1]["choices"][0]["text"] == text
    )
    assert len(post(server, "/v1/completions", prompt=[3, 4, 5])[1]["choices"][0]["text"]) > 0


def test_a_chat_is_answered_through_the_template(server: Server, file: Path) -> None:
    text, _ = written(file, Chat((("system", "be brief"), ("user", "the rain"))), 12)
    parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "rain"}]
    for last in ("the rain", parts):
        said = [MESSAGES[0], {"role": "user", "content": last}]
        _, found = post(server, "/v1/chat/completions", messages=said, max_completion_tokens=12, temperature=0)
        assert found["object"] == "chat.completion"
        assert found["choices"][0]["message"] == {"role": "assistant", "content": text, "refusal": None}


def test_streams_are_the_same_in_pieces(server: Server, file: Path) -> None:
    text, _ = written(file, PROMPT, 12)
    options = {"max_tokens": 12, "temperature": 0, "stream_options": {"include_usage": True}}
    *pieces, last, counted = streamed(server, "/v1/completions", prompt=PROMPT, **options)
    assert len(pieces) > 2 and "".join(piece["choices"][0]["text"] for piece in pieces) == text
    assert last["choices"][0]["finish_reason"] == "length" and counted["usage"]["completion_tokens"] == 12
    assert len({piece["id"] for piece in pieces}) == 1 and counted["choices"] == []
    first, *rest = streamed(server, "/v1/chat/completions", messages=MESSAGES, max_tokens=12, temperature=0)
    deltas = [piece["choices"][0]["delta"] for piece in (first, *rest)]
    assert first["object"] == "chat.completion.chunk" and deltas[0]["role"] == "assistant" and deltas[-1] == {}
    whole = post(server, "/v1/chat/completions", messages=MESSAGES, max_tokens=12, temperature=0)[1]
    assert "".join(d.get("content", "") for d in deltas) == whole["choices"][0]["message"]["content"]


def test_an_answer_ends_at_a_stop(server: Server, file: Path) -> None:
    text, _ = written(file, PROMPT, 40)
    stop = next(text[at : at + 2] for at in range(6, len(text)) if text[at : at + 2].isascii())
    asked = {"prompt": PROMPT, "max_tokens": 40, "temperature": 0, "stop": ["never", stop]}
    _, found = post(server, "/v1/completions", **asked)
    choice = found["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (text[: text.index(stop)], "stop")
    assert found["usage"]["completion_tokens"] < 40 and found["usage"]["prompt_tokens"] > 5
    pieces = streamed(server, "/v1/completions", **asked)
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == choice["text"]


def test_seeds_decide_the_draws(server: Server) -> None:
    texts = [
        post(server, "/v1/completions", prompt=PROMPT, max_tokens=12, temperature=2, seed=seed)[1]["choices"][0]["text"]
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("status", "path", "content", "about"),
    [
        (404, "completions", {"model": "gpt-4", "prompt": "a"}, "model"),
        (404, "models/gpt-4", None, "model"),
        (404, "embeddings", {}, None),
        (405, "completions", None, None),
        (400, "completions", b"{", None),
        (400, "completions", b"[" * 50_000, None),
        (413, "completions", b" " * 100_001, None),
        (400, "completions", {}, "prompt"),
        (400, "completions", {"prompt": ["a", "b"]}, "prompt"),
        (400, "completions", {"prompt": "a", "max_tokens": 0}, "max_tokens"),
        (400, "completions", {"prompt": "a", "temperature": "hot"}, "temperature"),
        (400, "completions", {"prompt": "a", "stream": 1}, "stream"),
        (400, "completions", {"prompt": "a", "n": 2}, "n"),
        (400, "completions", {"prompt": "a", "stop": [""]}, "stop"),
        (400, "completions", {"prompt": "a", "echo": True}, "echo"),
        (400, "completions", {"prompt": "a", "best_of": 3}, "best_of"),
        (400, "completions", {"prompt": "rain " * 400}, "prompt"),
        (400, "chat/completions", {"messages": []}, "messages"),
        (400, "chat/completions", {"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
        (400, "chat/completions", {"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        (400, "chat/completions", {"messages": MESSAGES, "tools": [{"type": "function"}]}, "tools"),
    ],
)
def test_errors_are_those_of_the_api(server: Server, status: int, path: str, content: Any, about: str | None) -> None:
    body = json.dumps(content).encode() if isinstance(content, dict) else content
    found, error, _ = server.ask("GET" if content is None else "POST", f"/v1/{path}", body)
    assert found == status, error
    assert set(error) == {"error"} and set(error["error"]) == {"message", "type", "param", "code"}
    assert error["error"]["message"] and (about is None or error["error"]["param"] == about)


def test_a_prompt_that_is_too_long_has_its_code(server: Server) -> None:
    for more in ({}, {"stream": True}):
        _, found = post(server, "/v1/completions", prompt="rain " * 400, **more)
        assert found["error"]["code"] == "context_length_exceeded"


def test_one_is_answered_after_the_other_and_too_many_are_refused(server: Server) -> None:
    found: list[int] = []

    def client() -> None:
        found.append(post(server, "/v1/completions", prompt=PROMPT, max_tokens=200, temperature=0)[0])

    threads = [threading.Thread(target=client) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {200, 503} and found.count(200) >= 3


def test_a_client_that_leaves_ends_its_answer(server: Server) -> None:
    for _ in range(5):
        connection = server.connect()
        body = json.dumps({"prompt": PROMPT, "max_tokens": 200, "stream": True}).encode()
        connection.request("POST", "/v1/completions", body)
        connection.getresponse().read(10)
        connection.close()
    until(lambda: b"compresskit_queue_depth 0.0" in server.ask("GET", "/metrics")[1])
    assert post(server, "/v1/completions", prompt=PROMPT)[0] == 200


def test_text_that_may_be_a_stop_is_kept_back() -> None:
    stopping = Stopping(("END", "\n\n"))
    assert [stopping.take(text) for text in ("so E", "N", "N", "\n", "a", "bEN")] == ["so ", "", "ENN", "", "\na", "b"]
    assert stopping.rest() == "EN"
    assert (stopping.take("D and more"), stopping.stopped, stopping.rest()) == ("", True, "")


@pytest.mark.slow
def test_a_folder_and_a_bundle_are_served_by_transformers(file: Path, tmp_path: Path) -> None:
    folder = file.with_name("llama")
    text, _ = written(folder, PROMPT, 8)
    compresskit.run(folder, [compresskit.method("quantize.rtn", bits=8)], tmp_path / "out", export=False)
    for model in (folder, tmp_path / "out"):
        server = Server(model, "--threads", 1)
        try:
            found = post(server, "/v1/completions", prompt=PROMPT, max_tokens=8, temperature=0)[1]
            assert found["choices"][0]["text"] and (model != folder or found["choices"][0]["text"] == text)
            assert post(server, "/v1/chat/completions", messages=MESSAGES, max_tokens=8)[0] == 200
            assert server.stop() == (0, "")
        finally:
            server.close()
