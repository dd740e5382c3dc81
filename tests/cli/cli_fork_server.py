"""Runs commands in forked children that kill themselves at the n-th thing they do to the output.

Reads ``{"argv": […], "at": n, "signal": s, "log": path, "place": folder}`` a line and answers ``{"code": c, "events":
n}``. A fork of a process that has torch imported costs milliseconds where a fresh one costs seconds.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

WARM = (
    "compresskit.cli.app", "compresskit.cli.main", "compresskit.cli.run_stage", "compresskit.cli.stages",
    "compresskit.ops.quantize.stream", "compresskit.render.terminal", "compresskit.runner.api",
    "compresskit.stages.quantize_rtn", "compresskit.export.checked", "onnxruntime", "rich.table",
    "torch._export.non_strict_utils", "torch.onnx._internal.exporter._core",
)  # fmt: skip
MARKS = (".out.compresskit-", "/out", "out/", "/steps", "steps/")


def child(job: dict[str, Any], tell: int) -> None:
    from compresskit.cli.main import main

    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(job["place"])
    seen = [0]

    def count() -> None:
        seen[0] += 1
        if seen[0] == job["at"]:
            os.kill(os.getpid(), job["signal"])

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event.startswith(("open", "os.", "shutil.")) and any(
            str(a) in ("out", "steps") or any(mark in str(a) for mark in MARKS) for a in arguments
        ):
            count()

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            count()
            return function(*arguments)

        return wrapped

    os.fsync = counting(os.fsync)
    sys.addaudithook(hook)
    sys.argv = ["compresskit", *job["argv"]]
    code = 70
    try:
        main()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 70
    finally:
        os.write(tell, str(seen[0]).encode())
        os._exit(code)


def serve() -> None:
    import torch

    for name in WARM:
        importlib.import_module(name)
    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        hear, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(hear)
            child(job, tell)
        os.close(tell)
        _, status = os.waitpid(pid, 0)
        with os.fdopen(hear, "rb") as pipe:
            events = int(pipe.read() or 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status), "events": events}), flush=True)


if __name__ == "__main__":
    serve()
