"""The commands as an assistant sees them: tools with schemas, called through a client of the protocol."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from compresskit import registry
from compresskit.cli.tools import tools, words
from compresskit.errors import UsageError

pytest.importorskip("mcp", reason="the extra 'mcp' is not installed")


def test_each_kind_of_stage_is_a_tool_whose_schema_holds_its_options() -> None:
    found = {tool.name: tool for tool in tools()}
    assert {*registry.kind_names(), "compress", "inspect", "check"} <= found.keys()
    quantize = found["quantize"].schema
    assert quantize["required"] == ["model"]
    assert quantize["properties"]["bits"]["type"] == "integer"
    assert quantize["properties"]["max_drop"]["type"] == "string"
    assert set(quantize["properties"]["method"]["enum"]) == set(registry.methods("quantize"))
    assert not quantize["properties"].keys() & {"json", "quiet", "help", "help_all"}
    assert found["inspect"].reads_only and not found["quantize"].reads_only


def test_the_words_of_a_call() -> None:
    given = {
        "model": "-x.pt",
        "method": "gptq",
        "samples": 8,
        "include": ["a*", "b*"],
        "symmetric": True,
        "output": "o",
    }
    found = words("quantize", given)
    options, places = found[: found.index("--")], found[found.index("--") + 1 :]
    assert options[0] == "quantize" and places == ["-x.pt"], "a value is never taken for an option"
    assert {
        "--method=gptq",
        "--samples=8",
        "--include=a*",
        "--include=b*",
        "--symmetric",
        "--json=-",
        "--output=o",
    } <= {*options}


@pytest.mark.parametrize(
    ("tool", "given", "message"),
    [
        ("serve", {}, "no tool 'serve'"),
        ("quantize", {"model": "m.pt", "bit": 4}, "no argument 'bit'"),
        ("quantize", {"model": "m.pt", "method": "best"}, "no such method"),
        ("quantize", {"model": "m.pt", "symmetric": "yes"}, "true or false"),
    ],
)
def test_a_call_that_cannot_be(tool: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        words(tool, given)


def test_a_client_lists_calls_and_sees_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mcp import Client, StdioServerParameters, stdio_client

    monkeypatch.chdir(tmp_path)
    torch.save({"a.weight": torch.randn(64, 64), "a.bias": torch.zeros(64)}, "m.pt")
    server = StdioServerParameters(command=sys.executable, args=["-m", "compresskit", "mcp"], cwd=tmp_path)

    async def talk() -> tuple[Any, ...]:
        async with Client(stdio_client(server)) as client:
            listed = await client.list_tools()
            made = await client.call_tool("quantize", {"model": "m.pt", "method": "rtn", "bits": 4, "output": "out"})
            wrong = await client.call_tool("inspect", {"model": "absent.pt"})
            return listed, made, wrong

    listed, made, wrong = asyncio.run(talk())
    assert {"quantize", "compress"} <= {tool.name for tool in listed.tools}
    assert not made.is_error and made.structured_content["exit_code"] == 0
    assert made.structured_content["result"]["verdict"] == "UNVERIFIED" and list(Path("out").glob("*.safetensors"))
    assert "m.pt" in made.content[0].text and "| model" in made.content[0].text
    assert wrong.is_error and "absent.pt" in wrong.content[0].text and "Traceback" not in wrong.content[0].text
