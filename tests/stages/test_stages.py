"""What holds for every method in the registry, so that a new one is covered without a new test."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from compresskit import registry
from compresskit.cli.stages import make, stage_command
from compresskit.errors import UsageError
from compresskit.stage import Stage

NAMES = list(registry.rows())


@pytest.fixture(params=NAMES)
def method(request: pytest.FixtureRequest) -> type[Stage]:
    return registry.get(request.param)


def test_the_name_is_the_registrys_key(method: type[Stage]) -> None:
    assert method.name() in NAMES
    assert registry.get(method.name()) is method


def test_it_says_what_it_takes_gives_and_needs(method: type[Stage]) -> None:
    assert set(method.takes) <= {"torch", "onnx", "weights"}
    assert method.takes
    assert method.gives in {"torch", "onnx", "weights", "same"}
    assert isinstance(method.needs, tuple)


def test_it_has_a_docstring_and_each_option_a_description(method: type[Stage]) -> None:
    assert inspect.getdoc(method) != inspect.getdoc(Stage)
    for name, field in method.model_fields.items():
        assert field.description, name
        assert not field.is_required(), f"{name} has no default"


def test_options_survive_json(method: type[Stage]) -> None:
    stage = method()
    assert method(**json.loads(json.dumps(stage.options()))) == stage


def test_it_is_frozen_and_knows_its_options(method: type[Stage]) -> None:
    stage = method()
    with pytest.raises(ValidationError):
        stage.bits = 3  # type: ignore[attr-defined]
    with pytest.raises(ValidationError):
        method(no_such_option=1)


def test_its_command_has_each_option_once(method: type[Stage]) -> None:
    command = stage_command(method.kind.name, ["--method", method.method])
    names = list(inspect.signature(command).parameters)
    assert len(names) == len(set(names))
    assert set(method.model_fields) <= set(names)
    assert {"model", "method", "output", "arch", "data", "eval_data", "max_drop", "seed", "json"} <= set(names)


def test_its_file_imports_no_algorithm(method: type[Stage]) -> None:
    source = Path(inspect.getfile(method)).read_text(encoding="utf-8")
    head = source.partition("\nclass ")[0].partition("if TYPE_CHECKING:")[0]
    assert "import torch" not in head
    assert "compresskit.ops" not in head


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no method 'quantize\.rtm'") as found:
        registry.get("quantize.rtm")
    assert "quantize.rtn" in found.value.hint


def test_auto_is_what_is_taken_where_there_is_one() -> None:
    assert "Method auto." in (stage_command("quantize", ["--bits", "4"]).__doc__ or "")
    assert "Method rtn." in (stage_command("quantize", ["--method", "rtn", "--bits=8"]).__doc__ or "")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"bits": 7}, "--bits 7: expected 2, 3, 4, 5, 6 or 8"),
        ({"group_size": 7}, "--group-size 7: expected must be one of"),
    ],
)
def test_a_value_out_of_range_names_the_option(values: dict, said: str) -> None:
    with pytest.raises(UsageError) as found:
        make(registry.get("quantize.rtn"), values)
    assert said in found.value.message
