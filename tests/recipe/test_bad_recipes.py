"""Bad recipes: each problem with its line, all of them at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compresskit.errors import ExitCode
from compresskit.recipe.problems import SHOWN, RecipeError
from compresskit.recipe.reading import read_recipe

S = "steps: [quantize.rtn]\n"
BAD: dict[str, tuple[str, int, str]] = {
    # keys and values
    "unknown key": (f"modell: a\n{S}", 1, "'modell' is not a key of a recipe; did you mean 'model'?"),
    "twice": (f"seed: 1\nseed: 2\n{S}", 2, "'seed' is given twice, first in line 1"),
    "twice, differently": (f"eval_data: null\neval-data: null\n{S}", 2, "'eval-data' is given twice, first in line 1"),
    "wrong type": (f"{S}threads: many", 2, "threads: expected a whole number, found 'many'"),
    "truth for a number": (f"{S}threads: true", 2, "threads: expected a whole number, found true"),
    "out of range": (f"{S}seed: -1", 2, "seed: expected at least 0, found -1"),
    "shape": (f"{S}input-shape: 1,x,3", 2, "input-shape: expected numbers"),
    "shape below 1": (f"{S}input-shape: [1, 0]", 2, "input-shape[1]: expected at least 1, found 0"),
    "description": (f"{S}description: [a]", 2, "description: expected text"),
    "arch-args": (f"{S}arch-args: 3", 2, "arch-args: expected a mapping, found 3"),
    "normalize": (f"{S}normalize: 1,2", 2, "normalize: expected"),
    "metric": (f"{S}metric: acuracy", 2, "metric: there is no metric 'acuracy'; choose accuracy"),
    "yes": (f"{S}allow-nonfinite: yes", 2, "'yes' may be a word or a truth value: write true"),
    # steps
    "no steps": ("seed: 1", 0, "steps: a recipe needs at least one"),
    "empty steps": ("seed: 1\nsteps: []", 2, "steps: a recipe needs at least one"),
    "steps no list": ("steps: quantize.rtn", 1, "steps: expected a list"),
    "a number for a step": ("steps:\n  - quantize.rtn\n  - 4", 3, "steps[1]: expected a method, found 4"),
    "unknown method": ("steps:\n  - quantise.rtn", 2, "'quantise.rtn'; did you mean 'quantize.rtn'?"),
    "method without stage": ("steps: [gptq: {bits: 4}]", 1, "there is no method 'gptq'; did you mean 'quantize.gptq'?"),
    "no method": ("steps:\n  - max-drop: 1pt", 2, "steps[0]: names no method"),
    "two methods": (
        "steps:\n  - prune.magnitude: {sparsity: 0.5}\n    quantize.rtn: {}", 3, "begin the second with a '-'"),
    "unknown option": (
        "steps:\n  - quantize.gptq: {bit: 4}", 2,
        "steps[0].quantize.gptq: 'bit' is not an option; did you mean 'bits'?",
    ),
    "option beside its method": (
        "steps:\n  - quantize.gptq:\n    bits: 4", 3, "'bits' is an option of quantize.gptq: indent it further"),
    "unknown key of a step": ("steps:\n  - quantize.rtn:\n    rolback: true", 3, "did you mean 'rollback'?"),
    "option twice": ("steps:\n  - quantize.rtn: {group-size: 32, group_size: 64}", 2, "'group_size' is given twice"),
    "options no mapping": ("steps: [quantize.rtn: 4]", 1, "steps[0].quantize.rtn: expected its options"),
    "bits": ("steps:\n- quantize.hqq:\n    bits: 5", 3, "steps[0].quantize.hqq.bits: expected 2, 3, 4 or 8, found 5"),
    "group size": ("steps: [quantize.rtn: {group-size: 7}]", 1, "group-size: must be one of 0, 16, 32"),
    "layer bits": ("steps: [quantize.rtn: {layer-bits: [a=7]}]", 1, "layer-bits: 'a=7' must be GLOB=BITS"),
    "bits of another format": ("steps: [quantize.rtn: {layer-bits: [a=5]}]", 1, "5 bits need weight-format k-quant"),
    "no list": ("steps: [quantize.rtn: {exclude: head}]", 1, "exclude: expected a list, as [a, b], found 'head'"),
    "truth for an option": ("steps: [prune.depth: {drop: true}]", 1, "drop: expected a whole number, found true"),
    "share": ("steps: [prune.structured: {target-macs: 1.5}]", 1, "target-macs: expected below 1.0, found 1.5"),
    "idle option": ("steps: [quantize.rtn: {lr: 0.1}]", 1, "lr is for training, and epochs is 0; give epochs N"),
    "no target": ("steps: [prune.structured]", 1, "no target is given. Give one of target-macs"),
    "no target of depth": ("steps: [prune.depth]", 1, "no target is given. Give drop N or blocks GLOB"),
    "both targets of depth": ("steps: [prune.depth: {drop: 1, blocks: [a]}]", 1, "drop and blocks: give one of them"),
    "no target of width": ("steps: [prune.width: {neurons: 0}]", 1, "nothing to prune"),
    "no target of factorize": ("steps: [factorize.auto]", 1, "no target is given. Give one of"),
    "no teacher": ("steps: [distill.kd]", 1, "distill needs a teacher; give teacher MODEL"),
    "another word with a dollar": ("steps: [distill.kd: {teacher: $modle}]", 1, "the one such word is $model"),
    "drop of a step": ("steps:\n- quantize.rtn:\n  max-drop: 1", 3, "steps[0].max-drop: expected points as 0.5pt"),
    "rollback": ("steps:\n- quantize.rtn:\n  rollback: 1", 3, "steps[0].rollback: expected true or false, found 1"),
    # order
    "factorize after quantize": (
        "steps:\n- quantize.rtn\n- factorize.auto: {rank: 4}", 3, "comes after quantize; factorize first"),
    "prune after quantize": (
        "steps:\n- quantize.rtn\n- prune.structured: {ratio: 0.5}", 3, "prune.structured comes after quantize"),
    "distill after quantize": (
        "steps:\n- quantize.rtn\n- distill.kd: {teacher: $model}", 3, "distill.kd comes after quantize"),
    "lora after int8": (
        "steps:\n- quantize.int8-static\n- lora.lora", 3,
        "lora.lora can't work on an ONNX graph, which what quantize.int8-static gives is"),
    "8 bit twice": (
        "steps:\n- quantize.int8-static\n- quantize.int8-dynamic", 3,
        "quantize.int8-dynamic comes after quantize.int8-static"),
    "adapters beside": ("steps:\n- lora.lora\n- quantize.rtn", 3, "a model with separate adapters"),
    "a module's stage on a graph": ("model: m.onnx\nsteps: [quantize.gptq]", 2, "can't work on an ONNX graph"),
    "a module's stage on tensors": ("model: m.pt\nsteps: [quantize.gptq]", 2, "give arch FILE.py:NAME"),
    "no data": ("model: m.onnx\nsteps:\n- quantize.int8-static", 3, "needs calibration data; give data"),
    "no training data": ("model: hf\nsteps:\n- lora.lora", 3, "lora.lora: needs training data; give data"),
    # limits
    "unknown limit": (f"{S}checks:\n  max-dorp: 1%", 3, "checks: there is no 'max-dorp'; did you mean 'max-drop'?"),
    "drop": (f"{S}checks:\n  max-drop: 1", 3, "checks.max-drop: expected points as 0.5pt"),
    "size": (f"{S}checks:\n  max-size: big", 3, "checks.max-size: expected a number above 0 and a unit"),
    "speed": (f"{S}checks:\n  min-speedup: 0", 3, "checks.min-speedup: expected above 0"),
    "checks no mapping": (f"{S}checks: 1%", 2, "checks: expected a mapping"),
    "drop without data": (f"model: hf\n{S}checks: {{max-drop: 1%}}", 3, "max-drop needs evaluation data"),
    "drop of a step without data": (
        "model: hf\nsteps:\n- quantize.rtn:\n  max-drop: 1%", 3, "max-drop needs evaluation data"),
    "rollback without data": (
        "model: hf\nsteps:\n- quantize.rtn:\n  rollback: true", 3, "rollback needs evaluation data; give eval-data"),
    "speed of nothing that runs": (
        f"model: m.pt\n{S}checks: {{min-speedup: 2}}", 3, "checks: min-speedup needs a model that runs"),
    "metric without data": (f"model: hf\n{S}metric: accuracy", 3, "metric: needs evaluation data"),
    "arch-args without arch": (f"model: m.pt\n{S}arch-args: {{a: 1}}", 3, "arch-args: is for arch"),
    "normalize without data": (f"model: m.pt\n{S}normalize: imagenet", 3, "normalize: is for data"),
    # what it names
    "missing model": (f"{S}model: no/such.pt", 2, "model: 'no/such.pt' (that is sub/no/such.pt) does not exist"),
    "missing data": (f"{S}data: no.npz", 2, "data: 'no.npz' (that is sub/no.npz) does not exist"),
    "missing eval-data": (f"{S}eval-data: no.npz", 2, "eval-data: 'no.npz'"),
    "missing teacher": ("steps: [distill.kd: {teacher: t.pt}]", 1, "distill.kd.teacher: 't.pt'"),
    "missing adapter": ("steps: [lora.merge: {adapter: there}]", 1, "lora.merge.adapter: 'there'"),
    "arch": (f"{S}arch: net.py:Net", 2, "arch: 'net.py:Net' would run code, which a recipe may not: add `allow_code`"),
    "arch of a package": (f"{S}arch: a.b:C", 2, "arch: 'a.b:C' would run code"),
    "arch without name": (f"{S}arch: net.py", 2, "arch: expected FILE.py:NAME or package.module:NAME"),
    "data as code": (f"{S}data: net.py:f", 2, "data: 'net.py:f' would run code"),
    "eval-data as code": (f"{S}eval-data: net.py:f", 2, "eval-data: 'net.py:f' would run code"),
    "metric as code": (f"{S}metric: net.py:f", 2, "metric: 'net.py:f' would run code"),
    "teacher's code": (
        "steps: [distill.kd: {teacher: $model, teacher-arch: 'net.py:T'}]", 1, "'net.py:T' would run code"),
    # matrix
    "matrix nowhere": (f"{S}matrix:\n  steps.3.bits: [4]", 3, "addresses nothing; the recipe has steps.0"),
    "matrix of a whole step": (f"{S}matrix:\n  steps.0: [4]", 3, "'steps.0' addresses nothing"),
    "matrix of an unknown option": (
        f"{S}matrix:\n  steps.0.bit: [4]", 3, "'bit' is not an option; did you mean 'bits'?"),
    "matrix of an unknown key": (
        f"{S}matrix:\n  sead: [4]", 3, "'sead' is not a key of a recipe; did you mean 'seed'?"),
    "matrix without a list": (f"{S}matrix:\n  seed: 4", 3, "matrix: seed: expected a list of values"),
    "matrix with an empty list": (f"{S}matrix:\n  seed: []", 3, "matrix: seed: expected a list of values"),
    "matrix no mapping": (f"{S}matrix: [1]", 2, "matrix: expected a mapping"),
    "a bad point": (f"{S}matrix:\n  steps.0.bits: [4, 7]", 3, "rtn.bits: expected 2, 3, 4, 5, 6 or 8, found 7"),
    "too many points": (
        f"{S}matrix: {{seed: {list(range(20))}, threads: {list(range(20))}}}", 2, "400 combinations, at most 256"),
    # includes
    "missing include": (f"{S}include: no.yaml", 2, "include: 'no.yaml': there is no such file"),
    "a near name": (f"include: edge-int9\n{S}", 1, "did you mean 'edge-int8'?"),
    "include no path": (f"{S}include: 3", 2, "include: expected the path of a file"),
    "include itself": (f"{S}include: r.yaml", 2, "include: 'r.yaml' includes itself"),
    # YAML
    "empty": ("", 0, "the file is empty"),
    "a comment": ("# nothing\n", 0, "the file is empty"),
    "not a mapping": ("- a\n", 1, "a recipe is a mapping"),
    "two documents": (f"{S}---\n{S}", 2, "a second document begins"),
    "syntax": ("steps: [a\nb: c", 2, "not YAML"),
    "tab": ("steps:\n\t- a", 2, "not YAML"),
    "Python object": ("seed: 1\ndata: !!python/object/apply:os.system ['ls']\n", 2, "the tag !!python/object"),
    "own tag": (f"{S}data: !mine x", 2, "the tag !mine isn't allowed"),
    "binary": (f"{S}data: !!binary aGk=", 2, "the tag !!binary isn't allowed"),
    "no anchor": (f"{S}data: *no", 2, "*no has no anchor &no"),
    "anchor in itself": (f"{S}arch-args: &a {{b: [*a]}}", 2, "*a contains itself"),
    "key is a list": (f"{S}[a, b]: c", 2, "a key must be a word"),
    "merge of a list": (f"{S}checks: {{<<: 3}}", 2, "<< takes a mapping"),
    "NUL": (f'{S}data: "a\\0b"', 2, "holds a character that no text has"),
    "surrogate": (f'{S}data: "a\\uD800b"', 2, "holds a character that no text has"),
    "no such character": (f'{S}data: "\\UFFFFFFFF"', 0, "not YAML"),
}  # fmt: skip
BYTES: dict[str, tuple[bytes, int, str]] = {
    "not UTF-8": (b"seed: 1\ndata: \xff\xfe\n", 2, "not a text in UTF-8"),
    "UTF-16": ("seed: 1".encode("utf-16"), 1, "not a text in UTF-8"),
    "control character": (b"seed: 1\ndata: a\x07b\n", 2, "the character U+0007 isn't allowed"),
    "too large": (b"# " + b"x" * 300_000, 0, "a recipe has at most 256 KiB"),
    "deep": (b"a: " + b"[" * 5000, 1, "nested more than 24 deep"),
    "deep by indentation": (b"a:\n" + b"".join(b" " * n + b"-\n" for n in range(1, 60)), 26, "nested more than 24"),
    "anchor bomb": (
        b"a0: &a0 [x, x]\n" + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (n, n, n - 1, n - 1) for n in range(1, 40)),
        13, "holds more than 10,000 values"),
    "deep by anchors": (
        b"a0: &a0 [x]\n" + b"".join(b"a%d: &a%d [*a%d]\n" % (n, n, n - 1) for n in range(1, 400)),
        24, "nested more than 24 deep"),
    "many steps": (b"steps: [" + b"quantize.rtn, " * 65 + b"]", 1, "steps: 65 steps, at most 64"),
}  # fmt: skip


@pytest.fixture
def sub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder below the current one, with files that recipes name."""
    monkeypatch.chdir(tmp_path)
    folder = Path("sub")
    (folder / "hf").mkdir(parents=True)
    for name in ("m.pt", "m.onnx", "net.py"):
        (folder / name).touch()
    return folder


def problems(path: Path | str, **how: Any) -> list[tuple[str, int, str]]:
    with pytest.raises(RecipeError) as found:
        read_recipe(path, **how)
    assert found.value.exit_code == ExitCode.USAGE
    return [(problem.file, problem.line, problem.text) for problem in found.value.problems]


@pytest.mark.parametrize("case", BAD)
def test_a_problem_is_told_with_its_line(sub: Path, case: str) -> None:
    text, line, words = BAD[case]
    (sub / "r.yaml").write_text(text, encoding="utf-8")
    found = problems(sub / "r.yaml")
    assert [(file, at) for file, at, told in found if words in told] == [(str(sub / "r.yaml"), line)], found
    others = [told for _, _, told in found if words not in told]
    assert len(found) == 1 or all("net.py" in t or "steps: a recipe" in t or "would run" in t for t in others), found


@pytest.mark.parametrize("case", BYTES)
def test_hostile_files_are_refused_at_once(sub: Path, case: str) -> None:
    data, line, words = BYTES[case]
    (sub / "r.yaml").write_bytes(data)
    found = problems(sub / "r.yaml")
    assert any(at == line and words in told for _, at, told in found), found


def test_everything_is_told_at_once_in_the_order_of_lines(sub: Path) -> None:
    text = """\
modell: a.pt
threads: -1
steps:
  - prune.structured: {target-macs: 1.5, epochs: true}
    max-drop: 1
  - quantize.gptq:
    bits: 4
  - quantise.gptq
  - distill.kd: {teacher: $modle}
  - quantize.rtn: {bit: 4}
arch: net.py:Net
checks: {max-drop: 1, max_size: big, speed: 3}
matrix: {steps.9.bits: [3]}
"""
    (sub / "r.yaml").write_text(text, encoding="utf-8")
    found = problems(sub / "r.yaml")
    assert [line for _, line, _ in found] == [1, 2, 4, 4, 5, 7, 8, 9, 10, 11, 12, 12, 12, 13]


def test_an_included_files_problem_is_told_at_its_own_place(sub: Path) -> None:
    (sub / "base.yaml").write_text("seed: 1\nthreads: -2\n", encoding="utf-8")
    (sub / "r.yaml").write_text("include: base.yaml\nsteps: [quantize.rtn]\n", encoding="utf-8")
    assert problems(sub / "r.yaml") == [
        (str(sub / "base.yaml"), 2, "threads: expected at least 0, found -2")
    ]  # fmt: skip


def test_a_circle_of_includes(sub: Path) -> None:
    for one, other in (("a", "b"), ("b", "c"), ("c", "a")):
        (sub / f"{one}.yaml").write_text(f"include: {other}.yaml\nsteps: [quantize.rtn]\n", encoding="utf-8")
    assert problems(sub / "a.yaml") == [(str(sub / "c.yaml"), 1, "include: 'a.yaml' includes itself in the end")]


def test_includes_are_bounded(sub: Path) -> None:
    for n in range(12):
        (sub / f"{n}.yaml").write_text(f"include: {n + 1}.yaml\n", encoding="utf-8")
    (sub / "12.yaml").write_text("steps: [quantize.rtn]\n", encoding="utf-8")
    assert any("more than 8 files deep" in told for _, _, told in problems(sub / "0.yaml"))
    (sub / "wide.yaml").write_text(f"include: {['12.yaml'] * 40}\n", encoding="utf-8")
    assert any("more than 32 files" in told for _, _, told in problems(sub / "wide.yaml"))


SETS = {
    "no value": ("steps.0.bits", "`set` steps.0.bits", "expected KEY=VALUE"),
    "no key": ("=3", "`set` =3", "expected KEY=VALUE"),
    "no such step": ("steps.1.bits=3", "`set` steps.1.bits=3", "'steps.1.bits' addresses nothing"),
    "a negative step": ("steps.-1.bits=3", "`set` steps.-1.bits=3", "addresses nothing"),
    "no such option": ("steps.0.bit=3", "`set` steps.0.bit=3", "'bit' is not an option; did you mean 'bits'?"),
    "no such key": ("modle=x", "`set` modle=x", "'modle' is not a key of a recipe; did you mean 'model'?"),
    "steps": ("steps=[]", "`set` steps=[]", "'steps' addresses nothing"),
    "too deep": ("checks.max-drop.x=1", "`set` checks.max-drop.x=1", "addresses nothing"),
    "out of range": ("steps.0.bits=7", "`set` steps.0.bits=7", "expected 2, 3, 4, 5, 6 or 8, found 7"),
    "limit": ("checks.max-drop=2", "`set` checks.max-drop=2", "checks.max-drop: expected points"),
    "not YAML": ("steps.0.exclude=[a", "`set` steps.0.exclude=[a", "not YAML"),
    "missing file": ("data=no.npz", "`set` data=no.npz", "data: 'no.npz' does not exist"),
}


@pytest.mark.parametrize("case", SETS)
def test_a_bad_set_is_named(sub: Path, case: str) -> None:
    text, place, words = SETS[case]
    (sub / "r.yaml").write_text(S, encoding="utf-8")
    found = problems(sub / "r.yaml", sets=[text])
    assert any(file == place and words in told for file, _, told in found), found


def test_a_bad_option_of_the_command_line_is_named_by_its_flag(sub: Path) -> None:
    (sub / "r.yaml").write_text(S, encoding="utf-8")
    found = problems(sub / "r.yaml", overrides={"checks.max-drop": "3", "data": "no.npz"})
    assert {(file, told.partition(":")[0]) for file, _, told in found} == {
        ("`max_drop`", "checks.max-drop"),
        ("`data`", "data"),
    }


def test_allowed_code_is_no_problem(sub: Path) -> None:
    (sub / "r.yaml").write_text(f"model: m.pt\narch: net.py:Net\n{S}", encoding="utf-8")
    assert read_recipe(sub / "r.yaml", allow_code=True)[0].arch == f"{sub / 'net.py'}:Net"


def test_code_in_an_included_file_asks_too(sub: Path) -> None:
    (sub / "base.yaml").write_text("arch: net.py:Net\n", encoding="utf-8")
    (sub / "r.yaml").write_text(f"include: base.yaml\n{S}", encoding="utf-8")
    assert [(line, "would run code" in told) for _, line, told in problems(sub / "r.yaml")] == [(1, True)]


def test_no_such_recipe(sub: Path) -> None:
    ((file, line, told),) = problems("edge-int")
    assert (file, line) == ("edge-int", 0) and "did you mean 'edge-int8'?" in told


@pytest.mark.parametrize("where", ["sub", "sub/hf", "a\0b"])
def test_what_is_no_file_is_no_recipe(sub: Path, where: str) -> None:
    assert "there is no such file" in problems(where)[0][2]


def test_a_missing_extra_is_named(sub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compresskit.recipe.reading.find_spec", lambda _name: None)
    (sub / "r.yaml").write_text("seed: 1\nsteps:\n- lora.lora\n- factorize.cp: {rank: 2}", encoding="utf-8")
    told = [(line, text) for _, line, text in problems(sub / "r.yaml") if "installed" in text]
    assert told == [
        (3, "steps[0].lora.lora: needs peft, which is not installed: pip install 'compresskit[lora]'"),
        (4, "steps[1].factorize.cp: needs tensorly, which is not installed: pip install 'compresskit[factorize]'"),
    ]


def test_a_plugin_that_fails_is_a_problem(sub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compresskit import registry

    rows = {**registry.rows(), "quantize.mine": "no_such_module:Mine"}
    monkeypatch.setattr(registry, "rows", lambda: rows)
    (sub / "r.yaml").write_text("steps: [quantize.mine]", encoding="utf-8")
    found = problems(sub / "r.yaml")[0][2]
    assert "the plugin quantize.mine (no_such_module:Mine) can't be used" in found and "No module named" in found


def test_a_long_list_is_cut_and_counted(sub: Path) -> None:
    (sub / "r.yaml").write_text("".join(f"k{n}: 1\n" for n in range(80)) + S, encoding="utf-8")
    with pytest.raises(RecipeError) as found:
        read_recipe(sub / "r.yaml")
    assert len(found.value.problems) == 80 and len(found.value.messages()) == SHOWN
    assert found.value.hint == "and 30 more" and str(found.value).endswith("and 30 more")


def test_text_of_a_file_is_escaped(sub: Path) -> None:
    (sub / "r.yaml").write_text(f'"\\e[31mred": 1\n{S}', encoding="utf-8")
    with pytest.raises(RecipeError) as found:
        read_recipe(sub / "r.yaml")
    assert "\x1b" not in str(found.value) and "\\x1b[31mred" in str(found.value)
