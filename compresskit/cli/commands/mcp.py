"""``compresskit mcp``."""

from __future__ import annotations


def command() -> None:
    """Let an assistant use these commands, by the Model Context Protocol over standard input and output.

    The assistant's configuration starts it: the command is `compresskit`, its one argument `mcp`. Each command is a
    tool, with the options as its arguments; a plugin's methods are among them. A tool runs with your rights in the
    folder where the server was started, and `arch` runs code, so let the assistant ask before it calls one.
    """
    from compresskit.errors import missing_extra

    try:
        from compresskit.cli.assistant import serve
    except ImportError as error:
        raise missing_extra("mcp", "mcp") from error
    serve()
