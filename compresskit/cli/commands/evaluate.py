"""``compresskit evaluate``."""

from __future__ import annotations

import typer

from compresskit.cli import options as shared
from compresskit.cli.option_groups import Engine, Evaluating, Reading, Showing, grouped


@grouped
def command(model: shared.ModelArg, evaluating: Evaluating, reading: Reading, engine: Engine, showing: Showing) -> None:
    """Measure the quality of a model on data.

    The metric is accuracy for labelled samples, perplexity for a causal language model, Spearman correlation for scored
    sentence pairs, or your own function. The model is measured in its final form: exported to ONNX and run by an
    engine. With --target x86-avx2 the 8-bit products of an int8 model saturate as on an x86 CPU without VNNI, bit by
    bit.
    """
    from compresskit.cli.comparing import compare_models
    from compresskit.errors import UsageError
    from compresskit.runner.compare import Comparison

    if evaluating.data is None:
        raise UsageError("evaluate needs --data", "for example --data test.npz with arrays x and y")
    code = compare_models(
        [model], engine.measuring(evaluating, bench=False), Comparison(judged=False, runtimes=[engine.runtime]),
        reading=reading, showing=showing, evaluating=evaluating,
    )  # fmt: skip
    raise typer.Exit(code)
