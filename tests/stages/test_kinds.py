"""What a stage and a kind must declare: nothing that would fail late or silently can be left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from compresskit import registry
from compresskit.kinds import BUILT_IN, LORA, PRUNE, Kind
from compresskit.stage import Stage, TeacherRef

SAID: dict[str, Any] = {
    "name": "shrink", "summary": "Make it smaller.", "changes_size": True, "before_codes": True, "only_tunes": False,
    "quantizes": False,
}  # fmt: skip


def run(self: Stage, model: Any, ctx: Any) -> Any:
    return model


def method(**changes: Any) -> Callable[[], type[Stage]]:
    """The body of a class that declares all, but for the changes; None leaves a declaration away."""
    body: dict[str, Any] = {
        "__module__": __name__, "__doc__": "One line.", "kind": PRUNE, "method": "mine", "takes": ("torch",),
        "gives": "same", "needs_no_replay": True, "run": run, "__annotations__": {},
    }  # fmt: skip
    for name, value in changes.items():
        if value is None:
            del body[name]
        elif isinstance(value, type):
            body["__annotations__"][name], body[name] = value, value()
        else:
            body[name] = value
    kinds = {name: ClassVar for name in body if not name.startswith("__") and name not in body["__annotations__"]}
    body["__annotations__"] |= {name: kind for name, kind in kinds.items() if not callable(body[name])}
    for name, value in list(body.items()):
        if isinstance(value, property):
            del body["__annotations__"][name]
    return lambda: type("Mine", (Stage,), body)


def test_one_that_declares_all_is_a_method() -> None:
    assert method()().name() == "prune.mine"


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"__doc__": None}, "a docstring"),
        ({"kind": None}, "kind"),
        ({"kind": "prune"}, "kind"),
        ({"takes": None}, "takes"),
        ({"gives": None}, "gives"),
        ({"needs_no_replay": None}, "replay"),
        ({"target": str}, "aims_at"),
        ({"teacher": str}, "learns_from"),
        ({"needs": ("teacher",)}, "learns_from"),
        ({"epochs": int}, "trains"),
    ],
)
def test_a_forgotten_declaration_is_an_error_where_the_class_is_made(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(TypeError, match=f"Mine is a method that doesn't declare {told}"):
        method(**changes)()


def test_declared_options_are_fine() -> None:
    named = property(lambda _self: TeacherRef("t.pt"))
    cls = method(target=str, teacher=str, epochs=int, aims_at=property(str), learns_from=named, trains=property(bool))()
    assert cls.name() == "prune.mine"
    assert method(gives="onnx", needs_no_replay=None)().gives == "onnx", "the graph is the architecture"


@pytest.mark.parametrize("name", ["changes_size", "before_codes", "only_tunes", "quantizes", "name", "summary"])
def test_a_kind_says_all_that_cant_be_guessed(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        Kind(**{key: value for key, value in SAID.items() if key != name})


@pytest.mark.parametrize(
    "change, told",
    [
        ({"name": "Shrink it"}, "lower-case"),
        ({"summary": " "}, "one line"),
        ({"summary": "a\nb"}, "one line"),
        ({"quantizes": True}, "can't both"),
    ],
)
def test_a_kind_that_contradicts_itself_is_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Kind(**SAID | change)


def test_each_row_is_a_class_of_its_kind() -> None:
    for kind in BUILT_IN:
        for name in kind.methods:
            assert registry.get(f"{kind.name}.{name}").kind is kind
    assert registry.kind("lora") is LORA and registry.kind("no-such") is None


def test_only_the_methods_that_train_with_these_options_want_memory_for_it() -> None:
    assert not registry.get("prune.structured")().trains and registry.get("prune.structured")(epochs=1).trains  # type: ignore[call-arg]
    assert registry.get("distill.kd")().trains and not registry.get("quantize.rtn")().trains


@pytest.mark.parametrize(
    "name, options, label",
    [
        ("quantize.gptq", {"bits": 4}, "gptq4"),
        ("quantize.int8-static", {}, "int8-static"),
        ("quantize.auto", {}, "auto"),
        ("quantize.auto", {"bits": 8}, "auto8"),
        ("prune.depth", {}, "depth"),
    ],
)
def test_the_label_of_an_output_says_method_and_bits(name: str, options: dict[str, Any], label: str) -> None:
    assert registry.get(name)(**options).label == label
