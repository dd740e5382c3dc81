"""``compresskit serve``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compresskit.cli import options as shared

if TYPE_CHECKING:
    from compresskit.serve.http import HttpService
    from compresskit.serve.tensors import Limits

_LISTEN = "Listening"
_LIMITS = "Limits"

ModelArg = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Bundle, .onnx file, or language model.", show_default=False)
]
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
    str | None,
    typer.Option(
        "--runtime",
        metavar="NAME",
        help="Engine of ONNX files: onnxruntime, openvino or openvino-bf16. (onnxruntime)",
        rich_help_panel="Run",
        show_default=False,
    ),
]
TextEngine = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="llama.cpp|genai|transformers",
        help="Program that runs the model. (by the form of MODEL)",
        rich_help_panel="Run",
        show_default=False,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        max=256,
        help="Requests that run at the same time. (2; 1 for a language model)",
        rich_help_panel="Run",
        show_default=False,
    ),
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
    typer.Option(
        "--max-length",
        min=1,
        help="Maximum size of any other dynamic axis; maximum tokens of prompt and answer together.",
        rich_help_panel=_LIMITS,
    ),
]
MaxBody = Annotated[
    float, typer.Option("--max-body", min=0.001, help="Maximum size of one request, in MB.", rich_help_panel=_LIMITS)
]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout", min=0.01,
        help="Time limit in seconds for receiving a request, and for answering it. (30; 600 for a language model)",
        rich_help_panel=_LIMITS, show_default=False,
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
_SECONDS, _WRITING_SECONDS = 30.0, 600.0


def command(
    model: ModelArg,
    name: Name = None,
    host: Host = "127.0.0.1",
    port: Port = 8080,
    runtime: RuntimeName = None,
    engine: TextEngine = None,
    workers: Workers = None,
    threads: shared.Threads = 0,
    queue: Queue = 32,
    max_batch: MaxBatch = 64,
    max_length: MaxLength = 4096,
    max_body: MaxBody = 16,
    timeout: Timeout = None,
    connections: Connections = 512,
    grace: Grace = 20,
    allow_nonfinite: shared.AllowNonfinite = False,
    quiet: shared.Quiet = False,
) -> None:
    """Serve a model over HTTP, a language model with OpenAI's API.

    An ONNX model speaks the Open Inference Protocol (KServe v2). Needs the extra serve, and no torch for ONNX files.
    The server listens on this machine only by default. It has no encryption and no password, so put a proxy in front
    of it on a public network. SIGTERM finishes running requests and exits with code 0; Ctrl-C does the same and exits
    with 130. Prometheus metrics are at /metrics.

    A language model answers /v1/completions and /v1/chat/completions, one request at a time: a .gguf file, a folder
    for onnxruntime-genai, a Hugging Face folder, or a bundle. With --engine, a bundle's own .gguf file or -genai
    folder is taken from beside it. With --runtime, a bundle's model.onnx is served as any other ONNX file.
    """
    import re

    from compresskit.errors import UsageError, missing_extra

    if absent := [package for package in _NEEDED if importlib.util.find_spec(package) is None]:
        raise missing_extra(absent[0], "serve")
    if runtime is not None and runtime not in _ENGINES:
        raise UsageError(f"--runtime {runtime}: serve runs {', '.join(_ENGINES)}")
    writes = _writes(model, runtime, engine)
    if writes and workers not in (None, 1):
        raise UsageError("--workers is 1 for a language model", "start several servers on different ports")
    title = name or (model.stem if model.is_file() else model.resolve().name)
    if not re.fullmatch(r"[\w.-]{1,128}", title, re.ASCII):
        raise UsageError(f"'{title}' cannot be part of a URL", "give --name of letters, digits, dots and dashes")
    if not writes:
        from compresskit.runtimes import get
        from compresskit.runtimes.base import require

        require(get(runtime or _ENGINES[0]))

    from compresskit.serve.server import address_of, listen, serve
    from compresskit.serve.tensors import Limits

    bound = listen(host, port)
    body, seconds = int(max_body * 1e6), timeout or (_WRITING_SECONDS if writes else _SECONDS)
    limits = Limits(max_batch, max_length, body, seconds)
    try:
        if writes:
            service = _writing(model, title, engine, threads, queue, limits)
        else:
            service = _inferring(
                model, title, runtime or _ENGINES[0], (workers or 2, threads, queue), limits, allow_nonfinite
            )
    except BaseException:
        bound.close()
        raise

    def ready() -> None:
        if not quiet:
            typer.echo(f"ready: {address_of(bound)}/{'v1' if writes else 'v2'}/models/{title}")

    raise typer.Exit(serve(service, bound, connections=connections, grace=grace, ready=ready))


def _writes(model: Path, runtime: str | None, engine: str | None) -> bool:
    """Whether a model is served as one that writes text.

    Raises:
        UsageError: Both of runtime and engine are given.
        InputError: It is nothing that can be served.
    """
    from compresskit.checkpoint.load import is_causal, kind_of
    from compresskit.errors import InputError, UsageError
    from compresskit.runtimes.text import kind_of as program_of

    if runtime is not None and engine is not None:
        raise UsageError("--runtime is for ONNX files, --engine for language models", "remove one of them")
    if engine is not None or (model.exists() and program_of(model) != "transformers"):
        return True
    kind = kind_of(model)
    if kind == "onnx" or (kind == "bundle" and (runtime is not None or not is_causal(model))):
        return False
    if kind in ("bundle", "huggingface") and is_causal(model):
        return True
    raise InputError(
        f"{model} is neither an .onnx file nor a bundle nor a language model", f"compresskit export {model} first"
    )


def _writing(model: Path, title: str, engine: str | None, threads: int, queue: int, limits: Limits) -> HttpService:
    from compresskit.runner.generating import open_writer
    from compresskit.serve.text import TextService, TextWorkers

    writer = open_writer(model, engine, threads=threads, context=limits.length)
    return TextService(title, TextWorkers(writer, queue), limits)


def _inferring(
    model: Path, title: str, runtime: str, run: tuple[int, int, int], limits: Limits, allow_nonfinite: bool
) -> HttpService:
    """``run``: requests at the same time, threads of an operator, requests that wait."""
    from compresskit.checkpoint.load import load
    from compresskit.errors import InputError
    from compresskit.serve.app import Service
    from compresskit.serve.engine import open_engine

    body = load(model, allow_nonfinite=allow_nonfinite, shipped=True).body
    if not isinstance(body, Path) or body.suffix != ".onnx":
        raise InputError(f"{model} holds no model.onnx", "make the bundle without --no-export")
    workers, threads, queue = run
    return Service(title, runtime, open_engine(body, runtime, threads=threads, workers=workers, waiting=queue), limits)
