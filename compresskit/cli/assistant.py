"""The commands as tools of the Model Context Protocol, over standard input and output."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import anyio
import mcp_types as types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

from compresskit import __version__
from compresskit.cli.tools import Tool, tools, words
from compresskit.errors import CompressKitError, ExitCode, as_flags

_INSTRUCTIONS = (
    "CompressKit makes trained models smaller and faster. Begin with `inspect`. `compress` finds the best recipe for a "
    "model, its data and a bar such as max_drop=1pt; the other tools take single steps. Every result has a verdict: "
    "PASS, FAIL, INCONCLUSIVE or UNVERIFIED. Give eval_data, or quality stays unverified. Paths are relative to the "
    "folder that the server was started in. `arch` runs the code of the file that it names."
)
_LONGEST = 20_000
"""Characters of a text, beyond which it is cut."""
_DETAIL = {"layers", "latencies", "profile", "history", "environment", "coverage"}
"""Parts of a report that are in its file, and not in an answer."""


def serve() -> None:
    """Answer until standard input is closed."""
    anyio.run(_serve)


async def _serve() -> None:
    server: Server[Any] = Server(
        "compresskit", version=__version__, instructions=_INSTRUCTIONS, on_list_tools=_listed, on_call_tool=_called
    )
    async with stdio_server() as (received, sent):
        await server.run(received, sent, server.create_initialization_options())


async def _listed(context: Any, params: Any) -> types.ListToolsResult:
    return types.ListToolsResult(tools=[_described(tool) for tool in tools()])


def _described(tool: Tool) -> types.Tool:
    hints = types.ToolAnnotations(read_only_hint=tool.reads_only, destructive_hint=False, open_world_hint=False)
    return types.Tool(name=tool.name, description=tool.description, input_schema=tool.schema, annotations=hints)


async def _called(context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
    """Run a command in a process of its own, which ends with the request."""
    try:
        line = words(params.name, params.arguments or {})
    except CompressKitError as error:
        return _failed(f"{error.message}: {error.hint}" if error.hint else error.message)
    done = await anyio.run_process([sys.executable, "-m", "compresskit", *line], check=False)
    if done.returncode not in (ExitCode.OK, ExitCode.GATE):
        return _failed(done.stderr.decode("utf-8", "replace").strip() or f"exit code {done.returncode}")
    return answer(done.stdout.decode("utf-8", "replace"), done.returncode)


def _failed(why: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(type="text", text=as_flags(why)[:_LONGEST])], is_error=True)


def answer(document: str, code: int) -> types.CallToolResult:
    """What a command found, as text and as data.

    Args:
        document: Its JSON.
        code: Its exit code: 0, or 1 where a gate was missed, which is an answer and no error.
    """
    found = json.loads(document)
    text, data = _report(document, found) if "verdict" in found and "models" in found else (document, found)
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}\n… cut"
    return types.CallToolResult(
        content=[types.TextContent(type="text", text=text)], structured_content={"exit_code": code, "result": data}
    )


def _report(document: str, found: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A report as Markdown, and its figures."""
    from compresskit.render.markdown import markdown
    from compresskit.report import Report

    text = markdown(Report.model_validate_json(document))
    return text, {key: value for key, value in found.items() if key not in _DETAIL}
