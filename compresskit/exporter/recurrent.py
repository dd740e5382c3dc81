"""Recurrent layers to ONNX: GRU, LSTM and RNN emit ONNX's own operator instead of being unrolled step by step.

An unrolled layer fixes the sequence length, grows the graph with it and is slow.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# ONNX's order of gates, as indices into torch's: GRU z r n from r z n, LSTM i o f g from i f g o.
_ORDER = {"GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2), "RNN_TANH": (0,), "RNN_RELU": (0,)}
_OP = {"GRU": "GRU", "LSTM": "LSTM", "RNN_TANH": "RNN", "RNN_RELU": "RNN"}


def recurrent_twin(layer: nn.Module) -> nn.Module | None:
    """A twin that emits ONNX's operator; None for any other layer and for LSTMs with a projection."""
    if type(layer) in (nn.GRU, nn.LSTM, nn.RNN) and isinstance(layer, nn.RNNBase) and not layer.proj_size:
        return Recurrent(layer)
    return None


def _reordered(tensor: Tensor, mode: str) -> Tensor:
    """The gates along the first axis in ONNX's order."""
    gates = tensor.detach().chunk(len(_ORDER[mode]))
    return torch.cat([gates[i] for i in _ORDER[mode]])


class Recurrent(nn.Module):
    """The layer's weights in ONNX's order, and a forward that emits one operator a layer."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.mode, self.num_layers, self.hidden_size = layer.mode, layer.num_layers, layer.hidden_size
        self.batch_first, self.directions = layer.batch_first, 2 if layer.bidirectional else 1
        for index in range(layer.num_layers):
            for kind in ("weight_ih", "weight_hh", "bias"):
                self.register_buffer(f"{kind}_l{index}", self._stacked(layer, kind, index))

    def _stacked(self, layer: nn.RNNBase, kind: str, index: int) -> Tensor:
        """One tensor of all directions: W ``(dirs, gates·hidden, in)``, R likewise, B ``(dirs, 2·gates·hidden)``."""
        out = []
        for suffix in ("", "_reverse")[: self.directions]:
            if kind != "bias":
                out.append(_reordered(getattr(layer, f"{kind}_l{index}{suffix}"), self.mode))
            elif layer.bias:
                pair = [getattr(layer, f"bias_{p}_l{index}{suffix}") for p in ("ih", "hh")]
                out.append(torch.cat([_reordered(b, self.mode) for b in pair]))
            else:
                weight = getattr(layer, f"weight_hh_l{index}{suffix}")
                out.append(weight.new_zeros(2 * weight.shape[0]))
        return torch.stack(out)

    def flatten_parameters(self) -> None:
        """Nothing to do; models call it."""

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """As the torch layer's: ``(output, h)`` or ``(output, (h, c))``; input batched or not."""
        batched = x.dim() == 3
        if not batched:
            x = x.unsqueeze(1)
            state = _map(state, lambda s: s.unsqueeze(1))
        elif self.batch_first:
            x = x.transpose(0, 1)
        finals = []
        for index in range(self.num_layers):
            x, *final = self._layer(x, index, state)
            finals.append(final)
        joined = [torch.cat(parts) for parts in zip(*finals, strict=True)]
        if not batched:
            x, joined = x.squeeze(1), [j.squeeze(1) for j in joined]
        elif self.batch_first:
            x = x.transpose(0, 1)
        return x, tuple(joined) if self.mode == "LSTM" else joined[0]

    def _layer(self, x: Tensor, index: int, state: Any) -> list[Tensor]:
        """One layer: ``(sequence, batch, in)`` to ``(sequence, batch, dirs·hidden)`` and the final states."""
        rows = slice(index * self.directions, (index + 1) * self.directions)
        given = () if state is None else state if isinstance(state, (tuple, list)) else (state,)
        states = [s[rows] for s in given]
        weights = [getattr(self, f"{kind}_l{index}") for kind in ("weight_ih", "weight_hh", "bias")]
        attributes: dict[str, Any] = {"hidden_size": self.hidden_size}
        if self.directions == 2:
            attributes["direction"] = "bidirectional"
        if self.mode == "GRU":
            attributes["linear_before_reset"] = 1
        if self.mode == "RNN_RELU":
            attributes["activations"] = ["Relu"] * self.directions
        steps, batch = x.shape[0], x.shape[1]
        final = (self.directions, batch, self.hidden_size)
        shapes = [(steps, *final), final, final][: 3 if self.mode == "LSTM" else 2]
        out = torch.onnx.ops.symbolic_multi_out(
            _OP[self.mode],
            [x, *weights, None, *states],
            attributes,
            dtypes=[x.dtype] * len(shapes),
            shapes=shapes,
        )
        y = out[0].permute(0, 2, 1, 3).reshape(steps, batch, self.directions * self.hidden_size)
        return [y, *out[1:]]


def _map(state: Any, change: Any) -> Any:
    if state is None:
        return None
    return tuple(change(s) for s in state) if isinstance(state, (tuple, list)) else change(state)
