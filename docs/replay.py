"""Runs the examples of a page, and with ``--write`` puts what they print in the place of what stands there.

    python docs/replay.py [--write] FOLDER PAGE.md …

Blocks count by the words behind their three ticks: ``text run`` holds ``$ compresskit …`` with its output below,
``text run lines=12`` the first lines of it, ``python run`` a program, and ``yaml file=NAME`` a file that is written
first. All run in FOLDER one after the other; ``$ cd NAME`` goes into a folder of it. ``# exit code 1`` behind a command
says that it has to end so.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

BLOCK = re.compile(r"^```(?P<kind>\w+) (?P<words>[^\n`]+)\n(?P<body>.*?)^```$", re.M | re.S)
_COMMENT = re.compile(r"\s+# exit code (\d+)$")
_HIDDEN = ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS")
_PLAIN = {"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb", "PYTHONIOENCODING": "utf-8", "HF_HUB_OFFLINE": "1"}


class Failed(Exception):
    """A command of a page didn't end as the page says."""


@dataclass
class Replay:
    """Runs blocks in a folder.

    Attributes:
        folder: Where the next command runs.
        ran: The commands so far, as typed.
    """

    folder: Path
    ran: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Steps that an earlier replay left in the user's cache would be shown as cached.
        self._own = {**_PLAIN, "COMPRESSKIT_CACHE": str(self.folder.resolve() / ".cache")}

    def page(self, text: str) -> str:
        """Run every block of a page that is to be run; gives the page with their output.

        Raises:
            Failed: A command ended with another exit code than the page says.
        """
        return BLOCK.sub(self._block, text)

    def _block(self, found: re.Match[str]) -> str:
        words, body = found["words"].split(), found["body"]
        for word in words:
            if word.startswith("file="):
                (self.folder / word.removeprefix("file=")).write_text(body, encoding="utf-8")
        if "run" not in words:
            return found[0]
        if found["kind"] == "python":
            self._run(["-c", body], "a python block", 0)
            return found[0]
        most = next((int(w.removeprefix("lines=")) for w in words if w.startswith("lines=")), None)
        parts = [self._command(line, most) for line in commands_of(body)]
        return f"```{found['kind']} {found['words']}\n{''.join(parts)}```"

    def _command(self, typed: str, most: int | None) -> str:
        self.ran.append(typed)
        expected = int(found[1]) if (found := _COMMENT.search(typed)) else 0
        words = shlex.split(typed, comments=True)
        if words[0] == "cd":
            self.folder = self.folder / words[1]
            return f"$ {typed}\n"
        if words[0] != "compresskit":
            raise Failed(f"only compresskit and cd are run, found: {typed}")
        lines = [line.rstrip() for line in self._run(["-m", *words], typed, expected).strip("\n").splitlines()]
        if most is not None and len(lines) > most:
            lines = [*lines[:most], "…"]
        return "".join(f"{line}\n" for line in (f"$ {typed}", *lines))

    def _run(self, words: list[str], typed: str, expected: int) -> str:
        """What Python prints with these words."""
        env = {name: value for name, value in os.environ.items() if name not in _HIDDEN} | self._own
        done = subprocess.run(
            [sys.executable, *words], cwd=self.folder, env=env, encoding="utf-8", check=False, timeout=1200,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if done.returncode != expected:
            raise Failed(f"{typed}\nended with {done.returncode}, expected {expected}:\n{done.stdout}")
        return done.stdout


def commands_of(body: str) -> list[str]:
    """The commands of a block, each on one line."""
    joined = body.replace("\\\n", " ")
    return [re.sub(r"\s+", " ", line[2:]).strip() for line in joined.splitlines() if line.startswith("$ ")]


def main() -> int:
    """Replay pages in a folder."""
    words = sys.argv[1:]
    write = "--write" in words
    folder, *pages = (Path(word).resolve() for word in words if word != "--write")
    for page in pages:
        text = page.read_text(encoding="utf-8")
        try:
            made = Replay(folder).page(text)
        except Failed as error:
            print(f"{page.name}: {error}", file=sys.stderr)
            return 1
        if write:
            page.write_text(made, encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
