"""What a search may try: the steps of a recipe in their order, each with alternatives and options that vary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from compresskit import registry
from compresskit.errors import UsageError
from compresskit.stage import Stage, Tunable

NONE = "none"
"""The alternative of leaving a step out."""
LENGTH, SAMPLES = "epochs", "train_samples"
"""Options that say how long a step trains; where the first has a range, the time that is left decides."""
_SHARES = (0.5, 0.43, 0.36, 0.29, 0.21, 0.14, 0.75, 0.0, 1.0)
"""Where in its ranges a way to quantize is tried on what was trained."""


class Picker(Protocol):
    """Gives a value for each question; an Optuna trial is one."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices."""
        ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """A whole number."""
        ...

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A number."""
        ...


@dataclass(frozen=True)
class Choice:
    """One method in its place.

    Attributes:
        method: As ``prune.structured``.
        options: That are always the same, by field.
        ranges: Those that vary.
        preview: Options of the cheap first look; None leaves the step out there.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    ranges: Mapping[str, Tunable] = field(default_factory=dict)
    preview: Mapping[str, Any] | None = field(default_factory=dict)

    @classmethod
    def of(cls, stage: type[Stage], **options: Any) -> Choice:
        """As the method declares that it is to be searched; ``options`` win, a Tunable among them is a range."""
        declared = stage.searched
        ranges = {name: found for name in stage.model_fields if (found := tunable(stage, name)) is not None}
        given = {**(declared.options if declared else {}), **options}
        ranges |= {name: value for name, value in given.items() if isinstance(value, Tunable)}
        fixed = {name: value for name, value in given.items() if not isinstance(value, Tunable)}
        ranges = {name: value for name, value in ranges.items() if name not in fixed}
        return cls(stage.name(), fixed, ranges, declared.preview if declared else {})

    @property
    def stage(self) -> type[Stage]:
        """Its class."""
        return registry.get(self.method)

    @property
    def recovers(self) -> bool:
        """It makes nothing smaller, but trains what other steps cut: alone it is no candidate."""
        return self.preview is None

    @property
    def efforts(self) -> tuple[Mapping[str, Any], ...]:
        """Options of the careful form, from quick to slow; empty where the space says them itself."""
        declared = self.stage.searched.efforts if self.stage.searched else ()
        taken = {name for effort in declared for name in effort}
        return () if taken & {*self.options, *self.ranges} or not self.preview else declared


@dataclass(frozen=True)
class Slot:
    """A place in the recipe: one of some alternatives; None among them leaves the place empty."""

    choices: tuple[Choice | None, ...]

    @property
    def name(self) -> str:
        """The method, or the kind of its methods."""
        methods = [choice.method for choice in self.choices if choice is not None]
        return methods[0] if len(methods) == 1 else methods[0].partition(".")[0]


@dataclass(frozen=True)
class Space:
    """All that may be tried, in the order of the steps."""

    slots: tuple[Slot, ...]

    def names(self) -> list[str]:
        """Of the slots, no two alike."""
        found: list[str] = []
        for slot in self.slots:
            count = sum(name.partition(" ")[0] == slot.name for name in found)
            found.append(slot.name if not count else f"{slot.name} {count + 1}")
        return found

    def pick(self, picker: Picker) -> dict[str, Any]:
        """Values for one candidate, by the names of slots and ``SLOT.OPTION``."""
        values: dict[str, Any] = {}
        smaller = False
        for name, slot in zip(self.names(), self.slots, strict=True):
            choices = [choice for choice in slot.choices if choice is None or smaller or not choice.recovers]
            labels = [NONE if choice is None else choice.method for choice in choices]
            if not labels:
                continue
            label = labels[0]
            if len(slot.choices) > 1:
                # A question has the same answers each time: what doesn't apply here is not asked.
                if len(labels) == 1:
                    continue
                label = picker.suggest_categorical(name, labels)
            values[name] = label
            choice = choices[labels.index(label)]
            if choice is None:
                continue
            smaller = smaller or choice.stage.kind.changes_size
            for option, found in choice.ranges.items():
                key = _key(name, label, option)
                values[key] = _suggested(picker, key, found)
        return values

    def steps(self, values: Mapping[str, Any], *, preview: bool = False, trained: bool = False) -> list[dict[str, Any]]:
        """The steps of a recipe file for some values.

        Args:
            values: From :meth:`pick`; and by the same kind of name any other option of a method that was picked.
            preview: The cheap form of each step.
            trained: Of steps that train for as long as the time allows the form that the values say, all the same.
        """
        found = []
        for name, choice in self._chosen(values):
            fitted = LENGTH in choice.ranges
            cheap = preview and not (trained and fitted)
            if cheap and choice.preview is None:
                continue
            asked = {option: _low(known) for option, known in choice.ranges.items()}
            prefix = _key(name, choice.method, "")
            more = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
            options = {**choice.options, **asked, **more, **((choice.preview or {}) if cheap else {})}
            found.append({choice.method: {o.replace("_", "-"): _plain(v) for o, v in options.items()}})
        return found

    def _chosen(self, values: Mapping[str, Any]) -> list[tuple[str, Choice]]:
        """The methods that were picked, with the names of their slots."""
        found = []
        for name, slot in zip(self.names(), self.slots, strict=True):
            label = values.get(name, NONE)
            found += [(name, choice) for choice in slot.choices if choice is not None and choice.method == label]
        return found

    def trunk(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What was picked but for how long to train and how to quantize at the end: what is trained only once."""
        names = self.names()
        kept = [(name, choice) for name, choice in self._chosen(values) if name != names[-1] or not self._quantizes()]
        prefixes = [_key(name, choice.method, "") for name, choice in kept]
        lengths = {prefix + option for prefix in prefixes for option in (LENGTH, SAMPLES)}
        own = set(names[:-1] if self._quantizes() else names)
        return {
            key: value for key, value in values.items()
            if (key in own or any(key.startswith(prefix) for prefix in prefixes)) and key not in lengths
        }  # fmt: skip

    def finals(self) -> list[dict[str, Any]]:
        """Ways to quantize at the end, each with its ranges at some values."""
        if not self.slots or not self._quantizes():
            return []
        name, found = self.names()[-1], []
        for choice in sorted(self.slots[-1].choices, key=lambda choice: choice is not None):
            for share in _SHARES if choice is not None and choice.ranges else (0.5,):
                label = NONE if choice is None else choice.method
                at = _Fixed({name: label}, share)
                asked = {} if choice is None else choice.ranges
                values = {k: _suggested(at, k, r) for o, r in asked.items() if (k := _key(name, label, o))}
                if {name: label, **values} not in found:
                    found.append({name: label, **values})
        return found

    def quickest_final(self) -> str | None:
        """The slot of the last step and its method that has no cheaper form; None where there is none."""
        choices = [c for c in self.slots[-1].choices if c is not None and not c.preview and not c.recovers]
        return choices[0].method if choices and self._quantizes() else None

    def _quantizes(self) -> bool:
        """Whether the last step only quantizes, so that what is before it can be kept for other ways to do so."""
        return all(choice is None or choice.stage.kind.quantizes for choice in self.slots[-1].choices)

    def untrained(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values without how long to train."""
        lengths = {key[: -len(LENGTH)] + option for key in self.lengths(values) for option in (LENGTH, SAMPLES)}
        return {key: value for key, value in values.items() if key not in lengths}

    def lengths(self, values: Mapping[str, Any]) -> dict[str, Tunable]:
        """The options of picked methods that say for how many epochs to train, as far as the time decides."""
        return {
            _key(name, choice.method, LENGTH): choice.ranges[LENGTH]
            for name, choice in self._chosen(values) if LENGTH in choice.ranges
        }  # fmt: skip

    def recovers(self, slot: str) -> str | None:
        """The method in a slot that only recovers what was cut; None where there is none."""
        found = dict(zip(self.names(), self.slots, strict=True)).get(slot)
        return next((c.method for c in found.choices if c is not None and c.recovers), None) if found else None

    def recovery(self, values: Mapping[str, Any]) -> list[str]:
        """Those among :meth:`lengths` of methods that the first look leaves out."""
        return [_key(name, c.method, LENGTH) for name, c in self._chosen(values) if LENGTH in c.ranges and c.recovers]

    def careful(self, values: Mapping[str, Any], effort: int) -> dict[str, Any]:
        """Options of the careful form of what was picked.

        Args:
            values: From :meth:`pick`.
            effort: From 0 on; the slowest form where there are fewer.
        """
        return {
            _key(name, choice.method, option): value
            for name, choice in self._chosen(values) if choice.efforts
            for option, value in choice.efforts[min(effort, len(choice.efforts) - 1)].items()
        }  # fmt: skip

    def only(self, kinds: Sequence[str]) -> Space:
        """Without the steps of other kinds.

        Raises:
            UsageError: There are none of a kind.
        """
        known = {choice.method.partition(".")[0] for slot in self.slots for choice in slot.choices if choice}
        for kind in kinds:
            if kind not in known:
                raise UsageError(f"`steps` {kind}: nothing of that kind is tried here", f"there is {_words(known)}")
        slots = []
        for slot in self.slots:
            kept = tuple(c for c in slot.choices if c is None or c.method.partition(".")[0] in kinds)
            if any(choice is not None for choice in kept):
                slots.append(Slot(kept))
        return Space(tuple(slots))

    def at_most(self, epochs: float) -> Space:
        """With so many epochs of training at most; below one, without the steps that train."""
        return replace(self, slots=tuple(slot for old in self.slots if (slot := _limited(old, epochs)) is not None))

    def in_bfloat16(self) -> Space:
        """With training in that precision, where a range says for how long to train."""
        return Space(
            tuple(
                Slot(tuple(
                    replace(c, options={**c.options, "precision": "bfloat16"})
                    if c is not None and LENGTH in c.ranges and "precision" in c.stage.model_fields else c
                    for c in slot.choices
                ))
                for slot in self.slots
            )
        )  # fmt: skip

    def document(self) -> dict[str, Any]:
        """The mapping of a file that says the same."""
        steps: list[Any] = []
        for slot in self.slots:
            written = [NONE if choice is None else _written(choice) for choice in slot.choices]
            steps.append({"one-of": written} if len(written) > 1 else written[0])
        return {"steps": steps}

    def trains(self) -> bool:
        """Some step may train."""
        return any(c is not None and "epochs" in {*c.options, *c.ranges} for slot in self.slots for c in slot.choices)


def tunable(stage: type[Stage], name: str) -> Tunable | None:
    """The range that a stage's field declares for searching."""
    return next((found for found in stage.model_fields[name].metadata if isinstance(found, Tunable)), None)


def _key(slot: str, method: str, option: str) -> str:
    """What an option's question is called: ``prune.structured.target_macs``; a second slot of a name has its number."""
    number = slot.partition(" ")[2]
    return f"{method}{' ' if number else ''}{number}.{option}"


def _suggested(picker: Picker, name: str, found: Tunable) -> Any:
    if found.choices:
        return picker.suggest_categorical(name, list(found.choices))
    if all(isinstance(n, int) for n in (found.low, found.high)) and isinstance(found.step, (int, type(None))):
        step = 1 if found.step is None else int(found.step)
        return picker.suggest_int(name, int(found.low), int(found.high), step=step, log=found.log)
    return round(picker.suggest_float(name, found.low, found.high, step=found.step, log=found.log), 6)


def _limited(slot: Slot, epochs: float) -> Slot | None:
    kept: list[Choice | None] = []
    for choice in slot.choices:
        found = None if choice is None else choice.ranges.get("epochs")
        if choice is None or found is None:
            kept.append(choice)
        elif epochs >= max(1, found.low):
            high = int(min(found.high, epochs))
            kept.append(replace(choice, ranges={**choice.ranges, "epochs": replace(found, high=high)}))
    return Slot(tuple(kept)) if any(choice is not None for choice in kept) else None


def _written(choice: Choice) -> Any:
    options = {name.replace("_", "-"): _plain(value) for name, value in choice.options.items()}
    options |= {name.replace("_", "-"): _as_range(value) for name, value in choice.ranges.items()}
    found: dict[str, Any] = {choice.method: options}
    if choice.preview is None:
        found["preview"] = "skip"
    elif choice.preview:
        found["preview"] = {name.replace("_", "-"): _plain(value) for name, value in choice.preview.items()}
    return found


def _as_range(found: Tunable) -> dict[str, Any]:
    if found.choices:
        return {"any-of": [_plain(value) for value in found.choices]}
    more = {"step": found.step} if found.step is not None else {}
    return {"from": found.low, "to": found.high, **more, **({"log": True} if found.log else {})}


def _low(found: Tunable) -> Any:
    return found.choices[0] if found.choices else found.low


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _words(names: set[str]) -> str:
    return ", ".join(sorted(names))


def assignments(space: Space) -> Iterator[dict[str, Any]]:
    """The candidates that are tried first: each final step alone, then each cut before each of them.

    Ranges are at their middle, of the final steps alone at their ends too. What recovers goes with a cut: without it
    the first look at the candidate is the candidate without training. Then one final step is enough, the quickest.
    """
    names = space.names()
    last = len(space.slots) - 1
    # What has no cheap form of its own is quick already.
    finals = sorted((c for c in space.slots[last].choices if c is not None), key=lambda choice: bool(choice.preview))
    before = list(zip(names, space.slots, strict=True))[:last]
    recovery = {name: c.method for name, slot in before for c in slot.choices if c is not None and c.recovers}
    for share in (0.5, 0.0, 1.0):
        for choice in finals:
            if share == 0.5 or choice.ranges:
                yield space.pick(_Fixed({names[last]: choice.method}, share))
    for name, slot in before:
        for cut in slot.choices:
            if cut is not None and not cut.recovers:
                for choice in finals[:1] if recovery else finals:
                    chosen = {**recovery, name: cut.method, names[last]: choice.method}
                    yield space.pick(_Fixed(chosen, 0.5))


@dataclass(frozen=True)
class _Fixed:
    """Answers with what was chosen, else with nothing; other values lie at a share of their range."""

    chosen: Mapping[str, str]
    share: float

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        if name in self.chosen:
            return self.chosen[name]
        return NONE if NONE in choices else choices[round(self.share * (len(choices) - 1))]

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return low + step * round(self.share * ((high - low) // step))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        if step is None:
            return low + self.share * (high - low)
        return low + step * round(self.share * round((high - low) / step))
