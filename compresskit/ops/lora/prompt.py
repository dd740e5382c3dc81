"""Prompt tuning: trained vectors before the embedded text of a transformers model, all weights as they are.

"The Power of Scale for Parameter-Efficient Prompt Tuning" (Lester et al., 2021, arXiv:2104.08691), beginning with the
embeddings of some tokens of the vocabulary. Outputs at the prompt's own positions are cut off, so the model goes on
giving one row a token; what pools the first token (BERT's pooler) sees the prompt's first vector, as in PEFT.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.facts.lora import PromptFacts

NAME = "prompt_embeddings"
_MOST = 1024


class Prompted(nn.Module):
    """A transformers model's second class, put before its own."""

    prompt_embeddings: nn.Parameter

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **others: Any,
    ) -> Any:
        """As the model, with the prompt before the text.

        Args:
            input_ids: int64 ``(n, length)``.
            attention_mask: ``(n, length)``.
            token_type_ids: ``(n, length)``, where the model takes them.
            others: What the model takes besides.
        """
        count, size = self.prompt_embeddings.shape[0], input_ids.shape[0]
        text = self.get_input_embeddings()(input_ids)  # type: ignore[operator]
        prompt = self.prompt_embeddings.to(text.dtype).unsqueeze(0).expand(size, -1, -1)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mask = torch.cat([mask.new_ones(size, count), mask], 1)
        if token_type_ids is not None:
            others["token_type_ids"] = torch.cat([token_type_ids.new_zeros(size, count), token_type_ids], 1)
        found = super().forward(inputs_embeds=torch.cat([prompt, text], 1), attention_mask=mask, **others)
        for key in ("last_hidden_state", "logits"):
            value = found.get(key) if hasattr(found, "get") else None
            if value is not None and value.dim() == 3:
                found[key] = value[:, count:]
        return found


@cache
def _prompted_class(kind: Any) -> Any:
    return type(f"Prompted{kind.__name__}", (Prompted, kind), {})


def check_text_model(module: nn.Module) -> None:
    """Refuse what takes no prompt.

    Raises:
        InputError: Not a transformers model of text, or one with a decoder of its own.
    """
    config: Any = getattr(module, "config", None)
    embeddings = getattr(module, "get_input_embeddings", None)
    if config is None or not callable(embeddings) or getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"prompt tuning is for text models of transformers, not for {type(module).__name__}",
            "take `method` lora",
        )


def add_prompt(module: nn.Module, values: Tensor) -> None:
    """Put a prompt before a model's text, in place; only it takes gradients then.

    Args:
        module: A text model of transformers.
        values: ``(tokens, width)``.

    Raises:
        InputError: The model takes no prompt, or one of another width.
    """
    _check_fits(module, list(values.shape))
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    own: Any = type(module)
    module.__class__ = _prompted_class(own)
    module.prompt_embeddings = nn.Parameter(values)


def _check_fits(module: nn.Module, shape: list[int]) -> None:
    check_text_model(module)
    width = module.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
    if shape[1:] != [width]:
        raise InputError(f"the prompt is {shape}, the model's embeddings are {width} wide")


def remove_prompt(module: nn.Module) -> Tensor:
    """Take the prompt off again, in place; gives it."""
    values = module.get_parameter(NAME).detach().cpu().clone()
    module.__class__ = type(module).__bases__[1]
    del module._parameters[NAME]
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    return values


def replay(module: nn.Module, facts: PromptFacts) -> None:
    """Put an empty prompt before the text of a freshly built model; its values are loaded afterwards.

    Raises:
        InputError: The model takes no prompt of this shape.
    """
    if facts.prompt[0] > _MOST:
        raise InputError(f"a prompt of {facts.prompt[0]} tokens is none that this program wrote")
    _check_fits(module, facts.prompt)
    add_prompt(module, torch.empty(facts.prompt))


def is_prompted(module: nn.Module) -> bool:
    """True where there is a prompt."""
    return isinstance(module, Prompted)


def first_prompt(module: nn.Module, count: int, seed: int) -> Tensor:
    """Embeddings of random tokens, ``(count, width)``.

    Raises:
        InputError: The model takes no prompt, or has fewer positions.
    """
    check_text_model(module)
    most = getattr(module.config, "max_position_embeddings", None)
    if isinstance(most, int) and count >= most:
        raise InputError(f"a prompt of {count} tokens leaves no room in the model's {most} positions")
    weight: Tensor = module.get_input_embeddings().weight.detach()  # type: ignore[operator]
    rows = torch.randint(weight.shape[0], (count,), generator=torch.Generator().manual_seed(seed))
    return weight[rows].float().clone()


def prompt_config(module: nn.Module, count: int, base: str) -> dict[str, Any]:
    """The prompt's ``adapter_config.json``."""
    config: Any = module.config
    text = config.get_text_config()
    width = int(module.get_input_embeddings().weight.shape[1])  # type: ignore[operator]
    name = type(module).__bases__[1].__name__ if is_prompted(module) else type(module).__name__
    tasks = {"ForCausalLM": "CAUSAL_LM", "ForSequenceClassification": "SEQ_CLS"}
    task = next((value for end, value in tasks.items() if name.endswith(end)), "FEATURE_EXTRACTION")
    return {
        "peft_type": "PROMPT_TUNING", "task_type": task, "base_model_name_or_path": base, "inference_mode": True,
        "num_virtual_tokens": count, "token_dim": width, "num_transformer_submodules": 1,
        "num_attention_heads": int(text.num_attention_heads), "num_layers": int(text.num_hidden_layers),
        "prompt_tuning_init": "RANDOM",
    }  # fmt: skip
