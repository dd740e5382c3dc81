"""``compresskit serve``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from compresskit.cli import options as shared

_LISTEN = "Listening"
_LIMITS = "Limits"

ModelArg = Annotated[Path, typer.Argument(metavar="MODEL", help="Bundle or .onnx file.", show_default=False)]
Name = Annotated[
    str | None, typer.Option("--name", help="Name of the model in URLs. (name of MODEL)", rich_help_panel=_LISTEN)
]
Host = Annotated[
    str, typer.Option("--host", help="Address to listen on; 0.0.0.0 listens on all addresses.", rich_help_panel=_LISTEN)
]
Port = Annotated[
    int,
    typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 picks a free port.", rich_help_panel=_LISTEN),
]
RuntimeName = Annotated[
    str,
    typer.Option(
        "--runtime", metavar="NAME", help="Engine: onnxruntime, openvino or openvino-bf16.", rich_help_panel="Run"
    ),
]
Workers = Annotated[
    int, typer.Option("--workers", min=1, max=256, help="Requests that run at the same time.", rich_help_panel="Run")
]
Queue = Annotated[
    int,
    typer.Option(
        "--queue", min=0, help="Requests that may wait; further requests get status 503.", rich_help_panel=_LIMITS
    ),
]
MaxBatch = Annotated[
    int, typer.Option("--max-batch", min=1, help="Maximum rows of one request.", rich_help_panel=_LIMITS)
]
MaxLength = Annotated[
    int,
    typer.Option("--max-length", min=1, help="Maximum size of any other dynamic axis.", rich_help_panel=_LIMITS),
]
MaxBody = Annotated[
    float, typer.Option("--max-body", min=0.001, help="Maximum size of one request, in MB.", rich_help_panel=_LIMITS)
]
Timeout = Annotated[
    float,
    typer.Option(
        "--timeout", min=0.01, help="Time limit in seconds for receiving a request, and for answering it.",
        rich_help_panel=_LIMITS,
    ),
]  # fmt: skip
Connections = Annotated[
    int,
    typer.Option(
        "--connections",
        min=1,
        help="Maximum open connections; further connections get status 503.",
        rich_help_panel=_LIMITS,
    ),
]
Grace = Annotated[
    float,
    typer.Option("--grace", min=0, help="Seconds to finish requests when stopped.", rich_help_panel=_LIMITS),
]
_NEEDED = ("starlette", "uvicorn", "prometheus_client")
_ENGINES = ("onnxruntime", "openvino", "openvino-bf16")


def command(
    model: ModelArg,
    name: Name = None,
    host: Host = "127.0.0.1",
    port: Port = 8080,
    runtime: RuntimeName = "onnxruntime",
    workers: Workers = 2,
    threads: shared.Threads = 0,
    queue: Queue = 32,
    max_batch: MaxBatch = 64,
    max_length: MaxLength = 4096,
    max_body: MaxBody = 16,
    timeout: Timeout = 30,
    connections: Connections = 512,
    grace: Grace = 20,
    allow_nonfinite: shared.AllowNonfinite = False,
    quiet: shared.Quiet = False,
) -> None:
    """Serve a model over HTTP with the Open Inference Protocol (KServe v2).

    Needs the extra serve, and no torch. The server listens on this machine only by default. It has no encryption and no
    password, so put a proxy in front of it on a public network. SIGTERM finishes running requests and exits with code
    0; Ctrl-C does the same and exits with 130. Prometheus metrics are at /metrics.
    """
    import re

    from compresskit.checkpoint.load import kind_of, load
    from compresskit.errors import InputError, UsageError, missing_extra

    if absent := [package for package in _NEEDED if importlib.util.find_spec(package) is None]:
        raise missing_extra(absent[0], "serve")
    if runtime not in _ENGINES:
        raise UsageError(f"--runtime {runtime}: serve runs {', '.join(_ENGINES)}")
    kind = kind_of(model)
    if kind not in ("onnx", "bundle"):
        raise InputError(f"{model} is neither an .onnx file nor a bundle", f"compresskit export {model} first")
    title = name or (model.stem if kind == "onnx" else model.resolve().name)
    if not re.fullmatch(r"[\w.-]{1,128}", title, re.ASCII):
        raise UsageError(f"'{title}' cannot be part of a URL", "give --name of letters, digits, dots and dashes")

    from compresskit.runtimes import get
    from compresskit.runtimes.base import require

    require(get(runtime))

    from compresskit.serve.app import Service
    from compresskit.serve.engine import open_engine
    from compresskit.serve.server import address_of, listen, serve
    from compresskit.serve.tensors import Limits

    bound = listen(host, port)
    try:
        body = load(model, allow_nonfinite=allow_nonfinite, shipped=True).body
        if not isinstance(body, Path) or body.suffix != ".onnx":
            raise InputError(f"{model} holds no model.onnx", "make the bundle without --no-export")
        engine = open_engine(body, runtime, threads=threads, workers=workers, waiting=queue)
    except BaseException:
        bound.close()
        raise
    service = Service(title, runtime, engine, Limits(max_batch, max_length), int(max_body * 1e6), timeout)

    def ready() -> None:
        if not quiet:
            typer.echo(f"ready: {address_of(bound)}/v2/models/{title}")

    raise typer.Exit(serve(service, bound, connections=connections, grace=grace, ready=ready))
