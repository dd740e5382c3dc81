"""Writes docs/commands.md from the commands' own help; ``--check`` only compares."""

from __future__ import annotations

import io
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "commands.md"
WIDTH = 80
HEAD = """\
# Commands

The full help of each command (`--help-all`). `python docs/generate.py` writes this page.
"""


def help_text(*command: str) -> str:
    """What ``compresskit COMMAND --help-all`` prints, 80 columns wide; ``--help`` of no command.

    Raises:
        CompressKitError: There is no such command.
    """
    from compresskit.cli.main import run

    said = io.StringIO()
    with redirect_stdout(said):
        run([*command, "--help-all" if command else "--help"])
    return "\n".join(line.rstrip() for line in said.getvalue().strip("\n").splitlines())


def pages() -> list[list[str]]:
    """Every command line whose help is on the page: commands, subcommands, and the methods of a stage with several."""
    from compresskit import registry
    from compresskit.cli.commands import SUBCOMMANDS
    from compresskit.cli.main import command_names

    found: list[list[str]] = [[]]
    for name in command_names():
        methods = [row.partition(".")[2] for row in registry.BUILT_IN if row.startswith(f"{name}.")]
        found.append([name])
        found += [[name, "--method", method] for method in methods] if len(methods) > 1 else []
        found += [[name, word] for word in SUBCOMMANDS.get(name, ())]
    return found


def page() -> str:
    """The whole page."""
    os.environ["COLUMNS"] = str(WIDTH)
    blocks = []
    for command in pages():
        level = "###" if len(command) > 1 else "##"
        blocks.append(f"{level} {' '.join(['compresskit', *command])}\n\n```text\n{help_text(*command).strip()}\n```\n")
    return "\n".join([HEAD, *blocks])


def main() -> int:
    """Write the page, or with ``--check`` tell whether it is current."""
    current = page()
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(current, encoding="utf-8", newline="\n")
        return 0
    if not TARGET.is_file() or TARGET.read_text(encoding="utf-8") != current:
        print("docs/commands.md differs from the commands' help: run `python docs/generate.py`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
