"""Writes docs/commands.md from the commands' own help; ``--check`` only compares.

The help is asked for in fresh processes, so it is what a user sees.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "commands.md"
WIDTH = 100
HEAD = """\
# Commands

The help of each command. This page is generated: `make docs` writes it anew.
"""


def help_text(*command: str) -> str:
    """What ``compresskit COMMAND --help`` prints, without colour, 100 columns wide.

    Raises:
        RuntimeError: The command failed.
    """
    plain = {
        "COLUMNS": str(WIDTH),
        "TERMINAL_WIDTH": str(WIDTH),
        "NO_COLOR": "1",
        "TERM": "dumb",
        "PYTHONIOENCODING": "utf-8",
    }
    # Typer forces colours on a CI service.
    hidden = ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS")
    env = {name: value for name, value in os.environ.items() if name not in hidden} | plain
    done = subprocess.run(
        [sys.executable, "-m", "compresskit", *command, "--help"],
        cwd=ROOT, env=env, capture_output=True, encoding="utf-8", check=False, timeout=120,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"compresskit {' '.join(command)} --help ended with {done.returncode}:\n{done.stderr}")
    return "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines())


def pages() -> list[list[str]]:
    """Every command line whose help is on the page: each command, its methods where it has several, its subcommands."""
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
    wanted = pages()
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        texts = list(pool.map(lambda command: help_text(*command), wanted))
    blocks = []
    for command, text in zip(wanted, texts, strict=True):
        level = "###" if len(command) > 1 else "##"
        blocks.append(f"{level} {' '.join(['compresskit', *command])}\n\n```text\n{text.strip()}\n```\n")
    return "\n".join([HEAD, *blocks])


def main() -> int:
    """Write the page, or with ``--check`` tell whether it is current."""
    try:
        current = page()
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(current, encoding="utf-8", newline="\n")
        return 0
    if not TARGET.is_file() or TARGET.read_text(encoding="utf-8") != current:
        print("docs/commands.md is not what the commands' help says: run `make docs`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
