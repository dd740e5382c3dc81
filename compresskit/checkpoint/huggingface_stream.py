"""A Hugging Face folder whose weights stay on disk: its module without values, and each value when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskit.checkpoint.huggingface import build_meta, card_of, check_size, read_config
from compresskit.checkpoint.shards import open_shards
from compresskit.checkpoint.tensors import Tensors, check_finite
from compresskit.model import Model

if TYPE_CHECKING:
    import torch

_Sources = list[tuple[str, str]]
"""Names in the file, each with the pattern that transformers knows it by."""


def describe_huggingface(folder: Path, *, allow_nonfinite: bool = False) -> Model | None:
    """As :func:`~compresskit.checkpoint.huggingface.load_huggingface`, on the meta device with ``weights`` beside it.

    Args:
        folder: See there.
        allow_nonfinite: See there.

    Returns:
        None where not every tensor of the module is found in the folder in its own shape: to be loaded whole, which
        has an error for that.

    Raises:
        InputError: The config or the weights are damaged, hostile or not supported.
        MachineError: transformers is not installed.
    """
    kind, config = read_config(folder)
    tensors = open_shards(folder)
    if not allow_nonfinite:
        check_finite(tensors)
    module = build_meta(folder, kind, config)
    check_size(folder, module, tensors)
    weights = _of_module(module, tensors)
    if weights is None:
        return None
    return Model(module, card_of(module), folder, half=tensors.half(), weights=weights)


class ModuleTensors(Tensors):
    """The tensors of a folder under a module's names, put together as transformers does when it loads them.

    Args:
        tensors: Of the folder.
        shapes: Sizes by the module's names.
        sources: Which tensors of the folder each is made of.
        converters: What makes it of them; a name without is that tensor.
        module: The module, for converters that depend on its config.
    """

    def __init__(
        self,
        tensors: Tensors,
        shapes: Mapping[str, tuple[int, ...]],
        sources: Mapping[str, _Sources],
        converters: Mapping[str, Any],
        module: Any,
    ) -> None:
        self._tensors, self._shapes, self._sources = tensors, shapes, sources
        self._converters, self._module = converters, module
        self.source, self.metadata, self.notes = tensors.source, tensors.metadata, tensors.notes
        self.ties: dict[str, str] = {}

    def names(self) -> list[str]:
        """Of the module; of tied ones the first."""
        return list(self._shapes)

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def shape(self, name: str) -> tuple[int, ...]:
        """Sizes of a tensor."""
        return self._shapes[name]

    def dtype_name(self, name: str) -> str:
        """torch's name of a tensor's dtype."""
        return self._tensors.dtype_name(self._sources[name][0][1])

    @property
    def converted(self) -> bool:
        """Whether any of them is made of others."""
        return bool(self._converters)

    def release(self) -> None:
        """See :meth:`~compresskit.checkpoint.tensors.Tensors.release`."""
        self._tensors.release()

    def get(self, name: str) -> torch.Tensor:
        """A stored tensor, or one made of stored ones now."""
        if name not in self._converters:
            return self._tensors.get(self._sources[name][0][1])
        import torch

        work = deepcopy(self._converters[name])
        for pattern, source in self._sources[name]:
            work.add_tensor(name, source, pattern, partial(self._tensors.get, source))
        with torch.no_grad():
            found = work.convert(name, model=self._module, config=self._module.config)[name]
        value: torch.Tensor = found[0] if isinstance(found, list) else found
        return value.contiguous()


def _of_module(module: Any, tensors: Tensors) -> ModuleTensors | None:
    """The module's tensors in the folder; None where one is missing, or would be another than what is there."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    except ImportError:  # of another version: what it renames isn't known
        return None
    rules = get_model_conversion_mapping(module)
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    state: dict[str, torch.Tensor] = module.state_dict(keep_vars=True)
    sources: dict[str, _Sources] = {}
    used: dict[str, Any] = {}
    for source in sorted(tensors.names(), key=_natural):
        name, pattern = rename_source_key(source, renamings, converters, module.base_model_prefix, state)
        if name not in state and source in state:
            name, pattern = source, None
        if name not in state:
            continue
        if pattern is not None:
            used[name] = by_pattern[pattern]
        sources.setdefault(name, []).append((pattern or source, source))
    owners: dict[int, str] = {}
    for name, value in state.items():
        first = owners.setdefault(id(value), name)
        if first != name and name in sources:
            if first in sources:  # two values for one parameter
                return None
            sources[first] = sources.pop(name)
            used.update({first: used.pop(name)} if name in used else {})
    shapes = {name: tuple(state[name].shape) for name in owners.values()}
    found = ModuleTensors(tensors, shapes, sources, used, module)
    return found if all(_fits(found, tensors, name, sources.get(name), used) for name in shapes) else None


def _fits(found: ModuleTensors, tensors: Tensors, name: str, sources: _Sources | None, used: Mapping[str, Any]) -> bool:
    """True where a tensor of the module can be had from the folder."""
    if not sources or any(not tensors.dtype_name(source).startswith(("float", "bfloat")) for _, source in sources):
        return False
    if name not in used:
        return len(sources) == 1 and tensors.shape(sources[0][1]) == found.shape(name)
    held = sum(tensors.region(source).numel for _, source in sources)
    wanted = 1
    for size in found.shape(name):
        wanted *= size
    return len(used[name].target_patterns) == 1 and held == wanted


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Numbers in a name by their value: expert 2 before expert 10."""
    return [(0, int(part), "") if part.isascii() and part.isdigit() else (1, 0, part) for part in name.split(".")]
