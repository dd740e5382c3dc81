"""What a MODEL argument is, and how each kind is read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compresskit.checkpoint.arch import build, portable_reference
from compresskit.checkpoint.bundle import ONNX_NAME, WEIGHTS_NAME, is_bundle, read_card, weights_of
from compresskit.checkpoint.files import contained, unreadable
from compresskit.checkpoint.huggingface import build_from_config, is_huggingface, load_huggingface, task_of
from compresskit.checkpoint.load_state import load_into
from compresskit.checkpoint.onnx_file import read_onnx_file
from compresskit.checkpoint.onnx_inputs import graph_inputs
from compresskit.checkpoint.onnx_metadata import card_of_graph
from compresskit.checkpoint.shards import holds_weights
from compresskit.checkpoint.tensors import Tensors, open_tensors
from compresskit.checkpoint.usage_files import usage_of
from compresskit.errors import InputError, UsageError, listing
from compresskit.model import Arch, Card, InputSpec, Model
from compresskit.usage import Usage

if TYPE_CHECKING:
    from torch import nn

Kind = Literal["bundle", "huggingface", "onnx", "tensors"]
Replay = Callable[["nn.Module", Card, Tensors], Tensors]


def kind_of(path: Path | str) -> Kind:
    """Which kind of MODEL a path is.

    Raises:
        InputError: It doesn't exist, or is a folder that holds no model.
    """
    path = Path(path)
    try:
        path.stat()
    except OSError as error:
        raise unreadable(path, error) from error
    if path.is_dir():
        if is_bundle(path):
            return "bundle"
        if is_huggingface(path):
            return "huggingface"
        if holds_weights(path):
            return "tensors"
        raise InputError(
            f"{path} is a folder without a model: it has no compresskit.json (a bundle), no config.json and no weights"
        )
    return "onnx" if path.suffix.lower() == ".onnx" else "tensors"


def is_causal(path: Path) -> bool:
    """Whether a bundle or a Hugging Face folder is of a causal language model, by its card or config.

    Raises:
        InputError: These are damaged.
    """
    return (read_card(path, verify=False).task if is_bundle(path) else task_of(path)) == "causal-lm"


def load(
    path: Path | str,
    *,
    arch: str | None = None,
    arch_args: dict[str, Any] | None = None,
    input_shape: tuple[int, ...] | None = None,
    batch_axis: Mapping[str, int | None] | None = None,
    key: str | None = None,
    allow_nonfinite: bool = False,
    shipped: bool = False,
    replay: Replay | None = None,
) -> Model:
    """Load a model of any kind.

    Args:
        path: A state dict, .safetensors, Hugging Face folder, bundle or .onnx file.
        arch: Where the class is: ``FILE.py:NAME`` or ``package.module:NAME``. The only way by which user code runs.
        arch_args: The factory's keyword arguments.
        input_shape: Of the first input; its first axis is the batch.
        batch_axis: The axis that samples lie along, by the inputs of an ONNX file; None for one that all samples share.
        key: Which of the state dicts that a ``torch.save`` file holds; keys one inside another are joined by points.
        allow_nonfinite: Accept NaN and infinities in the weights.
        shipped: Take a bundle as it ships: its ONNX file where it has one, without rebuilding the module.
        replay: Gives a freshly built original the shape that a bundle's history records, in place, and returns the
            tensors to load into it. Without it a bundle that has a history stays its ONNX file.

    Returns:
        A module with its weights where the architecture is known, else the path of the ONNX file or of the tensors.

    Raises:
        InputError: The file is missing, damaged, hostile, or not what the architecture expects.
        UsageError: Options that don't go together, a wrong reference, or ``arch`` is needed.
        MachineError: A library or memory is missing.
    """
    path = Path(path)
    kind = kind_of(path)
    if arch is None and arch_args:
        raise UsageError("`arch_args` without `arch`", "give `arch` FILE.py:NAME too")
    if kind == "tensors":
        if batch_axis:
            raise UsageError(f"`batch_axis` is for an ONNX file, which {path} is not", "remove `batch_axis`")
        return _load_tensors(path, arch, arch_args or {}, input_shape, key, allow_nonfinite)
    if key is not None:
        raise UsageError(f"`key` is for a file of torch.save, which {path} is not", "remove `key`")
    if kind == "bundle" and shipped and (path / ONNX_NAME).exists():
        model = _shipped(path, _card_of(path), allow_nonfinite)
    elif kind == "bundle":
        model = _load_bundle(path, arch, arch_args, allow_nonfinite, replay)
    elif arch is not None:
        what = "a Hugging Face folder" if kind == "huggingface" else "an ONNX file"
        raise UsageError(f"`arch` does not go with {what}: {path} describes its own architecture", "remove `arch`")
    elif kind == "huggingface":
        model = load_huggingface(path, allow_nonfinite=allow_nonfinite)
        model = replace(model, card=replace(model.card, usage=usage_of(path)))
    else:
        model = Model(path, card_of_graph(read_onnx_file(path, allow_nonfinite=allow_nonfinite)), path)
    if batch_axis:
        model = replace(model, card=_with_axes(model, batch_axis))
    if input_shape is None:
        return model
    if not model.card.inputs and not isinstance(model.body, Path):  # a bundle made without its architecture
        return replace(model, card=replace(model.card, inputs=inputs_from_shape(model.body, input_shape)))
    return replace(model, card=_with_shape(model.card, input_shape))


def needs_arch(path: Path | str, card: Card) -> UsageError:
    """The error for a bundle or checkpoint whose class only the user can give; names the one on record."""
    if card.arch.kind == "python":
        args = f" and `arch_args` '{card.arch.args}'" if card.arch.args else ""
        hint = f"on record is `arch` {card.arch.reference}{args}; it runs only when you type it"
    else:
        hint = "pass `arch` FILE.py:NAME"
    return UsageError(f"{path} holds weights without a class; this needs `arch`", hint)


def _load_tensors(
    path: Path,
    arch: str | None,
    args: dict[str, Any],
    shape: tuple[int, ...] | None,
    key: str | None,
    allow_nonfinite: bool,
) -> Model:
    tensors = open_tensors(path, allow_nonfinite=allow_nonfinite, key=key)
    form = "safetensors" if ".safetensors" in path.suffixes[-3:] else "torch"
    if arch is None:
        if shape is not None:
            raise UsageError(f"`input_shape` needs `arch`: {path} is a bare state dict, which takes no input")
        return Model(path, Card(form), path, key, tensors.notes)
    module = build(arch, args, skip_init=True)
    outside = load_into(module, tensors)
    beside = [f"left out of {path.name}, beside the model's own prefix: {listing(outside)}"] if outside else []
    card = Card(form, Arch("python", portable_reference(arch), args), inputs_from_shape(module, shape))
    return Model(module, card, path, key, (*tensors.notes, *beside), tensors.half())


def inputs_from_shape(module: nn.Module, shape: tuple[int, ...] | None) -> tuple[InputSpec, ...]:
    """One float32 input, named after the first parameter of ``forward``; none when the shape isn't known.

    Raises:
        UsageError: ``forward`` needs more than one input, or the shape has a size below 1.
    """
    if shape is None:
        return ()
    _check_shape(shape)
    parameters = list(inspect.signature(module.forward).parameters.values())
    named = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needed = [p.name for p in named if p.default is p.empty]
    if len(needed) > 1:
        raise UsageError(
            f"forward takes {len(needed)} inputs ({', '.join(needed)}), `input_shape` describes one",
            "give them with `data` FILE.npz",
        )
    return (InputSpec(named[0].name if named else "input", "float32", ("batch", *shape[1:])),)


def _check_shape(shape: tuple[int, ...]) -> None:
    if not shape or any(size < 1 for size in shape):
        raise UsageError(
            f"`input_shape` {','.join(map(str, shape))}: sizes of 1 and more were expected", "for example 1,3,32,32"
        )


def _with_axes(model: Model, axes: Mapping[str, int | None]) -> Card:
    """The card with the axes of samples as they were given."""
    card = model.card
    if not isinstance(model.body, Path):
        raise UsageError(f"`batch_axis` is for an ONNX file, which {model.source} is not", "remove `batch_axis`")
    unknown = [name for name in axes if all(spec.name != name for spec in card.inputs)]
    if unknown:
        names = listing([spec.name for spec in card.inputs])
        raise UsageError(f"`batch_axis` names {listing(unknown)}, the inputs of {model.source} are {names}")
    for spec in card.inputs:
        axis = axes.get(spec.name)
        if axis is not None and axis >= len(spec.shape):
            raise UsageError(f"`batch_axis` {spec.name}={axis}: the input has {len(spec.shape)} axes, counted from 0")
    return replace(card, inputs=tuple(_with_axis(s, axes[s.name]) if s.name in axes else s for s in card.inputs))


def _with_axis(spec: InputSpec, axis: int | None) -> InputSpec:
    """Samples lie along that axis, and along no other that may vary."""
    free = {
        at: "batch" if at == axis else f"axis{at}" if size == "batch" else size for at, size in enumerate(spec.shape)
    }
    shape = tuple(size if isinstance(size, int) else free[at] for at, size in enumerate(spec.shape))
    return replace(spec, shape=shape, batch_axis=axis)


def _with_shape(card: Card, shape: tuple[int, ...]) -> Card:
    """The card with the sizes of its one input set; a fixed size that the model has can't be changed."""
    _check_shape(shape)
    if len(card.inputs) != 1:
        raise UsageError(f"`input_shape` describes one input, the model has {len(card.inputs)}", "remove it")
    spec = card.inputs[0]
    fits = len(spec.shape) == len(shape) and all(
        isinstance(have, str) or have == want for have, want in zip(spec.shape, shape, strict=True)
    )
    if not fits:
        raise UsageError(f"`input_shape` {list(shape)} does not fit the model's input '{spec.name}' {list(spec.shape)}")
    first = spec.shape[0] if isinstance(spec.shape[0], str) else shape[0]
    return replace(card, inputs=(replace(spec, shape=(first, *shape[1:])),))


def _load_bundle(
    path: Path, arch: str | None, args: dict[str, Any] | None, allow_nonfinite: bool, replay: Replay | None
) -> Model:
    card = _card_of(path)
    original = card.arch
    if arch is not None and original.kind == "transformers":
        raise UsageError(f"`arch` does not go with {path}: its config.json describes the architecture", "remove `arch`")
    rebuild = arch is not None or (original.kind == "transformers" and (replay is not None or not card.history))
    if rebuild and weights_of(path).is_file():
        return _rebuild(path, card, arch, args, allow_nonfinite, replay)
    if arch is not None:
        raise InputError(f"{path} has no {WEIGHTS_NAME}: only its ONNX file can be used", "remove `arch`")
    if (path / ONNX_NAME).exists():
        return _shipped(path, card, allow_nonfinite)
    if not weights_of(path).exists():
        raise InputError(f"{path} has neither {ONNX_NAME} nor {WEIGHTS_NAME}")
    if original.kind == "python":
        raise needs_arch(path, card)
    weights = contained(path, weights_of(path).name, str(path))
    open_tensors(weights, allow_nonfinite=allow_nonfinite)
    return Model(weights, card, path)


def _card_of(path: Path) -> Card:
    """The card of a bundle; the usage that one of an earlier version doesn't hold is read from the files beside it."""
    card = read_card(path)
    return replace(card, format="bundle", usage=usage_of(path) if card.usage == Usage() else card.usage)


def _shipped(path: Path, card: Card, allow_nonfinite: bool) -> Model:
    onnx = contained(path, ONNX_NAME, str(path))
    graph = read_onnx_file(onnx, allow_nonfinite=allow_nonfinite)
    return Model(onnx, card if card.inputs else replace(card, inputs=graph_inputs(graph)), path)


def _replayed(path: Path, replay: Replay, module: nn.Module, card: Card, tensors: Tensors) -> Tensors:
    """A card may say anything: facts that don't fit the module are its fault."""
    try:
        return replay(module, card, tensors)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise InputError(
            f"{path}: the history in its card does not fit its model ({type(error).__name__}: {error})", "make it again"
        ) from error


def _rebuild(
    path: Path, card: Card, arch: str | None, args: dict[str, Any] | None, allow_nonfinite: bool, replay: Replay | None
) -> Model:
    tensors = open_tensors(contained(path, weights_of(path).name, str(path)), allow_nonfinite=allow_nonfinite)
    half = tensors.half()
    if arch is None:
        module = build_from_config(path, class_name=card.arch.reference or None)
    else:
        chosen = card.arch.args if args is None else args
        module = build(arch, chosen, skip_init=True)
        card = replace(card, arch=Arch("python", portable_reference(arch), chosen))
    if card.history:
        if replay is None:
            raise UsageError(
                f"{path} has {len(card.history)} stages in its history; rebuilding it needs compresskit.load"
            )
        tensors = _replayed(path, replay, module, card, tensors)
    load_into(module, tensors)
    return Model(module, card, path, half=half)
