"""Recipe files: read, and checked whole before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compresskit.errors import UsageError
from compresskit.recipe import addresses, including, tree
from compresskit.recipe.head import Checks, Head
from compresskit.recipe.limits import Limits
from compresskit.recipe.naming import Naming
from compresskit.recipe.order import Start, check_measured, misfits
from compresskit.recipe.plan import Recipe, Step
from compresskit.recipe.problems import Problems
from compresskit.recipe.steps import checked, note, read_steps
from compresskit.recipe.tree import Node, shown
from compresskit.recipe.wording import nearest, said
from compresskit.stage import Form

_OTHERS = ("include", "steps", "matrix")
_FILES = (".pt", ".pth", ".th", ".safetensors")


def read_recipe(
    where: str | Path,
    *,
    sets: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    allow_code: bool = False,
    complete: bool = False,
) -> list[Recipe]:
    """Read a recipe with all that it includes, and check what can be known before anything runs.

    Args:
        where: A file, or the name of a built-in recipe: ``edge-int8``.
        sets: ``KEY=VALUE`` each, as ``steps.0.bits=8``; paths in them start from the current folder.
        overrides: Values of the command line by the recipe's keys, which win: ``model``, ``eval-data``,
            ``checks.max-drop``; None is not given. Code that ``sets`` and ``overrides`` name was typed, so it may run.
        allow_code: Code that the file itself names may run.
        complete: It is to be run now: a recipe without a model, or without data that it needs, isn't good.

    Returns:
        One recipe, or one for each point of the matrix.

    Raises:
        RecipeError: With everything that is wrong.
    """
    problems = Problems()
    root = including.read(where, problems)
    typed = addresses.typed(sets, overrides or {}, problems)
    found: list[Recipe] = []
    if root is not None:
        for key, value in typed.items():
            root = addresses.put(root, key, value, problems)
        name = Path(str(where)).name.removesuffix(".yaml").removesuffix(".yml")
        for point, node in addresses.points(root, typed, problems):
            recipe = _Checking(problems, allow_code, complete, node).recipe(name, point)
            found += [] if recipe is None else [recipe]
    problems.raise_any()
    return found


def parse_recipe(
    document: Mapping[str, Any], name: str, *, overrides: Mapping[str, Any] | None = None, allow_code: bool = False
) -> Recipe:
    """A recipe from a mapping that :meth:`Recipe.document` gave; its paths start from the current folder.

    Args:
        document: As a recipe file holds it, without ``include`` and ``matrix``.
        name: Of what it was read from, for messages.
        overrides: As for :func:`read_recipe`.
        allow_code: Code that the document names may run.

    Raises:
        RecipeError: With everything that is wrong.
    """
    problems = Problems()
    root = tree.node_of(dict(document), tree.Place(name, Path()))
    for key, value in addresses.typed((), overrides or {}, problems).items():
        root = addresses.put(root, key, value, problems)
    recipe = _Checking(problems, allow_code, True, root).recipe(Path(name).stem, {})
    problems.raise_any()
    if recipe is None:
        raise UsageError(f"{name} is not a recipe")
    return recipe


class _Checking:
    """One point of a recipe."""

    def __init__(self, problems: Problems, allow_code: bool, complete: bool, root: Node) -> None:
        self._problems, self._complete = problems, complete
        self._naming = Naming(allow_code, problems)
        self._root = root
        self._keys: dict[str, Node] = root.value if isinstance(root.value, dict) else {}
        self._file = root.place.name

    def recipe(self, name: str, point: dict[str, Any]) -> Recipe | None:
        """The recipe; None where something is wrong with it."""
        head = self._head()
        steps = read_steps(self._keys.get("steps"), self._file, self._problems)
        made = [None if step is None else self._named(*step, place) for place, step in enumerate(steps)]
        given = {key.replace("-", "_"): node for key, node in self._keys.items()}
        values = {field: getattr(head, field) for field in Head.model_fields if field != "checks"}
        values |= self._naming.values(given, Head, "")
        values |= {"metric": self._naming.metric(self._keys.get("metric")), "arch_args": head.arch_args or {}}
        values |= {field: getattr(head.checks, field) for field in Checks.model_fields}
        whole = tuple(step for step in made if step is not None)
        recipe = Recipe(name, whole, point, **values)
        if len(whole) < len(made) or not made:
            return None
        self._whole(recipe)
        return recipe

    def _head(self) -> Head:
        """The keys besides the steps, without those that are wrong."""
        known = [field.replace("_", "-") for field in Head.model_fields]
        given: dict[str, Node] = {}
        for key, node in self._keys.items():
            if key in known:
                given[key.replace("-", "_")] = node
            elif key not in _OTHERS:
                self._add(node, f"'{key}' is not a key of a recipe{nearest(key, [*known, *_OTHERS])}")
        given = {key: node for key, node in given.items() if node.value is not None}
        if "checks" in given:
            given["checks"] = self._checks(given["checks"])
        values = checked(Head, given, "", self._problems)
        try:
            return Head(**values)
        except ValidationError as error:
            wrong = note(error, given, self._root, "", self._problems)
            return Head(**{key: value for key, value in values.items() if key not in wrong})

    def _checks(self, node: Node) -> Node:
        """``checks`` with the keys it may have."""
        if not isinstance(node.value, dict):
            self._add(node, f"checks: expected a mapping, as {{max-drop: 1%}}, found {shown(node.plain())}")
            return replace(node, value={})
        known = [field.replace("_", "-") for field in Checks.model_fields]
        for key, value in node.value.items():
            if key not in known:
                self._add(value, f"checks: there is no '{key}'{nearest(key, known)}")
        inner = {k.replace("-", "_"): v for k, v in node.value.items() if k in known and v.value is not None}
        good = checked(Checks, inner, "checks", self._problems)
        return replace(node, value={k.replace("_", "-"): inner[k] for k in good})

    def _named(self, step: Step, node: Node, place: int) -> Step:
        """A step with its paths as they are from here, and what it needs installed."""
        stage = step.stage
        where = f"steps[{place}].{stage.name()}"
        options = node.value if isinstance(node.value, dict) else {}
        given = {key.replace("-", "_"): value for key, value in options.items()}
        for package, extra in stage.packages.items():
            if find_spec(package) is None:
                self._problems.add(
                    node.place.name, step.line,
                    f"{where}: needs {package}, which is not installed: pip install 'compresskit[{extra}]'",
                )  # fmt: skip
        if not (paths := self._naming.values(given, type(stage), where)):
            return step
        values = {name: getattr(stage, name) for name in stage.model_fields_set}
        return replace(step, stage=type(stage)(**{**values, **paths}))

    def _whole(self, recipe: Recipe) -> None:
        """What only shows of all keys together."""
        if self._complete and recipe.model is None:
            self._at("model", "model: must be given, in the recipe or as MODEL")
        if self._complete or recipe.model is not None:
            self._partners(recipe)
        else:  # the command line will bring what is missing
            recipe = replace(recipe, data=recipe.data or "?", eval_data=recipe.eval_data or "?")
        self._evaluated(recipe)
        start = Start(_form(recipe), recipe.model or "the model", folder=Path(recipe.model or "").is_dir())
        limits = Limits(recipe.max_drop, recipe.max_size, recipe.min_speedup)
        try:
            check_measured(start, limits, evaluated=recipe.eval_data is not None)
        except UsageError as error:
            self._at("checks", f"checks: {said(error)}")
        for place, misfit in misfits(start, [step.stage for step in recipe.steps], data=recipe.data is not None):
            step = recipe.steps[place]
            wanted = step.stage.wanted_data if recipe.data is None and "data" in misfit.message else None
            self._step(step, place, f"needs {wanted} data; give data" if wanted else said(misfit))

    def _partners(self, recipe: Recipe) -> None:
        """Keys that are about another one, which is missing."""
        if recipe.arch_args and recipe.arch is None:
            self._at("arch-args", "arch-args: is for arch, which is not given")
        if recipe.normalize and not (recipe.data or recipe.eval_data):
            self._at("normalize", "normalize: is for data, and none is given")
        if recipe.hold_out and not recipe.data:
            self._at("hold-out", "hold-out: is a share of data, and none is given")

    def _evaluated(self, recipe: Recipe) -> None:
        """Keys that need evaluation data, where there is none."""
        if recipe.eval_data:
            return
        if recipe.metric:
            self._at("metric", "metric: needs evaluation data; give eval-data")
        for place, step in enumerate(recipe.steps):
            if step.max_drop is not None or step.rollback:
                key = "rollback" if step.max_drop is None else "max-drop"
                self._step(step, place, f"{key} needs evaluation data; give eval-data")

    def _step(self, step: Step, place: int, text: str) -> None:
        steps = self._keys["steps"]
        node = steps.at([place])
        self._problems.add(node.place.name, step.line, f"steps[{place}].{step.stage.name()}: {text}")

    def _at(self, key: str, text: str) -> None:
        node = self._keys.get(key)
        if node is None:
            self._problems.add(self._file, 0, text)
        else:
            self._add(node, text)

    def _add(self, node: Node, text: str) -> None:
        self._problems.add(node.place.name, node.line, text)


def _form(recipe: Recipe) -> Form:
    """What the model will be, as its name tells; a module where that isn't known yet."""
    suffix = Path(recipe.model or "").suffix.lower()
    if suffix == ".onnx":
        return "onnx"
    return "weights" if suffix in _FILES and recipe.arch is None else "torch"
