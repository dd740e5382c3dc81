"""How good a model is: metrics with intervals, fidelity without labels, and how much worse it may become."""

from compresskit.quality.drop import Limit, parse_drop, within
from compresskit.quality.evaluate import Difference, Score, evaluate, paired
from compresskit.quality.fidelity import Fidelity, compare_outputs
from compresskit.quality.forward import NonFiniteOutput
from compresskit.quality.metrics import METRICS, Metric, open_metric, pick
from compresskit.quality.synthetic import synthetic_inputs

__all__ = [
    "METRICS",
    "Difference",
    "Fidelity",
    "Limit",
    "Metric",
    "NonFiniteOutput",
    "Score",
    "compare_outputs",
    "evaluate",
    "open_metric",
    "paired",
    "parse_drop",
    "pick",
    "synthetic_inputs",
    "within",
]
