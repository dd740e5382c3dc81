"""``compresskit mcp``."""

from __future__ import annotations


def command() -> None:
    """Let an assistant use the commands, with the Model Context Protocol over standard input and output.

    The assistant's configuration starts the server: command `compresskit`, argument `mcp`. Each command is a tool whose
    arguments are the options of the command, including methods of plugins. A tool runs with your rights in the folder
    where the server was started, and `arch` runs code: configure the assistant to ask before it calls a tool.
    """
    from compresskit.errors import missing_extra

    try:
        from compresskit.cli.assistant import serve
    except ImportError as error:
        raise missing_extra("mcp", "mcp") from error
    serve()
