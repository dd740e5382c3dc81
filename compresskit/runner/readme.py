"""The README.md of a bundle: a model card as hubs show it, with the report's figures and the lines that run it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from compresskit import __version__
from compresskit.checkpoint.bundle import ONNX_NAME, README_NAME
from compresskit.errors import printable
from compresskit.model import Card
from compresskit.report import Measurement, ModelEntry, Report, Verdict
from compresskit.runner.run_lines import alone, kind_of_samples, with_compresskit, without_onnx
from compresskit.runner.run_lines import transformers_reads as reads

_QUALITY = ("top5", "perplexity", "spearman", "accuracy", "cosine", "sqnr", "agreement", "weight_sqnr")
_NAMES = {"sqnr": "SQNR", "weight_sqnr": "SQNR of weights", "top5": "top-5 accuracy"}
_KEPT = ("license", "license_name", "license_link", "language")
_FRONT = re.compile(r"\A---\s*\n(.*?)\n---\s*\n", re.S)
_LINE = re.compile(r"^([a-z_]+):[ \t]*[\"']?([\w.:/+ -]{1,120}?)[\"']?[ \t]*$", re.M)
_HUB = re.compile(r"models--([\w.-]+?)--([\w.-]+)")
_VERDICTS = {
    Verdict.PASS: "every limit was met",
    Verdict.FAIL: "a limit was missed",
    Verdict.INCONCLUSIVE: "a limit could not be decided",
    Verdict.UNVERIFIED: "the quality was not measured on labelled data",
}


def readme(report: Report, card: Card, source: Path, folder: Path) -> str:
    """The text.

    Args:
        report: Of the run.
        card: Of the result.
        source: The original: the licence and the language are those that its own README.md tells.
        folder: The bundle, whole but for its card.
    """
    kind = kind_of_samples(folder, card)
    parts = [
        _front(card, source, folder),
        f"# {_text(report.models[-1].name)}",
        f"Made of {_text(report.models[0].name)} with CompressKit {__version__}: {_steps(card)}.",
        _table(report),
        f"Verdict: **{report.verdict.value}**, {_VERDICTS[report.verdict]}. `report.json` has all figures and limits, "
        f"and the machine.",
        "## Run it",
    ]
    if kind is None:
        if card.arch.kind == "python":
            parts.append(f"The class `{_text(card.arch.reference)}` is not in this folder: it is needed beside it.")
        parts.append(_block(without_onnx(folder, card)))
    else:
        parts += [_about_samples(kind), _block(with_compresskit(card, kind)), "Without CompressKit:"]
        parts.append(_block(alone(folder, card, kind, _outputs(folder))))
        if card.usage.pooling and (folder / "modules.json").is_file():
            parts.append(
                'sentence-transformers loads this folder too: `SentenceTransformer(".", backend="onnx")`, with its '
                "extra `onnx` installed. Take `sentence_embedding` from the ONNX file, not `pooler_output`."
            )
    return "\n\n".join(parts) + "\n"


def write_readme(report: Report, card: Card, source: Path, folder: Path) -> None:
    """Write it into a bundle."""
    text = readme(report, card, source, folder)
    (folder / README_NAME).write_bytes(text.encode("utf-8", "backslashreplace"))


def _front(card: Card, source: Path, folder: Path) -> str:
    """What hubs read: licence and language of the original where they are known, the base model, library and task."""
    told = _told(source)
    hub = _HUB.search(str(source.resolve()))
    if hub and "base_model" not in told:
        told["base_model"] = f"{hub[1]}/{hub[2]}"
    runs = (folder / ONNX_NAME).is_file()
    library = "sentence-transformers" if card.usage.pooling else "transformers" if reads(folder, card) else ""
    lines = [f"{name}: {json.dumps(value)}" for name, value in told.items()]
    if "base_model" in told and any(step.name.startswith("quantize.") for step in card.history):
        lines.append("base_model_relation: quantized")
    if library or runs:
        lines.append(f"library_name: {library or 'onnx'}")
    if task := _task(card):
        lines.append(f"pipeline_tag: {task}")
    tags = ["compresskit", *(["onnx"] if runs else []), *dict.fromkeys(step.name for step in card.history)]
    return "\n".join(["---", *lines, "tags:", *(f"- {json.dumps(tag)}" for tag in tags), "---"])


def _told(source: Path) -> dict[str, str]:
    """Single-line entries of the original's own front matter."""
    path = (source if source.is_dir() else source.parent) / README_NAME
    try:
        text = path.read_bytes()[: 1 << 16].decode("utf-8", "replace").replace("\r\n", "\n")
    except OSError:
        return {}
    front = _FRONT.search(text)
    known = {} if front is None else {key: value.strip() for key, value in _LINE.findall(front[1])}
    return {key: known[key] for key in (*_KEPT, "base_model") if known.get(key)}


def _task(card: Card) -> str:
    reference = card.arch.reference
    if card.usage.pooling:
        return "sentence-similarity"
    if reference.endswith("ForSequenceClassification"):
        return "text-classification"
    images = any(len(spec.shape) == 4 for spec in card.inputs)
    if card.usage.scores is not None and images:
        return "image-classification"
    return "text-generation" if card.task == "causal-lm" else "feature-extraction" if card.task == "embedding" else ""


def _steps(card: Card) -> str:
    named = [f"`{step.name}`" for step in card.history]
    return ", ".join(named) if named else "no step was left"


def _about_samples(kind: str) -> str:
    return {
        "texts": "Texts are tokenized with the `tokenizer.json` beside the model.",
        "images": "`picture.jpg` stands for an image of yours.",
        "rows": "A row of numbers a sample; zeros stand for yours.",
        "arrays": "Arrays by the names of the inputs; zeros stand for yours.",
    }[kind]


def _table(report: Report) -> str:
    """Size, quality and latency of the original and the result."""
    models = report.models
    header = ["", *("original" if entry is not models[-1] else "this" for entry in models)]
    rows = [["size", *(_size(entry.bytes) for entry in models)]]
    metric = report.evaluation.metric if report.evaluation else ""
    for name in dict.fromkeys((metric, *_QUALITY)):
        if name and (cells := _cells(report.values(name), models)):
            rows.append([_NAMES.get(name, _text(name)), *cells])
    if cells := _cells(report.values("latency_p50"), models):
        cpu = report.environment.get("cpu") or report.environment.get("machine") or "this machine"
        point = next(iter(report.values("latency_p50").values()))
        about = f"batch {point.batch or 1}, {report.environment.get('threads', 1)} threads, {_text(cpu)}"
        rows.append([f"latency, p50 ({about})", *cells])
    if cells := _cells(report.values("speedup"), models):
        rows.append(["speed", *cells])
    lines = [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines)


def _cells(found: dict[str, Measurement], models: Sequence[ModelEntry]) -> list[str]:
    """A figure of each model; none where no model has it."""
    return [_figure(found.get(entry.name)) for entry in models] if found else []


def _figure(found: Measurement | None) -> str:
    if found is None:
        return "–"
    unit = "" if not found.unit else found.unit if found.unit == "×" else f" {_text(found.unit)}"
    interval = "" if found.low is None or found.high is None else f" [{found.low:.4g}, {found.high:.4g}]"
    return f"{found.value:.4g}{unit}{interval}"


def _size(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


def _text(text: object) -> str:
    """Text of any origin inside Markdown."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", printable(text))


def _block(code: str) -> str:
    return f"```python\n{code}\n```"


def _outputs(folder: Path) -> list[str]:
    import onnx

    graph = onnx.load(str(folder / ONNX_NAME), format="protobuf", load_external_data=False).graph
    return [value.name for value in graph.output]
