"""The user's own code: found, called, and blamed with file and line when it fails."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
import torch

from compresskit.checkpoint.arch import build, portable_reference
from compresskit.errors import UsageError

CODE = """
import sys
import torch
from torch import nn
from helper import WIDTH

class Net(nn.Module):
    def __init__(self, width=WIDTH, fail=""):
        super().__init__()
        self.fc = nn.Linear(width, 2)
        self.register_buffer("table", nn.init.ones_(torch.empty(3)), persistent=False)
        if fail == "error":
            raise ValueError("width\\x1b[31m")  # line 13
        if fail == "exit":
            sys.exit(3)
        if fail == "deep":
            torch.ones(2) + torch.ones(3)

def other(): return 3
value = 4
"""


@pytest.fixture
def net(tmp_path: Path) -> Path:
    (tmp_path / "helper.py").write_text("WIDTH = 5\n")
    (tmp_path / "net.py").write_text(CODE)
    return tmp_path / "net.py"


def test_build_from_a_file(net: Path) -> None:
    sys.modules.pop("helper", None)
    before = list(sys.path)
    module = build(f"{net}:Net")
    assert module.fc.in_features == 5
    assert build(f"{net}:Net", {"width": 7}).fc.in_features == 7
    assert sys.path == before and not (net.parent / "__pycache__").exists()


def test_build_from_a_module() -> None:
    assert isinstance(build("torch.nn:Linear", {"in_features": 2, "out_features": 3}), torch.nn.Linear)


def test_meta_has_shapes_and_no_values(net: Path) -> None:
    assert all(p.is_meta for p in build(f"{net}:Net", meta=True).parameters())


def test_skipping_the_init_skips_parameters_only(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled: list[bool] = []
    kept = torch.nn.init.kaiming_uniform_
    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", lambda t, *a, **k: filled.append(True) or t)
    module = build(f"{net}:Net", skip_init=True)
    assert not filled and torch.equal(module.table, torch.ones(3))
    build(f"{net}:Net")
    assert filled
    monkeypatch.undo()
    assert torch.nn.init.kaiming_uniform_ is kept


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("Net", {"fail": "error"}, r"failed at .*net\.py:13: ValueError: width\\x1b\[31m"),
        ("Net", {"fail": "exit"}, r"failed at .*net\.py:15: SystemExit: 3"),
        ("Net", {"fail": "deep"}, r"failed at .*net\.py:17: RuntimeError"),
        ("Net", {"wide": 3}, "unexpected keyword argument 'wide'"),
        ("other", {}, "gave a int, a torch.nn.Module was expected"),
        ("value", {}, "'value' of .* is a int, a class or function"),
        ("Nett", {}, "has no 'Nett'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(net: Path, name: str, args: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        build(f"{net}:{name}", args)
    assert "\n" not in caught.value.message and "\x1b" not in str(caught.value)


def test_the_names_that_a_file_has_are_told(net: Path) -> None:
    with pytest.raises(UsageError) as caught:
        build(f"{net}:Nope")
    assert "'Net', 'other'" in caught.value.hint


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def f(:\n", r"broken\.py:1: SyntaxError"),
        ("import nothing_there\n", r"broken\.py:1: ModuleNotFoundError"),
        ("1/0", "ZeroDivision"),
    ],
)
def test_a_file_that_does_not_import(tmp_path: Path, code: str, said: str) -> None:
    (tmp_path / "broken.py").write_text(code)
    with pytest.raises(UsageError, match=said):
        build(f"{tmp_path / 'broken.py'}:Net")


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("net.py", "not a reference"),
        ("net.py:", "not a reference"),
        (":Net", "not a reference"),
        ("net.py:a b", "not a reference"),
        ("absent.py:Net", "no file absent.py"),
        ("no_such_module_here:Net", "no module 'no_such_module_here'"),
        ("torch.nn.nothing:Net", "no module 'torch.nn.nothing'"),
        ("a/b:Net", "neither a .py file nor a module's name"),
    ],
)
def test_references_that_are_none(reference: str, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        build(reference)


@pytest.mark.parametrize(
    ("reference", "want"),
    [
        ("net.py:Net", "net.py:Net"),
        ("examples/net.py:Net", "examples/net.py:Net"),
        ("/home/me/net.py:Net", "net.py:Net"),
        ("C:\\me\\net.py:Net", "net.py:Net"),
        ("a\\net.py:Net", "a/net.py:Net"),
        ("~/net.py:Net", "net.py:Net"),
        ("package.mod:Net", "package.mod:Net"),
    ],
)
def test_a_recorded_reference_is_never_absolute(reference: str, want: str) -> None:
    assert portable_reference(reference) == want


def test_a_relative_path_is_shown_as_typed(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(net.parent)
    with pytest.raises(UsageError, match=r"`arch` net\.py:Net failed at net\.py:13:"):
        build("net.py:Net", {"fail": "error"})
    assert os.getcwd() not in sys.path
