"""A Hugging Face folder: its config read as data, its weights read by us, its class from the transformers library."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskit.checkpoint.files import contained, read_json
from compresskit.checkpoint.shards import open_shards
from compresskit.checkpoint.tensors import Tensors, check_finite
from compresskit.errors import InputError, listing, missing_extra
from compresskit.model import Arch, Card, InputSpec, Model

if TYPE_CHECKING:
    from torch import nn

CONFIG = "config.json"
_MAX_CONFIG = 1 << 24
_MOST = {re.compile("layer|depth|blocks|stages|experts", re.IGNORECASE): 10_000, re.compile("num_labels"): 1_000_000}
"""The largest number under a key of such a name: transformers makes a module, or an entry, for each."""
_LARGEST = 1 << 53
_log = logging.getLogger("compresskit.checkpoint")


def is_huggingface(path: Path) -> bool:
    """True for a folder with a config.json."""
    return (path / CONFIG).is_file()


def task_of(folder: Path) -> str:
    """The task of a folder by the first class that its config.json names; as in its card.

    Raises:
        InputError: The config is damaged or hostile.
    """
    return _task(str(next(iter(_config_json(folder, quantized=True).get("architectures") or ()), "")))


def load_huggingface(folder: Path | str, *, allow_nonfinite: bool = False) -> Model:
    """Load a Hugging Face folder in float32 and eval mode, offline, running no code that it may hold.

    The weights are the file map's tensors where they are float32 already.

    Args:
        folder: Holds config.json and model.safetensors, pytorch_model.bin or shards of either.
        allow_nonfinite: Accept NaN and infinities.

    Raises:
        InputError: The config or the weights are damaged, hostile, not supported, or don't fit each other.
        MachineError: transformers is not installed.
    """
    folder = Path(folder)
    kind, config = read_config(folder)
    tensors = open_shards(folder)
    if not allow_nonfinite:
        check_finite(tensors)
    check_size(folder, build_meta(folder, kind, config), tensors)
    module = _load(folder, kind, config, tensors)
    return Model(module, card_of(module), folder, half=tensors.half())


def build_from_config(folder: Path | str, *, class_name: str | None = None) -> nn.Module:
    """The architecture of a folder's config.json, parameters unfilled, for weights that are loaded afterwards.

    Args:
        folder: Holds config.json.
        class_name: The class on record; its config's first architecture when None.

    Raises:
        InputError: As :func:`load_huggingface`.
        MachineError: transformers is not installed.
    """
    folder = Path(folder)
    kind, config = read_config(folder, class_name, quantized=True)
    with _quiet(), _refusing(folder), _no_init():
        module = kind(config)
    module.tie_weights()
    return _prepared(module)


def read_config(folder: Path, class_name: str | None = None, *, quantized: bool = False) -> tuple[Any, Any]:
    """The model class and the config object of a folder.

    Args:
        folder: Holds config.json.
        class_name: The class on record; the config's first architecture when None.
        quantized: The caller knows the weights' format: ``quantization_config`` is dropped, not refused.

    Raises:
        InputError: It asks for code of its own, is quantized already, or isn't known to transformers.
        MachineError: transformers is not installed.
    """
    data = _config_json(folder, quantized=quantized)
    if importlib.util.find_spec("transformers") is None:
        raise missing_extra("transformers", "hf")
    import transformers

    names = [class_name] if class_name else data.get("architectures") or []
    with _quiet(), _refusing(folder):
        config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        if quantized and hasattr(config, "quantization_config"):
            del config.quantization_config
        if not names:
            return transformers.AutoModel._model_mapping[type(config)], config
    kind = getattr(transformers, str(names[0]), None)
    if not isinstance(kind, type) or not issubclass(kind, transformers.PreTrainedModel):
        raise InputError(
            f"{folder / CONFIG} names the class '{names[0]}', which is not in transformers {transformers.__version__}",
        )
    return kind, config


def _config_json(folder: Path, *, quantized: bool = False) -> dict[str, Any]:
    path = contained(folder, CONFIG, str(folder))
    data = read_json(path, _MAX_CONFIG)
    if "auto_map" in data:
        raise InputError(
            f"{path} asks for code of its own (auto_map), which is never run",
            "load the model yourself, save its state_dict, and pass `arch` FILE.py:NAME",
        )
    if data.get("quantization_config") and not quantized:
        raise InputError(
            f"{path} is of a model that is quantized already (quantization_config)", "start from the original weights"
        )
    if not isinstance(data.get("architectures") or [], list):
        raise InputError(f"{path}: architectures is not a list")
    _check_numbers(path, data)
    return data


def _check_numbers(path: Path, data: dict[str, Any]) -> None:
    """Refuse a config that transformers would take forever to build: sizes of its parts too, and of lists of them."""
    stack: list[tuple[str, Any]] = list(data.items())
    while stack:
        key, value = stack.pop()
        if isinstance(value, dict):
            stack.extend(value.items())
        elif isinstance(value, list):
            stack.extend((key, item) for item in value)
        elif isinstance(value, (int, float)):
            most = min((limit for name, limit in _MOST.items() if name.search(key)), default=_LARGEST)
            if value > most and (isinstance(value, int) or most < _LARGEST):
                raise InputError(f"{path} is refused: {key} is {value}, at most {most} is taken")


def build_meta(folder: Path, kind: Any, config: Any) -> nn.Module:
    """The architecture on the meta device, in float32 and eval mode: all of it but the values.

    Args:
        folder: Holds config.json, for the errors.
        kind: What :func:`read_config` gave.
        config: What it gave beside.

    Raises:
        InputError: transformers refuses the config.
    """
    import torch

    config.dtype = torch.float32
    with _quiet(), _refusing(folder), torch.device("meta"):
        module = kind(config)
        module.tie_weights()
    return _prepared(module)


def check_size(folder: Path, module: nn.Module, tensors: Tensors) -> None:
    """Refuse a config that claims more than there is.

    Args:
        folder: Holds config.json.
        module: What :func:`build_meta` gave.
        tensors: The weights that are there.

    Raises:
        InputError: It has more than twice the parameters.
    """
    declared = sum(p.numel() for p in module.parameters())
    if declared > 2 * tensors.numel() + (1 << 24):
        raise InputError(
            f"{folder / CONFIG} describes {declared} parameters, the weights beside it hold {tensors.numel()}"
        )


def _load(folder: Path, kind: Any, config: Any, tensors: Tensors) -> nn.Module:
    import torch

    config.dtype = torch.float32
    state = dict(tensors.items())
    with _quiet(), _refusing(folder):
        module, info = kind.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=torch.float32,
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    if info.get("mismatched_keys"):
        name, found, expected = sorted(info["mismatched_keys"])[0]
        raise InputError(
            f"{folder}: the tensor '{name}' has the shape {list(found)}, config.json expects {list(expected)}"
        )
    if info.get("missing_keys"):
        missing = sorted(info["missing_keys"])
        raise InputError(f"{folder}: {len(missing)} tensors of {kind.__name__} are missing: {listing(missing)}")
    if info.get("unexpected_keys"):
        extra = sorted(info["unexpected_keys"])
        _log.warning("%s: %d tensors are not used by %s: %s", folder, len(extra), kind.__name__, listing(extra))
    return _prepared(module)


def _prepared(module: Any) -> nn.Module:
    if hasattr(module.config, "use_cache"):
        module.config.use_cache = False
    module.eval()
    return module  # type: ignore[no-any-return]


def card_of(module: Any) -> Card:
    """The card of a transformers model: inputs by its ``forward``, sizes by its config, the task by its class name."""
    name = type(module).__name__
    return Card("huggingface", Arch("transformers", name), inputs_of(module), _task(name))


def _task(name: str) -> str:
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return "causal-lm"
    if name.endswith(("ForSequenceClassification", "ForImageClassification")):
        return "classification"
    return "embedding" if name.endswith("Model") else "unknown"


def inputs_of(module: Any) -> tuple[InputSpec, ...]:
    """What a transformers model takes; empty when it takes something else than text or images."""
    config, accepted = module.config, inspect.signature(module.forward).parameters
    if "pixel_values" in accepted and "input_ids" not in accepted:
        size = getattr(config, "image_size", None)
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        if not isinstance(height, int) or not isinstance(width, int):
            return ()
        return (InputSpec("pixel_values", "float32", ("batch", getattr(config, "num_channels", 3), height, width)),)
    if "input_ids" not in accepted:
        return ()
    axes = ("batch", "sequence")
    vocabulary = getattr(config.get_text_config(), "vocab_size", None)
    kinds = getattr(config, "type_vocab_size", 0)
    known = {
        "input_ids": InputSpec("input_ids", "int64", axes, vocabulary),
        "attention_mask": InputSpec("attention_mask", "int64", axes, 2),
    }
    if isinstance(kinds, int) and kinds > 1:
        known["token_type_ids"] = InputSpec("token_type_ids", "int64", axes, kinds)
    if getattr(config, "is_encoder_decoder", False):
        known["decoder_input_ids"] = InputSpec("decoder_input_ids", "int64", ("batch", "target"), vocabulary)
    return tuple(known[name] for name in accepted if name in known)


@contextlib.contextmanager
def _refusing(folder: Path) -> Iterator[None]:
    """What transformers raises on a config or weights becomes one line."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        line = next((text.strip() for text in str(error).splitlines() if text.strip()), type(error).__name__)
        raise InputError(f"transformers cannot load {folder}: {type(error).__name__}: {line}") from error


@contextlib.contextmanager
def _no_init() -> Iterator[None]:
    """Parameters are allocated and not filled: memory that nobody writes to is never committed."""
    from transformers.initialization import no_init_weights  # no attribute of the package, which imports lazily

    with no_init_weights():
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Neither log lines nor progress bars of transformers; its settings are put back."""
    from transformers.utils import logging as theirs

    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity(logging.CRITICAL)
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()
