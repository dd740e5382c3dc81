"""PEFT's layers in a module while they are trained; afterwards only their tensors are kept.

PEFT knows plain modules as well as those of transformers. Two things are ours: its LoRA runs over this project's packed
linear layers (QLoRA: Dettmers et al., 2023, arXiv:2305.14314), and an adapter whose start took a part out of the
weights (PiSSA: Meng et al., 2024, arXiv:2404.02948) is given as one for the original weights, of twice the rank.
"""

from __future__ import annotations

import importlib.util
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compresskit.errors import UsageError, missing_extra
from compresskit.ops.allocator import give_back
from compresskit.ops.lora.adapter import turns
from compresskit.ops.lora.folder import PREFIX
from compresskit.ops.packed.modules import PackedLinear, set_module
from compresskit.ops.quantize.bnb_library import bitsandbytes

Kind = Literal["lora", "rslora", "dora", "pissa", "vera", "ia3"]
_DROPPED = ("peft_version", "auto_mapping", "runtime_config")
_STARTED = 0x5EED


@dataclass(frozen=True)
class Start:
    """Adapters as they begin.

    Attributes:
        rank: Of the adapters; IA³ has none.
        alpha: The product is scaled by ``alpha / rank``; for rsLoRA (Kalajdzievski, 2023, arXiv:2312.03732) by
            ``alpha / √rank``.
        dropout: Of what goes into an adapter, 0 to 1.
        init: ``kaiming`` or ``gaussian``, of LoRA's first factor; the second one begins as zero.
    """

    rank: int = 8
    alpha: float = 16
    dropout: float = 0.0
    init: str = "kaiming"


def peft_library() -> ModuleType:
    """PEFT, imported late and quietly.

    Raises:
        MachineError: It isn't installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise missing_extra("peft", "lora")
    bitsandbytes()  # which PEFT imports: first here, without its network access and log lines
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import peft
    return peft  # type: ignore[no-any-return]


@dataclass
class Injected:
    """A module with PEFT's layers in it.

    Attributes:
        module: Changed in place.
        model: PEFT's wrapper of it.
        config: PEFT's config.
        kind: What is trained.
        layers: Names of the adapted layers.
        originals: Their weights, where PEFT changed them (PiSSA).
        start: The tensors at the start, for the same reason.
        flags: Which parameters took gradients before.
    """

    module: nn.Module
    model: Any
    config: Any
    kind: Kind
    layers: Sequence[str]
    originals: dict[str, Tensor] = field(default_factory=dict)
    start: dict[str, Tensor] = field(default_factory=dict)
    flags: dict[str, bool] = field(default_factory=dict)

    def trainable(self) -> int:
        """Numbers that training moves."""
        return sum(p.numel() for p in self.module.parameters() if p.requires_grad)

    def tensors(self) -> dict[str, Tensor]:
        """The adapter's tensors by PEFT's names, without its prefix; copies on the CPU."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = peft_library().get_peft_model_state_dict(self.model, save_embedding_layers=False)
        found = {name.removeprefix(PREFIX).removeprefix("base_model."): t for name, t in found.items()}
        return {name: tensor.detach().float().cpu().clone() for name, tensor in found.items()}

    def stored_config(self, base: str) -> dict[str, Any]:
        """``adapter_config.json`` of what :meth:`stored_tensors` gives.

        Args:
            base: Name of the base; no absolute path.
        """
        config = {key: _plain(value) for key, value in self.config.to_dict().items() if key not in _DROPPED}
        if self.kind == "pissa":
            config |= {"r": 2 * config["r"], "lora_alpha": 2 * config["lora_alpha"], "init_lora_weights": True}
        return config | {"base_model_name_or_path": base, "inference_mode": True}

    def stored_tensors(self) -> dict[str, Tensor]:
        """The adapter for the original weights."""
        found = self.tensors()
        if self.kind != "pissa":
            return found
        return {
            name: torch.cat([tensor, self.start[name]])
            if name.endswith("lora_A.weight")
            else torch.cat([tensor, -self.start[name]], 1)
            for name, tensor in found.items()
        }

    def remove(self) -> None:
        """Take PEFT's layers out again; the weights are what they were."""
        for name in self.layers:
            layer = self.module.get_submodule(name)
            base: nn.Module = layer.get_base_layer()  # type: ignore[operator]
            if name in self.originals:
                base.get_parameter("weight").data = self.originals[name]
            set_module(self.module, name, base.train(self.module.training))
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(self.flags.get(name, parameter.requires_grad))
        if getattr(self.module, "peft_config", None) is not None:
            del self.module.peft_config


def inject(
    module: nn.Module,
    kind: Kind,
    layers: Sequence[str],
    start: Start = Start(),
    *,
    seed: int = 0,
) -> Injected:
    """Put PEFT's layers in the place of some of a module's, in place; only they take gradients then.

    Args:
        module: Any module.
        kind: Of the adapter; ``lora`` and ``rslora`` work on packed linear layers too.
        layers: Names; see :func:`~compresskit.ops.lora.targets.find_targets`.
        start: What the adapters are like.
        seed: Of the start.

    Raises:
        MachineError: PEFT isn't installed.
    """
    config = _config(module, kind, layers, start, seed)
    originals = (
        {n: module.get_submodule(n).get_parameter("weight").detach().clone() for n in layers} if kind == "pissa" else {}
    )
    flags = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft_library().get_peft_model(module, config)
    for name in layers:  # once more by us: torch's fast paths would go by the base's weight alone
        set_module(module, name, module.get_submodule(name))
    found = Injected(module, model, config, kind, list(layers), originals, flags=flags)
    if kind == "pissa":
        found.start = found.tensors()
    return found


def _config(module: nn.Module, kind: Kind, layers: Sequence[str], start: Start, seed: int) -> Any:
    """PEFT's config of the adapters."""
    peft = peft_library()
    common: dict[str, Any] = {"target_modules": target_modules(module, layers)}
    if any(turns(module.get_submodule(name)) for name in layers):
        common["fan_in_fan_out"] = True
    if kind == "vera":
        common |= {"save_projection": True, "projection_prng_key": seed or _STARTED}
        return peft.VeraConfig(r=start.rank, vera_dropout=start.dropout, **common)
    if kind == "ia3":
        return peft.IA3Config(feedforward_modules=[], **common)
    init: bool | str = "pissa" if kind == "pissa" else True if start.init == "kaiming" else start.init
    config = peft.LoraConfig(
        r=start.rank, lora_alpha=start.alpha, lora_dropout=start.dropout, use_rslora=kind == "rslora",
        use_dora=kind == "dora", init_lora_weights=init, **common,
    )  # fmt: skip
    from peft.tuners.lora.layer import Linear

    config._register_custom_module({PackedLinear: Linear})
    return config


def start_from(injected: Injected, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Begin with other factors: ``(down, up)`` by layer, whose product is to be what the adapter adds."""
    for name, (down, up) in factors.items():
        layer: Any = injected.module.get_submodule(name)
        root = math.sqrt(layer.scaling["default"])
        layer.lora_A["default"].weight.data = down / root
        layer.lora_B["default"].weight.data = up / root


@contextmanager
def still(module: nn.Module) -> Iterator[None]:
    """Within it batch normalizations stay in eval mode: their statistics belong to the base, not to an adapter."""
    norms = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._NormBase)]

    def stay(layer: nn.Module) -> Any:
        return lambda _mode=True: nn.Module.train(layer, False)

    for layer in norms:
        layer.train = stay(layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in norms:
            del layer.train


@contextmanager
def recomputing(module: nn.Module) -> Iterator[None]:
    """Within it a transformers model keeps what goes into its blocks only, and computes the rest again for gradients.

    What one batch has freed goes back to the system before the next.

    "Training Deep Nets with Sublinear Memory Cost" (Chen et al., 2016, arXiv:1604.06174).

    Raises:
        UsageError: Another kind of model.
    """
    enable = getattr(module, "activation_checkpointing_enable", None)
    if not callable(enable) or not getattr(module, "supports_gradient_checkpointing", False):
        raise UsageError(
            f"`recompute` is for models of transformers with blocks, not for {type(module).__name__}", "remove it"
        )
    enable(activation_checkpointing_kwargs={"use_reentrant": False})
    before_batch = module.register_forward_pre_hook(lambda *_: give_back())
    try:
        yield
    finally:
        before_batch.remove()
        module.activation_checkpointing_disable()  # type: ignore[operator]


def target_modules(module: nn.Module, layers: Sequence[str]) -> list[str] | str:
    """How PEFT's config names layers of a module without PEFT's own.

    The last parts of names where they mean just these layers, as most configs have them; else a pattern.
    """
    known = [name for name, _ in module.named_modules() if name]  # PEFT looks at containers too
    leaves = sorted({name.rpartition(".")[2] for name in layers})
    meant = {name for name in known if any(name == leaf or name.endswith(f".{leaf}") for leaf in leaves)}
    return leaves if meant == set(layers) else f"(?:{'|'.join(re.escape(name) for name in layers)})"


def _plain(value: Any) -> Any:
    """As JSON: sets sorted, enumerations by value."""
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Enum):
        return value.value
    return value if isinstance(value, (str, int, float, list, type(None))) else str(value)
