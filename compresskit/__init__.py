"""Make a trained PyTorch model smaller and faster, with a verdict that can be trusted.

    >>> import compresskit
    >>> model = compresskit.load("model.pt", arch="net.py:Net", input_shape=(1, 3, 32, 32))
    >>> report = compresskit.run(model, [compresskit.method("quantize.rtn", bits=4)], "out")
    >>> report.verdict
    <Verdict.UNVERIFIED: 'UNVERIFIED'>

Names are imported when they are first used, so that ``import compresskit`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compresskit.errors import CompressKitError as CompressKitError
    from compresskit.model import Card as Card
    from compresskit.model import Model as Model
    from compresskit.predict.pipeline import pipeline as pipeline
    from compresskit.recipe.plan import Recipe as Recipe
    from compresskit.recipe.reading import read_recipe as read_recipe
    from compresskit.report import Report as Report
    from compresskit.report import Verdict as Verdict
    from compresskit.report import read_report as read_report
    from compresskit.runner.api import export as export
    from compresskit.runner.api import inspect as inspect
    from compresskit.runner.api import method as method
    from compresskit.runner.api import open_data as open_data
    from compresskit.runner.api import recipes as recipes
    from compresskit.runner.api import run as run
    from compresskit.runner.api_measures import bench as bench
    from compresskit.runner.api_measures import compare as compare
    from compresskit.runner.api_measures import evaluate as evaluate
    from compresskit.runner.loading import load as load
    from compresskit.search.api import compress as compress

__version__ = "0.1.0"

_NAMES = {
    "CompressKitError": "compresskit.errors",
    "Card": "compresskit.model",
    "Model": "compresskit.model",
    "Recipe": "compresskit.recipe.plan",
    "Report": "compresskit.report",
    "Verdict": "compresskit.report",
    "bench": "compresskit.runner.api_measures",
    "compare": "compresskit.runner.api_measures",
    "compress": "compresskit.search.api",
    "evaluate": "compresskit.runner.api_measures",
    "export": "compresskit.runner.api",
    "inspect": "compresskit.runner.api",
    "load": "compresskit.runner.loading",
    "method": "compresskit.runner.api",
    "open_data": "compresskit.runner.api",
    "pipeline": "compresskit.predict.pipeline",
    "read_recipe": "compresskit.recipe.reading",
    "read_report": "compresskit.report",
    "recipes": "compresskit.runner.api",
    "run": "compresskit.runner.api",
}
__all__ = ["__version__", *_NAMES]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'compresskit' has no attribute '{name}'")
    return getattr(import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return __all__
