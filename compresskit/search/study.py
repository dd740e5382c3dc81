"""The record of a search: Optuna's study, in a file or a database, by one worker or many."""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskit.errors import InputError, MachineError, UsageError, missing_extra
from compresskit.exporter.quiet import first_line
from compresskit.search.policy import Wish
from compresskit.searched import Rung, Tried

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

JOURNAL = "journal.log"
"""The file of a study in its folder."""
_NAME = "compresskit"
_BEAT_S, _DEAD_S = 15.0, 60.0
"""Seconds between two signs of life of a worker, and after which one without is taken for dead."""
_AGREE_S = 2.0
"""Seconds that a worker waits at most for what another one says of the same candidate."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's lines and its warnings about what it calls experimental."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class SearchStudy:
    """The candidates of one search, shared by all its workers."""

    def __init__(self, study: Study) -> None:
        self._study = study

    @classmethod
    def open(cls, place: str, *, goals: int, seed: int, create: bool = True) -> SearchStudy:
        """Open a study, or begin one.

        Args:
            place: A folder, or the address of a database: ``postgresql://``, ``mysql://``, ``sqlite:///``, ``redis://``.
            goals: How many figures are to be small, where one is begun.
            seed: Of the choice of candidates.
            create: Begin one where there is none.

        Raises:
            MachineError: Optuna, or a database's driver, isn't installed, or the database doesn't answer.
            UsageError: There is none, and none is to be begun.
            InputError: The file is no study.
        """
        try:
            import optuna
        except ImportError:
            raise missing_extra("optuna", "search") from None
        with _quiet():
            storage = _storage(place, create=create)
            try:
                if create:
                    study = optuna.create_study(
                        storage=storage, study_name=_NAME, directions=["minimize"] * goals, load_if_exists=True
                    )
                else:
                    study = optuna.load_study(storage=storage, study_name=_NAME)
            except KeyError as error:
                raise UsageError(f"{shown(place)} holds no search", "begin one with `study`") from error
            except Exception as error:  # of a driver, or of a damaged file: any kind
                raise InputError(f"{shown(place)} can't be read as a study: {first_line(error)}") from error
            # A sampler that began again with its first seed would ask for the same candidates again.
            study.sampler = optuna.samplers.TPESampler(
                n_startup_trials=8, multivariate=True, group=True, constant_liar=True, seed=seed + len(study.trials)
            )
        return cls(study)

    def attribute(self, name: str) -> Any:
        """What was noted under a name; None where nothing was."""
        return self._study.user_attrs.get(name)

    def note(self, name: str, value: Any) -> None:
        """Note JSON data under a name."""
        self._study.set_user_attr(name, value)

    def claim(self, identity: Mapping[str, Any], place: str) -> None:
        """Make sure that this is the study of what is searched now.

        Raises:
            UsageError: It is of another model, other data or other bars.
        """
        known = self.attribute("identity")
        if known is None:
            self.note("identity", dict(identity))
            return
        if other := [name for name in identity if known.get(name) != identity[name]]:
            raise UsageError(
                f"{shown(place)} is the study of {_other(other[0])}", "give another `study`, or remove that one"
            )

    def queue(self, wish: Wish) -> None:
        """Try a candidate before those that the sampler proposes."""
        values = {key: value for key, value in wish.values.items() if wish.rung == "look"}
        with _quiet():
            self._study.enqueue_trial(values, user_attrs={"wish": wish.to_json()} if not values else None)

    def running(self) -> list[Tried]:
        """The candidates that workers are trying now; nothing is measured of them yet."""
        found = [(trial.number, trial.user_attrs["making"]) for trial in self._making()]
        return [
            Tried(number=number, steps=[], values=made["values"], rung=made["rung"], state="looked")
            for number, made in found
        ]

    def tried(self) -> list[Tried]:
        """All candidates that came to an end."""
        found = [trial.user_attrs.get("tried") for trial in self._study.get_trials(deepcopy=False)]
        return [Tried.model_validate_json(text) for text in found if text]

    def taken(self, trial: Trial, values: Mapping[str, Any], rung: Rung) -> bool:
        """Tell what a trial is about; whether another worker is working on the same.

        Of two workers that tell it at once the later trial gives way. One that looked before the other told it has
        begun then; the other waits for what it says.
        """
        trial.set_user_attr("making", {"values": dict(values), "rung": rung})
        end = time.monotonic() + _AGREE_S
        while True:
            others = [one for one in self._making() if one.user_attrs["making"] == {"values": values, "rung": rung}]
            others = [one for one in others if one.number != trial.number]
            if any(one.number < trial.number or one.user_attrs.get("begun") for one in others):
                return True
            if not others or time.monotonic() > end:
                trial.set_user_attr("begun", True)
                return False
            time.sleep(_AGREE_S / 100)

    def _making(self) -> list[FrozenTrial]:
        """The trials that workers are making now, and which told what they are about."""
        from optuna.trial import TrialState

        trials = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [trial for trial in trials if trial.user_attrs.get("making") is not None and not _dead(trial)]

    def run(
        self, work: Callable[[Trial, Wish | None], Outcome], *, stop: Callable[[], bool],
        wish: Callable[[], Wish | None],
    ) -> None:  # fmt: skip
        """Try candidates until it is time to stop.

        Args:
            work: Tries one, as far as it is wished; without a wish it takes a first look at what the trial picks.
            stop: Asked before each.
            wish: Says what to try next; None leaves it to the sampler.
        """
        from optuna.exceptions import TrialPruned

        def objective(trial: Trial) -> tuple[float, ...]:
            asked = trial.user_attrs.get("wish")
            with _alive(trial):
                found = work(trial, None if asked is None else Wish.of(asked))
            if found.tried is not None:
                trial.set_user_attr("tried", found.tried.model_dump_json())
            for name, missed in found.missed.items():
                trial.set_constraint(name, missed)
            if found.costs is None:
                raise TrialPruned
            return found.costs

        with _quiet():
            while not stop():
                if not self.take_over() and (wanted := wish()) is not None:
                    self.queue(wanted)
                self._study.optimize(objective, n_trials=1)

    def take_over(self) -> int:
        """Queue the candidates of workers that died, each once more; returns how many."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.storages import RetryHeartbeatStaleTrialCallback
        from optuna.trial import TrialState

        again, count = RetryHeartbeatStaleTrialCallback(max_retry=1), 0
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if not _dead(trial):
                continue
            try:
                won = self._study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
            except UpdateFinishedTrialError:  # another worker was faster
                continue
            if won:
                again(self._study, trial)
                count += 1
        return count

    def importance(self, goal: int) -> dict[str, float]:
        """What share of the differences in a goal each question explains; empty where too little is known."""
        import optuna

        with _quiet():
            try:
                found = optuna.importance.get_param_importances(self._study, target=lambda trial: trial.values[goal])
            except (ValueError, RuntimeError, ZeroDivisionError):
                return {}
        return {name: round(float(share), 4) for name, share in found.items() if share == share}


class Outcome:
    """Result of a candidate.

    Attributes:
        tried: For the record; None where it was known already.
        costs: What is to be small; None where it was given up before that was known.
        missed: By how much it misses each bar; 0 and below keep it.
    """

    def __init__(self, tried: Tried | None, costs: Sequence[float] | None, missed: Mapping[str, float]) -> None:
        self.tried, self.costs, self.missed = tried, None if costs is None else tuple(costs), missed


@contextmanager
def _alive(trial: Trial) -> Iterator[None]:
    """Tell the other workers, now and then, that this one works on a candidate."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(_BEAT_S):
            trial.set_user_attr("alive", time.time())

    trial.set_user_attr("worker", _worker())
    trial.set_user_attr("alive", time.time())
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _worker() -> dict[str, Any]:
    """This process, as far as another one on the same machine can find out whether it is still there."""
    import platform

    return {"host": platform.node(), "process": os.getpid()}


def _dead(trial: FrozenTrial) -> bool:
    worker, alive = trial.user_attrs.get("worker"), trial.user_attrs.get("alive")
    if worker is None or alive is None:
        begun = trial.datetime_start
        return begun is not None and time.time() - begun.timestamp() > _DEAD_S
    here = _worker()
    if worker["host"] == here["host"]:
        return worker["process"] != here["process"] and not _runs(int(worker["process"]))
    return time.time() - float(alive) > _DEAD_S


def _runs(process: int) -> bool:
    """Whether there is such a process on this machine; True where that can't be told."""
    if sys.platform == "win32":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _storage(place: str, *, create: bool) -> BaseStorage:
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalRedisBackend

    if "://" in place:
        try:
            if place.startswith("redis"):
                return JournalStorage(JournalRedisBackend(place))
            return RDBStorage(_with_driver(place))
        except ImportError as error:
            raise MachineError(
                f"{shown(place)}: {error}", "install the database's driver: psycopg for postgresql, redis for redis"
            ) from error
        except Exception as error:  # of any driver
            raise MachineError(f"{shown(place)} doesn't answer: {first_line(error)}") from error
    folder = Path(place)
    path = folder / JOURNAL
    if not path.is_file():
        if not create:
            raise UsageError(f"{place} holds no study", "begin one: compresskit compress MODEL … `study` FOLDER")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{place} exists already, and holds no study", "give another `study`")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MachineError(f"cannot make {place}: {error.strerror}") from error
    # The other kind of lock is a symbolic link, which Windows doesn't let everybody make.
    lock = JournalFileOpenLock(str(path))
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def _with_driver(address: str) -> str:
    """``postgresql://`` means another driver to SQLAlchemy than the one that is maintained."""
    if address.startswith("postgresql://") and find_spec("psycopg2") is None:
        return address.replace("postgresql://", "postgresql+psycopg://", 1)
    return address


def shown(place: str) -> str:
    """An address without its password."""
    head, at, tail = place.rpartition("@")
    return f"{head.partition('://')[0]}://…@{tail}" if at and "://" in head else place


def _other(part: str) -> str:
    named = {"model": "another model", "data": "other data", "bars": "other bars", "space": "another space"}
    return named.get(part, f"another {part}")
