"""A language model and its program in a process of its own: commands on stdin, answers on stdout, as JSON lines.

Commands: ``{"do": "open", "path": …, "threads": n, "context": n}``, ``{"do": "write", "prompt": n, "new": n}`` and
``{"do": "peak"}``. Answers: ``{"ok": …}`` or ``{"error": kind, "message": …, "hint": …}``; the first, unasked, is
``ready``. The process ends when stdin does.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from compresskit.benchmark import memory
from compresskit.errors import CompressKitError, InputError, MachineError, UsageError
from compresskit.runner.generating import open_writer
from compresskit.runtimes.text import Request, Writer


def main(engine: str) -> None:
    """Serve until stdin ends.

    Args:
        engine: The program that opens what is asked for.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # programs print; answers go alone
    writer: Writer | None = None

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    say({"ok": "ready"})
    for line in sys.stdin:
        command = json.loads(line)
        try:
            if command["do"] == "open":
                path, threads = Path(command["path"]), command["threads"]
                writer = open_writer(path, engine, threads=threads, context=command["context"])
                say({"ok": True})
            elif command["do"] == "write" and writer is not None:
                ids = [3 + at % 97 for at in range(command["prompt"])]  # any numbers take as long
                made = writer.write(Request(ids, command["new"], to_the_end=True), lambda text: None)
                say({"ok": [made.prompt_tokens, made.new_tokens, made.first_s, made.rest_s]})
            else:
                say({"ok": memory.peak()})
        except CompressKitError as error:
            kind = next((k for k in (UsageError, MachineError, InputError) if isinstance(error, k)), InputError)
            say({"error": kind.__name__, "message": error.message, "hint": error.hint})
