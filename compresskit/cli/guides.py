"""What the short help of a command shows first, and its examples."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Guide:
    """The short help of a command.

    Attributes:
        first: Options in the order of the help, by their field; none shows all of them.
        examples: Command lines without the program's name.
    """

    first: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()


_DATA = ("data", "eval_data", "arch", "input_shape", "max_drop", "output")
_CNN = "digits.pt --arch net.py:Net --data train.npz --eval-data test.npz"
GUIDES = {
    "quantize": Guide(
        ("method", "bits", "target_bits", "max_size", *_DATA),
        (
            f"quantize {_CNN} --bits 8 -o int8",
            "quantize all-MiniLM-L6-v2 --bits 4 --data lines.txt --eval-data pairs.csv",
            "quantize model.onnx --data train.npz -o int8",
        ),
    ),
    "prune": Guide(
        ("method", "target_macs", "target_params", "target_latency", "epochs", *_DATA),
        (
            f"prune {_CNN} --target-macs 0.5 --epochs 5",
            "prune all-MiniLM-L6-v2 --method depth --drop 2 --data lines.txt",
        ),
    ),
    "substitute": Guide(
        ("method", "count", "target_latency", "stand_in", "epochs", *_DATA),
        (
            "substitute model.pt --arch net.py:Net --data train.npz --eval-data test.npz --count 2",
            "substitute all-MiniLM-L6-v2 --count 2 --data lines.txt",
        ),
    ),
    "share": Guide(
        ("method", "run_length", "alike", "group", "form", "epochs", *_DATA),
        (
            "share all-MiniLM-L6-v2 --data lines.txt --epochs 2",
            "share model.pt --arch net.py:Net --method symmetrize --group d4 --data train.npz --eval-data test.npz",
            "share model.pt --arch net.py:Net --data train.npz --eval-data test.npz --alike 0.9",
        ),
    ),
    "factorize": Guide(
        ("method", "budget", "energy", "rank", "epochs", *_DATA),
        (f"factorize {_CNN} --budget 0.5", "factorize all-MiniLM-L6-v2 --budget 0.8 --data lines.txt"),
    ),
    "route": Guide(
        ("method", "exits", "calibration", "keep", "experts", "epochs", *_DATA),
        (
            f"route {_CNN} --max-drop 0.5pt -o routed",
            "route all-MiniLM-L6-v2 --method experts --keep 0.75 --data lines.txt",
        ),
    ),
    "distill": Guide(
        ("method", "teacher", "teacher_arch", "student_depth", "epochs", *_DATA),
        (
            "distill small.pt --arch net.py:Small --teacher large.pt --teacher-arch net.py:Large --data train.npz",
            "distill all-MiniLM-L6-v2 --student-depth 4 --method layers --data lines.txt",
        ),
    ),
    "lora": Guide(
        ("method", "rank", "targets", "merge", "epochs", "lr", "data", "eval_data", "arch", "output"),
        ("lora all-MiniLM-L6-v2 --data train.csv --eval-data test.csv", f"lora {_CNN} --epochs 5 --merge"),
    ),
    "compress": Guide(
        ("data", "eval_data", "max_drop", "max_size", "min_speedup", "time", "pick", "arch", "input_shape", "output"),
        (
            f"compress {_CNN} --max-drop 1pt --time 10m -o best",
            f"compress {_CNN} --max-size 200kB --pick quality -o small",
            "compress --join best.study",
        ),
    ),
    "run": Guide(
        ("data", "eval_data", "arch", "set_", "allow_code", "dry_run", "max_drop", "cache", "output", "force"),
        (f"run edge-int8 {_CNN} -o int8", "run mine.yaml --set steps.0.target-macs=0.6 -o out"),
    ),
    "bench": Guide(
        (
            "runtime", "batch", "threads", "sequence", "generate", "processes", "min_speedup", "baseline", "arch",
            "json", "html",
        ),
        (
            "bench digits.pt int8 --arch net.py:Net --input-shape 1,1,8,8",
            "bench model.onnx small.onnx --batch 1,32 --min-speedup 1.5",
            "bench model.onnx --runtime auto",
            "bench my-model out out.gguf --generate 512,128",
        ),
    ),
    "compare": Guide(
        (
            "data", "metric", "max_drop", "max_size", "min_speedup", "no_bench", "layers", "arch", "input_shape",
            "json", "html",
        ),
        (
            "compare digits.pt int8 int4 --arch net.py:Net --data test.npz --max-drop 1pt",
            "compare digits.pt digits.onnx --arch net.py:Net --data test.npz --layers",
        ),
    ),
    "evaluate": Guide(
        ("data", "metric", "normalize", "sequence", "arch", "input_shape", "runtime", "target", "json"),
        ("evaluate int8 --data test.npz", "evaluate int8 --data test.npz --target x86-avx2"),
    ),
    "export": Guide(
        ("output", "to", "arch", "arch_args", "input_shape", "data", "force"),
        (
            "export digits.pt --arch net.py:Net --input-shape 1,1,8,8 -o digits.onnx",
            "export all-MiniLM-L6-v2 -o minilm.onnx",
            "export out --to gguf -o out.gguf",
        ),
    ),
    "inspect": Guide(
        ("arch", "input_shape", "data", "structure", "sensitivity", "spectrum", "rows", "suggest", "json", "html"),
        (
            "inspect digits.pt --arch net.py:Net --data train.npz --structure",
            "inspect digits.pt --arch net.py:Net --data train.npz --sensitivity",
            "inspect digits.pt --arch net.py:Net --input-shape 1,1,8,8 --suggest mine.yaml",
        ),
    ),
    "check": Guide(
        (
            "max_drop", "max_size", "min_speedup", "baseline", "max_growth", "allow_other_machine", "format", "output",
        ),
        (
            "check int8 --max-drop 1% --max-size 1MB --min-speedup 1.2",
            "check int8 --baseline release/report.json --format github",
        ),
    ),
    "generate": Guide(
        ("tokens", "temperature", "engine", "chat", "threads"),
        ('generate out "Once upon a time" --tokens 64', 'generate out.gguf "Once upon a time"'),
    ),
    "predict": Guide(
        (),
        ('predict minilm8 "A cat sits on the mat."', "predict int8 a.jpg b.jpg --top 3", "predict int8 x.npz --json -"),
    ),
    "serve": Guide(
        ("name", "host", "port", "runtime", "threads", "workers", "queue", "max_batch", "timeout"),
        ("serve int8 --name digits --port 8080",),
    ),
    "report": Guide((), ("report int8 -o int8.html", "report int8 --log mlflow")),
    "mcp": Guide((), ("mcp",)),
    "verify": Guide((), ("verify out --data train.npz",)),
    "recipe": Guide((), ("recipe ls", "recipe cp edge-int8 mine.yaml", "recipe check mine.yaml")),
    "cache": Guide((), ("cache ls", "cache clear")),
    "demo": Guide((), ("demo -o digits",)),
    "doctor": Guide((), ("doctor",)),
    "lora merge": Guide((), ("lora merge all-MiniLM-L6-v2 tuned/adapter -o merged",)),
    "lora list": Guide((), ("lora list tuned",)),
    "lora combine": Guide((), ("lora combine first second --weights .5 .5 --method ties -o both",)),
    "lora route": Guide((), ("lora route all-MiniLM-L6-v2 first second --data labelled.csv -o routed",)),
    "recipe check": Guide((), ("recipe check mine.yaml --allow-code",)),
}  # fmt: skip


def guide_of(name: str, method: str | None) -> Guide:
    """The guide of a command; that of a method which was named shows how it is typed.

    Args:
        name: ``quantize``, ``lora merge`` …
        method: What the command line says behind ``--method``.
    """
    found = GUIDES.get(name, Guide())
    return found if method is None else Guide(found.first, (f"{name} model.pt --method {method} --arch net.py:Net",))
