"""What a single stage gave, kept in the step cache: the same command on the same model again starts from its files.

Neither the module nor its library is needed then. The key of what is kept has all that the files depend on; they were
proven when they were made, and are measured and judged each time.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from compresskit.checkpoint.bundle import ASIDE, read_card, seal
from compresskit.errors import MachineError
from compresskit.model import Card, Model
from compresskit.runner.cache import Cache
from compresskit.runner.cached_steps import FromEntries
from compresskit.runner.entries import At, at_entry, write_note
from compresskit.runner.judging import Ready
from compresskit.runner.keys import content, digest, options_of, surroundings
from compresskit.runner.originals import original_key
from compresskit.runner.prepare import with_usage
from compresskit.runner.steps import InMemory, Job, Taken
from compresskit.stage import Stage

_NOTE = "the files are those that the same command gave before, from the step cache; they were measured again"


def keeps(stage: Stage) -> bool:
    """Whether it pays to keep what a stage gives, and the key has all that it depends on: it learns from nobody."""
    return stage.kind.quantizes and stage.learns_from is None


def reading_key(path: Path) -> str:
    """What is known of a model depends on its files, the versions and this program's code.

    Args:
        path: A Hugging Face folder.

    Raises:
        InputError: A file can't be read.
    """
    around = surroundings(0)
    return digest("reading", content(path), around["packages"], around["code"])


class KeptRun:
    """A run whose result is kept."""

    def __init__(self, reading: str, card: Card, notes: tuple[str, ...], cache: Cache) -> None:
        """``reading`` is from :func:`reading_key`, ``card`` and ``notes`` are of the model as it was read."""
        self._reading, self._card, self._notes, self._cache = reading, card, notes, cache
        self._steps: _Kept | None = None

    def steps(self, model: Model, job: Job, work: Path) -> InMemory:
        """What takes the steps: in memory, as for any single command."""
        self._steps = _Kept(model, job, work)
        return self._steps

    def keep(self, output: Path) -> None:
        """Put what was written, but for what tells of this run, into the cache; one that can't be written to stays."""
        steps = self._steps
        if steps is None or steps.key is None or steps.result is None or not self._card.inputs:
            return
        known = {"card": self._card.to_json(), "notes": list(self._notes)}
        with contextlib.suppress(MachineError):
            with self._cache.fill(steps.key) as folder:
                for path in sorted(output.rglob("*")):
                    name = path.relative_to(output)
                    if path.is_file() and name.as_posix() not in ASIDE:
                        (folder / name).parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(path, folder / name)
                stages, notes, target = steps.taken.stages, list(steps.taken.notes), steps.taken.target
                write_note(folder, steps.result.shipped, steps.result.counts, *stages, notes=notes, target=target)
                seal(folder, read_card(output, verify=False))
            self._cache.remember(self._reading, known)


class _Kept(InMemory):
    """Steps in memory that remember what they came to."""

    def __init__(self, model: Model, job: Job, work: Path) -> None:
        super().__init__(model, job, work)
        self.taken = Taken()
        self.result: Ready | None = None
        self.key: str | None = None
        original = self.baseline.shipped
        if original is not None and job.cache is not None and original.path.is_relative_to(job.cache.root):
            self.key = _result_key(original.path.parent.name, job)  # entries are named after their keys

    def take(self, place: int, stage: Stage, now: Taken) -> Taken:
        """See :class:`Steps`."""
        self.taken = super().take(place, stage, now)
        return self.taken

    def deliver(self, now: Taken, folder: Path) -> Ready:
        """See :class:`Steps`."""
        self.result = super().deliver(now, folder)
        return self.result


class _Found(FromEntries):
    """The one step of a run that was kept."""

    def __init__(self, original: At, result: At, cache: Cache) -> None:
        self.first, self.baseline = original, original.ready
        self._result, self._cache = result, cache

    def take(self, place: int, stage: Stage, now: At) -> At:
        """See :class:`Steps`."""
        return self._result


@dataclass(frozen=True)
class Found:
    """A run that was kept.

    Attributes:
        model: What is known of the model, without what would lie in memory.
        job: What is to be run.
        steps: Takes it from the cache.
    """

    model: Model
    job: Job
    steps: FromEntries


def found_again(path: Path, reading: str, cache: Cache, job_of: Callable[[Model], Job]) -> Found | None:
    """What was kept of a job on a model; None where nothing was, or where its files aren't those on record.

    Args:
        path: A Hugging Face folder.
        reading: From :func:`reading_key`.
        cache: Where it was kept.
        job_of: Gives the job, by what is known of the model.
    """
    known = cache.recall(reading)
    if known is None:
        return None
    model = Model(path, Card.from_json(known["card"]), path, notes=tuple(known["notes"]))
    job = job_of(model)
    model = with_usage(model, job.measuring.source, job.data)
    around = surroundings(job.measuring.threads)
    key = original_key(model, job, around)
    places = cache.find(key), cache.find(result := _result_key(key, job))
    if places[0] is None or places[1] is None:
        return None
    original, step = at_entry(key, places[0], model), at_entry(result, places[1], model)
    return Found(model, replace(job, notes=(*job.notes, _NOTE)), _Found(original, step, cache))


def _result_key(original: str, job: Job) -> str:
    """What the files depend on, and what was checked before they were made: limits and data that go with them."""
    (stage,), measuring = job.stages, job.measuring
    data = None if job.data is None else job.data.fingerprint()
    judged = [asdict(measuring.limits), measuring.bench, measuring.metric, measuring.source is None, measuring.device]
    return digest("result", original, stage.name(), options_of(stage), data, judged)
