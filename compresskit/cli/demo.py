"""The tour: a model of its own from training to verdict."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskit.errors import InputError, missing_extra
from compresskit.report import Report
from compresskit.stage import Progress

if TYPE_CHECKING:
    import numpy as np

_COMMAND = "compresskit demo"
_EPOCHS = 4
_TRAIN = 1300
_SEARCH_S = 40.0
"""Seconds for search and verdict."""
_SHAPE = (1, 1, 8, 8)


def tour(folder: Path, *, seed: int, force: bool, say: Callable[[str], None], progress: Progress) -> Report:
    """Train the digits net, quantize it twice, and hold the results against it.

    Args:
        folder: Written whole, or not at all.
        seed: Of the training.
        force: Replace the folder.
        say: Told each step, in a line.
        progress: Called from time to time as ``progress(what, done, total)``.

    Raises:
        MachineError: scikit-learn isn't installed, or the disk is full.
    """
    from compresskit import train
    from compresskit.checkpoint.atomic import new_folder

    data = _digits()
    with new_folder(folder, force=force, ours=_is_demo) as place, _inside(place):
        shutil.copyfile(Path(train.__file__).with_name("digits_net.py"), "net.py")
        _save(data)
        say(f"training a small CNN on {_TRAIN} images of handwritten digits")
        _train(Path("digits.pt"), data, seed, progress)
        return _results(say, seed, progress)


def _is_demo(folder: Path) -> bool:
    """True for a folder that an earlier tour wrote."""
    from compresskit.report import read_report

    try:
        return read_report(folder / "report.json").command == _COMMAND
    except InputError:
        return False


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Work in a folder, so that reports show the short paths that a user standing there would type."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _results(say: Callable[[str], None], seed: int, progress: Progress) -> Report:
    from compresskit.runner import api
    from compresskit.runner.compare import Comparison, compare
    from compresskit.runner.judging import Measuring
    from compresskit.runner.loading import load
    from compresskit.runner.pipeline import run
    from compresskit.runner.steps import Job

    def read(path: Path, _runtime: str = "onnxruntime") -> Any:
        if path.is_dir():
            return load(path, shipped=True)
        return load(path, arch="net.py:Net", input_shape=_SHAPE)

    test = _open("test.npz")
    common = "--arch net.py:Net --eval-data test.npz"
    steps = {
        "int8": (api.method("quantize.int8-static"), f"--bits 8 --data train.npz {common}"),
        "int4": (api.method("quantize.rtn", bits=4), f"--bits 4 {common}"),
    }
    for name, (method, words) in steps.items():
        say(f"compresskit quantize digits.pt {words} -o {name}")
        measuring = Measuring(source=test, bench=False, seed=seed)
        job = Job.of([method], Path(name), _open("train.npz"), measuring, progress=progress)
        run(read(Path("digits.pt")), job)
    found = ["best"] if _searched(say, seed, progress) else []
    say(f"compresskit compare digits.pt {' '.join([*steps, *found])} --arch net.py:Net --data test.npz")
    paths = [Path("digits.pt"), *map(Path, [*steps, *found])]
    how = Comparison(judged=True)
    report = compare(paths, read, lambda _: test, Measuring(seed=seed), how, command=_COMMAND, progress=progress)
    Path("report.json").write_text(report.to_json(), encoding="utf-8")
    return report


def _searched(say: Callable[[str], None], seed: int, progress: Progress) -> bool:
    """Search for a recipe; False, and a line that says so, where Optuna isn't installed."""
    from compresskit.recipe.plan import Recipe
    from compresskit.runner.cache import Cache
    from compresskit.search.compress import Showing, compress
    from compresskit.search.request import Request

    if find_spec("optuna") is None:
        say("no search: it needs the extra search (pip install 'compresskit[search]')")
        return False
    say(
        "compresskit compress digits.pt --arch net.py:Net --data train.npz --eval-data test.npz --max-drop 1pt "
        f"--time {_SEARCH_S:.0f}s -o best"
    )
    recipe = Recipe(
        "compress", (), model="digits.pt", arch="net.py:Net", data="train.npz", eval_data="test.npz",
        max_drop="1pt", seed=seed,
    )  # fmt: skip
    request = Request.of(recipe, Path("best"), None, None, seconds=_SEARCH_S)
    with tempfile.TemporaryDirectory(prefix="compresskit-") as kept:
        compress(request, Cache(Path(kept)), Showing(progress, lambda line: say(f"  {line}")))
    return True


def _open(path: str) -> Any:
    from compresskit.data.opening import open_source

    return open_source(path)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """float32 ``(1797, 1, 8, 8)`` in −1…1, and int64 labels; in a fixed shuffled order."""
    import numpy as np

    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise missing_extra("scikit-learn", "demo") from None
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    x = (found.images[order, None] / 8 - 1).astype(np.float32)
    return x, found.target[order].astype(np.int64)


def _save(data: tuple[np.ndarray, np.ndarray]) -> None:
    import numpy as np

    x, y = data
    np.savez("train.npz", x=x[:_TRAIN], y=y[:_TRAIN])
    np.savez("test.npz", x=x[_TRAIN:], y=y[_TRAIN:])


def _train(target: Path, data: tuple[np.ndarray, np.ndarray], seed: int, progress: Progress) -> None:
    import torch
    from torch.nn.functional import cross_entropy

    from compresskit.train.digits_net import Net
    from compresskit.train.loop import fit
    from compresskit.train.settings import Training

    torch.manual_seed(seed)
    module = Net()
    x, y = (torch.from_numpy(part[:_TRAIN]) for part in data)
    training = Training(_EPOCHS, seed=seed)
    fit(module, [x, y], lambda net, batch: cross_entropy(net(batch[0]), batch[1]), training=training, progress=progress)
    torch.save(module.state_dict(), target)
