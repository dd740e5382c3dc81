"""The loss of a language model that learns from its teacher's view of what it writes itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.ops.distill.on_policy import continue_prompts, drawn_divergence, logits_of
from compresskit.train.task import Loss, Task


@dataclass(frozen=True)
class Writing:
    """How a student writes.

    Attributes:
        share: Of the steps that are on its own texts, 0 to 1; the others are on those of the data.
        prompt: Tokens of the data that a text begins with, 1 or more; fewer where a batch has shorter samples.
        count: Tokens that the student adds, 1 or more.
        temperature: Of the distribution that they are drawn from, above 0.
        beta: See :func:`~compresskit.ops.distill.on_policy.jensen_shannon`.
        end: The tokens that end a text.
    """

    share: float
    prompt: int
    count: int
    temperature: float
    beta: float
    end: tuple[int, ...] = ()

    def loss(self, task: Task, teacher: nn.Module) -> Loss:
        """Of a step; a module in eval mode is measured on the data's own texts.

        Args:
            task: Of a causal language model; its share is that of the teacher on texts of the data.
            teacher: Called as the student is.
        """

        def loss(module: nn.Module, part: Sequence[Tensor]) -> Tensor:
            given = task.inputs(part)
            tokens, mask = given["input_ids"], given.get("attention_mask")
            counts = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.ne(0)
            if bool((counts[:, 1:] & ~counts[:, :-1]).any()):
                raise InputError("gkd takes texts that are padded at their end only", "pad them on the right")
            own = module.training and float(torch.rand(())) < self.share
            if own:
                tokens, counts = self._written(module, tokens, counts)
            inputs = _inputs(task.names, tokens)
            with torch.no_grad():
                wanted = logits_of(task.forward(teacher, inputs))
            found = logits_of(task.forward(module, inputs))
            between = drawn_divergence(found, wanted, counts, self.beta)
            if own or task.labels != "tokens" or task.share == 1:
                return between
            return task.share * between + (1 - task.share) * task.against_labels(found, part)

        return loss

    def _written(self, module: nn.Module, tokens: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Texts that begin as those of the data, and where their own tokens are."""
        length = min(self.prompt, max(1, int(counts.sum(1).min())))
        module.eval()
        try:
            return continue_prompts(module, tokens[:, :length], self.count, temperature=self.temperature, end=self.end)
        finally:
            module.train()


def _inputs(names: Sequence[str], tokens: Tensor) -> dict[str, Tensor]:
    """What a language model takes beside its tokens, none of which is padding."""
    return {name: tokens if name == "input_ids" else torch.ones_like(tokens) for name in names}
