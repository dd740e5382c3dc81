"""What a search may try: the steps of a recipe in their order, each with alternatives and options that vary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from compresskit import registry
from compresskit.errors import UsageError
from compresskit.recipe import tree
from compresskit.recipe.problems import Problems
from compresskit.stage import Stage, Tunable

NONE = "none"
"""The alternative of leaving a step out."""
_RANGE = ("from", "to", "step", "log")


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

    def steps(self, values: Mapping[str, Any], *, preview: bool = False) -> list[dict[str, Any]]:
        """The steps of a recipe file for some values.

        Args:
            values: From :meth:`pick`.
            preview: The cheap form of each step.
        """
        found = []
        for name, slot in zip(self.names(), self.slots, strict=True):
            label = values.get(name, NONE)
            choice = next((c for c in slot.choices if c is not None and c.method == label), None)
            if choice is None or (preview and choice.preview is None):
                continue
            options = {**choice.options, **{o: values[_key(name, label, o)] for o in choice.ranges}}
            if preview:
                options |= choice.preview or {}
            found.append({choice.method: {o.replace("_", "-"): _plain(v) for o, v in options.items()}})
        return found

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


def read_space(path: Path) -> Space:
    """Read a file that says what may be tried.

    Raises:
        UsageError: With everything that is wrong.
        InputError: It can't be read.
    """
    from compresskit.recipe.including import read

    problems = Problems()
    root = read(path, problems)
    problems.raise_any()
    return space_of(None if root is None else root.plain(), str(path))


def space_of(document: Any, name: str = "the space") -> Space:
    """A space from a mapping that :meth:`Space.document` gave.

    Raises:
        UsageError: It is none.
    """
    steps = document.get("steps") if isinstance(document, dict) else None
    if not isinstance(document, dict) or not isinstance(steps, list) or not steps or len(document) > 1:
        raise UsageError(f"{name}: expected steps, a list; `dry_run` without `space` prints an example")
    return Space(tuple(_slot(step, f"{name}: steps[{place}]") for place, step in enumerate(steps)))


def _slot(step: Any, where: str) -> Slot:
    if isinstance(step, dict) and "one-of" in step:
        options = step["one-of"]
        if len(step) > 1 or not isinstance(options, list) or not options:
            raise UsageError(f"{where}: expected one-of and a list of methods")
        found = tuple(None if o == NONE else _choice(o, where) for o in options)
        if all(choice is None for choice in found):
            raise UsageError(f"{where}: names no method, as quantize.auto")
        return Slot(found)
    return Slot((_choice(step, where),))


def _choice(found: Any, where: str) -> Choice:
    step = {found: {}} if isinstance(found, str) else found
    named = [key for key in step if key != "preview"] if isinstance(step, dict) else []
    if len(named) != 1:
        raise UsageError(f"{where}: expected a method with its options, found {tree.shown(found)}")
    method, given = named[0], step[named[0]] or {}
    stage = registry.get(method)
    if not isinstance(given, dict):
        raise UsageError(f"{where}.{method}: expected options, found {tree.shown(given)}")
    options: dict[str, Any] = {}
    for key, value in given.items():
        name = str(key).replace("-", "_")
        if name not in stage.model_fields:
            raise UsageError(f"{where}.{method}: there is no option '{key}'")
        ranged = isinstance(value, dict) and set(value) & {"from", "to", "any-of"}
        options[name] = _range(value, f"{where}.{method}.{key}") if ranged else value
    ranges = {name: value for name, value in options.items() if isinstance(value, Tunable)}
    fixed = {name: value for name, value in options.items() if name not in ranges}
    preview = step.get("preview", stage.searched.preview if stage.searched and "preview" not in step else {})
    if preview is not None and preview != "skip" and not isinstance(preview, dict):
        raise UsageError(f"{where}.{method}.preview: expected options or skip, found {tree.shown(preview)}")
    shown = None if preview in (None, "skip") else {str(k).replace("-", "_"): v for k, v in preview.items()}
    return Choice(method, fixed, ranges, shown)


def _range(value: dict[str, Any], where: str) -> Tunable:
    if "any-of" in value:
        if len(value) > 1 or not isinstance(value["any-of"], list) or not value["any-of"]:
            raise UsageError(f"{where}: expected any-of and a list of values")
        return Tunable(choices=tuple(value["any-of"]))
    low, high, step = value.get("from"), value.get("to"), value.get("step")
    numbers = all(
        isinstance(n, (int, float)) and not isinstance(n, bool) for n in (low, high, 1 if step is None else step)
    )
    if set(value) - set(_RANGE) or not numbers or low is None or high is None or not low <= high or (step or 1) <= 0:
        raise UsageError(f"{where}: expected from, to, and step or log, found {tree.shown(value)}")
    return Tunable(low, high, step, bool(value.get("log", False)))


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


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _words(names: set[str]) -> str:
    return ", ".join(sorted(names))


def assignments(space: Space) -> Iterator[dict[str, Any]]:
    """The candidates that are tried first: each final step alone, then each cut before each of them.

    Ranges are at their middle, of the final steps alone at their ends too. What recovers goes with a cut: without it
    the first look at the candidate is the candidate without training.
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
                for choice in finals:
                    chosen = {**recovery, name: cut.method, names[last]: choice.method}
                    yield space.pick(_Fixed(chosen, 0.5))


@dataclass(frozen=True)
class _Fixed:
    """Answers with what was chosen, else with nothing; numbers lie at a share of their range."""

    chosen: Mapping[str, str]
    share: float

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        if name in self.chosen:
            return self.chosen[name]
        return NONE if NONE in choices else choices[0]

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return low + step * round(self.share * ((high - low) // step))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        if step is None:
            return low + self.share * (high - low)
        return low + step * round(self.share * round((high - low) / step))
