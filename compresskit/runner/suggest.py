"""A first recipe for a model, by what kind of model it is and what this machine multiplies fast."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from compresskit.benchmark.target import Target, get
from compresskit.errors import printable
from compresskit.model import Model, portable
from compresskit.ops.globs import escaped
from compresskit.recipe.reading import read_recipe

Kind = Literal["cnn", "text", "causal-lm", "linear", "tiny", "tensors", "other"]
_TITLES: dict[Kind, str] = {
    "cnn": "a network of convolutions",
    "text": "a transformer that reads text",
    "causal-lm": "a causal language model",
    "linear": "a model of Linear layers",
    "tiny": "a small model",
    "tensors": "tensors without an architecture",
    "other": "a model most of whose weights no stage of quantize takes",
}
_TINY = 20_000
"""Parameters below which a file is mostly operators and names."""
_MOSTLY = 0.5


@dataclass(frozen=True)
class Suggestion:
    """What to try first.

    Attributes:
        kind: What was seen.
        form: The estimate it belongs to, by its name in the estimates; empty for none.
        recipe: YAML, checked.
        options: Of the command that does the same in one step.
    """

    kind: Kind
    form: str
    recipe: str
    options: tuple[str, ...]


def kind_of(model: Model, found: Mapping[str, Any]) -> Kind:
    """What kind of model this is, by its task, its inputs and where its weights are.

    Args:
        model: As it was read.
        found: The inspection, with its ``estimates``.
    """
    kinds = found["estimates"]["kinds"]
    if isinstance(model.body, Path) and model.body.suffix != ".onnx":
        return "tensors"
    if model.card.task == "causal-lm":
        return "causal-lm"
    if kinds["other"] > _MOSTLY:
        return "other"
    if found["totals"]["parameters"] < _TINY:
        return "tiny"
    if kinds["conv"] > _MOSTLY:
        return "cnn"
    tokens = kinds["embedding"] > 0 and all(spec.dtype.startswith("int") for spec in model.card.inputs)
    return "text" if model.card.task == "embedding" or tokens else "linear"


def suggest(model: Model, found: Mapping[str, Any], words: Sequence[str]) -> Suggestion:
    """A recipe to start from.

    Args:
        model: As it was read.
        found: The inspection, with its ``estimates``.
        words: MODEL and what tells its architecture, as they were typed.

    Raises:
        RecipeError: A bug: the recipe isn't one.
    """
    kind, target = kind_of(model, found), get(None)
    made = _Making(model, found, kind, target, find_spec("openvino") is not None)
    form, options, steps, drop = made.choice()
    text = "\n".join(
        [
            *made.head(form, words, plain=not _varied(steps)),
            "steps:",
            *steps,
            "",
            *_CHECKS,
            f"checks: {{max-drop: {drop}}}",
            "",
        ]
    )
    _check(text)
    return Suggestion(kind, form, text, options)


def _varied(steps: Sequence[str]) -> bool:
    """True where some layers get other bits."""
    return any("layer-bits" in step or "target-bits" in step for step in steps)


_CHECKS = (
    "# Limits of the result; exit code 1 if it misses one. pt are points of the metric, 1% is relative.",
    "# {max-size: 1MB, min-speedup: 1.2} may be added.",
)


def _check(text: str) -> None:
    """Read it as ``run`` would."""
    with tempfile.TemporaryDirectory(prefix="compresskit-") as folder:
        path = Path(folder) / "suggested.yaml"
        path.write_text(text, encoding="utf-8")
        read_recipe(path)


@dataclass(frozen=True)
class _Making:
    """One suggestion; each method of a kind gives (form, options of the command, steps, limit)."""

    model: Model
    found: Mapping[str, Any]
    kind: Kind
    target: Target
    openvino: bool

    def head(self, form: str, words: Sequence[str], *, plain: bool) -> list[str]:
        """Comments on where this comes from and how it is run, and the description.

        Args:
            form: The estimate that is shown.
            words: As typed.
            plain: All layers have the bits of that form.
        """
        forms = {f["form"]: f for f in self.found["estimates"]["quantize"]["forms"]}
        count = self.found["totals"]["parameters"]
        typed = shlex.join([printable(portable(word)) for word in words])
        lines = [
            f"# Suggested by compresskit inspect for {_TITLES[self.kind]} of {count:,} parameters.",
            "# A starting point: the run measures the result.",
        ]
        if form in forms:
            size = forms[form]
            lines.append(
                f"# Estimated size in {form}: about {size['bytes'] / 1e3:,.0f} kB, {size['smaller']:.1f} times smaller "
                "than the file in float32" + ("." if plain else "; layers with more bits add to it.")
            )
        data = "" if self.kind == "tensors" else " --data DATA --eval-data DATA"
        lines += ["#", f"#   compresskit run FILE.yaml {typed}{data}", "#"]
        return [*lines, f"description: A first try for {_TITLES[self.kind]}.", ""]

    def choice(self) -> tuple[str, tuple[str, ...], list[str], str]:
        """What is tried."""
        eight, four = ("--bits", "8", "--data", "DATA"), ("--bits", "4", "--data", "DATA")
        if self.kind == "tensors":
            why = [
                "  # Without --arch FILE.py:NAME the model cannot run, so weights can be rounded but not calibrated."
            ]
            return "8 bit weights", ("--bits", "8"), [*why, "  - quantize.rtn: {bits: 8}"], "1%"
        if self.kind == "causal-lm" and not isinstance(self.model.body, Path):
            return "4 bit weights", four, self._language(), "5%"
        if self.kind == "linear" and not isinstance(self.model.body, Path):
            return "4 bit weights", four, self._linear(), "1%"
        if self.kind == "other":
            why = [
                "  # Only Linear layers, convolutions and embeddings are quantized, so the file gets little smaller.",
                "  # Alternatives: prune --method magnitude, or distill into a smaller model.",
            ]
            if isinstance(self.model.body, Path):
                return "8 bit products", ("--bits", "8"), [*why, "  - quantize.int8-dynamic"], "1%"
            return "8 bit weights", ("--bits", "8"), [*why, "  - quantize.rtn: {bits: 8}"], "1%"
        if self.kind == "text" and not isinstance(self.model.body, Path):
            return "8 bit", eight, self._text(), "1%"
        return "8 bit", eight, self._static(), "1pt"

    def _static(self) -> list[str]:
        lines = self._eight()
        if self.kind == "tiny":
            lines.append("  # In so small a file operators and names dominate, so the size estimate is rough.")
        lines.append("  - quantize.int8-static: {samples: 512}")
        pruned = self.found["estimates"]["prune"]
        if pruned["known"] and self.kind == "cnn":
            lines += [
                "  # For fewer MACs too, put this step first. It trains, because pruning alone loses much accuracy.",
                f"  # {100 * pruned['macs']:.0f} % of the MACs are in layers that can be cut.",
                "  # - prune.structured: {target-macs: 0.5, epochs: 15}",
            ]
        return lines

    def _text(self) -> list[str]:
        return [
            *self._eight(),
            "  # A transformer has activation outliers in a few channels: they are moved into the weights first.",
            *self._engine(),
            "  - quantize.smoothquant: {samples: 256}",
            "  # Smaller, but slower under onnxruntime: - quantize.gptq: {bits: 4}",
        ]

    def _language(self) -> list[str]:
        lines = [
            "  # Generating one token at a time is memory-bound: 4-bit weights speed up large models the most.",
            "  # gptq compensates each rounding error with the weights that are not yet rounded.",
        ]
        tied = _tied_embedding(self.found["layers"])
        wide = ""
        if tied:
            lines.append(
                "  # The embedding is also the output layer and affects every token: 8 bits cost little there."
            )
            wide = f", layer-bits: [{json.dumps(escaped(tied) + '=8/64', ensure_ascii=False)}]"
        return [*lines, *self._engine(), f"  - quantize.gptq: {{bits: 4, samples: 256{wide}}}"]

    def _linear(self) -> list[str]:
        lines = ["  # Products with a few rows are memory-bound: 4-bit weights make them faster as well as smaller."]
        if self.openvino:
            return [
                *lines,
                "  # OpenVINO is installed here. It is fastest with 4 bits without zero points, which are as small and",
                "  # accurate as the default if sensitive layers get more bits.",
                "  - quantize.auto: {symmetric: true, group-size: 64, target-bits: 4.6}",
            ]
        return [*lines, "  - quantize.auto: {bits: 4}"]

    def _eight(self) -> list[str]:
        """What this machine makes of 8-bit products."""
        if self.target.saturates:
            return [
                f"  # Target: {self.target.title}. Weights get 7 bits, because 8-bit products would saturate.",
                "  # For a CPU with VNNI use {target: x86-vnni}.",
            ]
        return [
            f"  # Target: {self.target.title}, with fast and exact 8-bit products. For another one use {{target: …}}."
        ]

    def _engine(self) -> list[str]:
        if self.openvino:
            return ["  # OpenVINO is installed and often the faster engine: compresskit bench OUT --runtime auto"]
        return ["  # OpenVINO is often the faster engine for it: pip install 'compresskit[openvino]'"]


def _tied_embedding(layers: Sequence[Mapping[str, Any]]) -> str:
    """The name of an embedding that a later layer shares."""
    embeddings = {layer["name"] for layer in layers if layer["type"] == "Embedding"}
    return next((str(layer["tied_to"]) for layer in layers if layer.get("tied_to") in embeddings), "")
