"""What a stage is: options, and one call that takes a model and gives a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from compresskit.errors import InputError
from compresskit.facts import Facts, read_facts, to_json
from compresskit.kinds import Kind
from compresskit.model import Applied, Model
from compresskit.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from torch import nn

    from compresskit.checkpoint.tensors import Tensors
    from compresskit.data.source import Source

MODEL = "$model"
"""In an option that names a model: that of the recipe, as it was before the first step."""
SIDECAR = "sidecar"
"""Folder in a context's ``work``: what a stage puts there goes into the bundle, beside the model."""
Form = Literal["torch", "onnx", "weights"]
Progress = Callable[[str, int, int], None]
T = TypeVar("T")


def silent(_what: str, _done: int, _total: int) -> None:
    """A progress callback that shows nothing."""


def say_nothing(_text: str) -> None:
    """A line for the user that nobody reads."""


def anew(_name: str, make: Callable[[], T]) -> T:
    """What was asked for, computed now: nothing is remembered."""
    return make()


@dataclass(frozen=True)
class Context:
    """What a stage may use besides its options.

    Attributes:
        work: A folder for temporary files, on the output's disk; removed at the end.
        data: Calibration or training data, if given.
        teacher: The model that a stage named as its ``teacher``, if one did; not changed by stages.
        seed: Random seed.
        threads: Intra-op threads; 0 is the library's choice.
        progress: Called as ``progress(what, done, total)``; cheap enough for every layer.
        tell: Shows the user a line right away: what long work will cost.
        max_bytes: Size the result must keep, where the user gave one: a stage that chooses may aim at it.
        max_drop: Drop of quality the result must keep, as ``0.5pt`` or ``1%``.
        once: Called as ``once(name, make)``: gives what ``make`` gave for this model and these data under that name
            before, else calls it. For long measurements that other options of the same method share.
        ranks: The processes that share the layers; a stage whose ``splits`` is false is always alone.
    """

    work: Path
    data: Source | None = None
    seed: int = 0
    threads: int = 0
    progress: Progress = field(default=silent)
    tell: Callable[[str], None] = field(default=say_nothing)
    max_bytes: int | None = None
    max_drop: str | None = None
    teacher: Model | None = None
    once: Callable[[str, Callable[[], Any]], Any] = field(default=anew)
    ranks: Ranks = ALONE


@dataclass(frozen=True)
class Chosen:
    """What a stage that chooses among others came to.

    Attributes:
        stages: With explicit options: they alone give the same result again.
        notes: Why these.
    """

    stages: tuple[Stage, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TeacherRef:
    """A model that a stage learns from, as it was named.

    Attributes:
        model: Any MODEL.
        arch: ``FILE.py:NAME`` or ``package.module:NAME`` of what builds it.
        arch_args: Keyword arguments of ``arch``.
        key: Which state dict of its file to read.
    """

    model: str
    arch: str | None = None
    arch_args: dict[str, Any] | None = None
    key: str | None = None


@dataclass(frozen=True)
class Tunable:
    """Values of an option that ``compress`` may try; stands in the ``Annotated`` of the stage's field.

    Attributes:
        low: The least value.
        high: The largest.
        step: Between two values; None takes any between the two (whole numbers for whole bounds).
        log: Values are spread evenly by their ratio, not by their difference.
        choices: All values, in the place of a range.
    """

    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Searched:
    """How ``compress`` tries a method; what it varies are the fields with a :class:`Tunable`.

    Attributes:
        models: Kinds of models for which it is tried: ``cnn``, ``text``, ``causal-lm``, ``linear``, ``tiny``.
        options: That are given besides, by field.
        preview: Options of the cheap first look at a candidate, which win over all others; None leaves the step out.
        efforts: Options of a candidate that is made with care, from quick to slow; the time left decides.
        goal: ``size`` or ``latency`` where it gains only that: a search for the other leaves it out.
    """

    models: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    preview: Mapping[str, Any] | None = field(default_factory=dict)
    efforts: tuple[Mapping[str, Any], ...] = ()
    goal: Literal["size", "latency"] | None = None


class Stage(BaseModel, ABC):
    """One method with its options; what it computes lives in ``ops/``.

    A subclass declares each option once, as a pydantic field with a description: the field is the command's
    option, the recipe's key and the library's argument. One that sets ``method`` is complete, and must declare all
    that has no default here; one without is a base of others.

    Attributes:
        kind: What is true of all methods of its kind; gives the command its name.
        method: Its name among those of the kind.
        takes: Forms of a model that it works on.
        gives: The form of what it gives; ``same`` is the form it was given.
        needs: Data that it can't do without: ``calibration`` or ``training``; and ``teacher``.
        packages: What it imports besides what every installation has, each with the extra that brings it.
        facts: The type of what it records in the card.
        needs_no_replay: What builds the original builds the result too: layers stay, or a config tells their sizes.
        varies: What it gives takes more or less time from input to input, so it is timed on real samples.
        followed_by: Names of the stages that can work on its result; None: all.
        reads_limits: Its result depends on the limits of quality and size that the user set.
        takes_adapters: Works on adapters that lie beside the weights.
        searched: How ``compress`` tries it; None: only where the user asks for it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ClassVar[Kind]
    method: ClassVar[str]
    takes: ClassVar[tuple[Form, ...]]
    gives: ClassVar[Form | Literal["same"]]
    needs: ClassVar[tuple[str, ...]] = ()
    packages: ClassVar[dict[str, str]] = {}
    facts: ClassVar[type[Facts]] = Facts
    needs_no_replay: ClassVar[bool] = False
    varies: ClassVar[bool] = False
    followed_by: ClassVar[tuple[str, ...] | None] = None
    reads_limits: ClassVar[bool] = False
    takes_adapters: ClassVar[bool] = False
    searched: ClassVar[Searched | None] = None

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if "method" in vars(cls) and (lacking := [text for text, fine in cls._declarations() if not fine]):
            raise TypeError(f"{cls.__name__} is a method that doesn't declare {'; '.join(lacking)}")

    @classmethod
    def _declarations(cls) -> list[tuple[str, bool]]:
        """What a method must declare, and whether this one does: each left out would fail late, or silently."""
        fields = cls.model_fields
        own = {name: getattr(cls, name) != getattr(Stage, name) for name in ("aims_at", "learns_from")}
        replayed = cls.replay.__func__ is not Stage.replay.__func__  # type: ignore[attr-defined]
        learns = "teacher" in fields or "teacher" in cls.needs
        return [
            ("a docstring, whose first line is its help", bool((cls.__doc__ or "").strip())),
            ("kind, a compresskit.kinds.Kind", isinstance(getattr(cls, "kind", None), Kind)),
            ("takes, the forms that it works on", bool(getattr(cls, "takes", ()))),
            ("gives, the form of its result", hasattr(cls, "gives")),
            (
                "replay(), which rebuilds the module from the facts, or needs_no_replay = True",
                replayed or cls.needs_no_replay or getattr(cls, "gives", "") == "onnx",
            ),
            ("aims_at, though it has an option target", own["aims_at"] or "target" not in fields),
            ("learns_from, though it has a teacher", own["learns_from"] or not learns),
            ("trains, though it has an option epochs", cls.trains != Stage.trains or "epochs" not in fields),
        ]

    @property
    def label(self) -> str:
        """The method in short, as the name of an output ends: ``gptq4``."""
        return self.method

    @property
    def leaves_adapters(self) -> bool:
        """Whether it leaves adapters beside the weights, which must be merged before a further stage."""
        return False

    @property
    def trains(self) -> bool:
        """Whether it trains, with these options: on training data, with memory for gradients."""
        return False

    def splits(self, *, data: bool, limited: bool) -> bool:
        """Whether several processes can share its layers; training shares batches instead.

        Args:
            data: As for :meth:`reads`.
            limited: As for :meth:`reads`.
        """
        return False

    @property
    def promises_speed(self) -> bool:
        """Whether the result should run faster; where not, it is held to run as fast, within a margin."""
        return True

    @property
    def may_slow(self) -> bool:
        """Whether the result takes more time for what it gains, so that it has no default limit of speed."""
        return False

    @property
    def promises_size(self) -> bool:
        """Whether the result should be no larger; where not, it has no default limit of size."""
        return True

    @property
    def wanted_data(self) -> str | None:
        """Which data it can't do without: ``training``, ``calibration`` or none."""
        if self.trains or "training" in self.needs:
            return "training"
        return "calibration" if "calibration" in self.needs else None

    def reads(self, *, data: bool, limited: bool) -> Literal["all", "mapped", "streamed"]:
        """How it takes the weights of a folder of which nothing is exported.

        Args:
            data: It is given data.
            limited: The user set limits of size or quality.

        Returns:
            ``all`` in memory; ``mapped`` from the file in half precision, where it writes into none of two axes or
            more; ``streamed`` where it needs each layer's own alone, which it reads from ``Model.weights``.
        """
        return "all"

    @property
    def aims_at(self) -> str | None:
        """Name of the CPU that the result is made for; None is this machine, or all."""
        return None

    @property
    def learns_from(self) -> TeacherRef | None:
        """The teacher that its options name, if they do."""
        return None

    @classmethod
    def name(cls) -> str:
        """The registry's key: ``quantize.rtn``."""
        return f"{cls.kind.name}.{cls.method}"

    def options(self) -> dict[str, Any]:
        """The options as JSON, for the card."""
        return self.model_dump(mode="json")

    def recorded(
        self, model: Model, facts: Facts | Mapping[str, Any], skipped: Mapping[str, str] | None = None
    ) -> Model:
        """A model with this stage in its card's history.

        Args:
            model: As the stage left it.
            facts: What was decided; as JSON it must be what :attr:`facts` describes.
            skipped: Layers left alone, with the reason.

        Raises:
            TypeError: The facts aren't those that this stage declares.
        """
        data = to_json(facts) if isinstance(facts, Facts) else dict(facts)
        try:
            read_facts(self.facts, data, f"the facts of {self.name()}")
        except InputError as error:
            raise TypeError(error.message) from error
        return replace(model, card=model.card.after(Applied(self.name(), self.options(), data, dict(skipped or {}))))

    @abstractmethod
    def run(self, model: Model, ctx: Context) -> Model:
        """Apply the stage; the given model may be changed in place and must not be used afterwards.

        Raises:
            CompressKitError: The model, the data or the machine doesn't allow it.
        """

    def check_options(self) -> None:
        """Refuse options that don't say enough, as far as that shows without a model.

        Not a pydantic validator, since a card may hold less: an old one, or one of a stage that was chosen.

        Raises:
            UsageError: Something must be given.
        """

    def choose(self, model: Model, ctx: Context) -> Chosen:
        """The stages that do the work; a method that picks others by looking at the model overrides this.

        Args:
            model: Not changed.
            ctx: ``work`` is not to be used.

        Raises:
            CompressKitError: The options don't say enough, or don't fit the model or the data.
        """
        self.check_options()
        return Chosen((self,))

    @classmethod
    def replay(cls, module: nn.Module, facts: Any, tensors: Tensors) -> Tensors:
        """Give a freshly built module the shape that this stage gave it, from the facts of a card.

        A stage that leaves the architecture as it is needs no replay of its own.

        Args:
            module: The original architecture, changed in place; earlier stages are replayed already.
            facts: What the stage recorded: an instance of :attr:`facts`.
            tensors: The stored tensors.

        Returns:
            The tensors to load into the module.

        Raises:
            InputError: The facts don't fit this architecture.
        """
        return tensors
