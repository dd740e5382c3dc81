"""Self-attention through a kernel: sums over all keys are built once, whatever the number of queries.

* ``softmax``: positive random features whose mean product is ``exp(q · k)``, in orthogonal blocks (Choromanski et al.,
  "Rethinking Attention with Performers", 2021). Left out: drawing them anew in training.
* ``elu``: ``elu(x) + 1`` in the place of the exponential (Katharopoulos et al., "Transformers are RNNs", 2020).

Weights of one query add up to 1 in both, as those of softmax do.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_TINY = 1e-30


def drawn_features(count: int, width: int, made: torch.Generator) -> Tensor:
    """Directions of random features: ``(count, width)``, float32, each distributed as ``N(0, 1)``.

    Those of each block of ``width`` are orthogonal to each other.

    Args:
        count: At least 1.
        width: Of a head.
        made: What they are drawn from.
    """
    blocks = []
    for start in range(0, count, width):
        basis, triangle = torch.linalg.qr(torch.randn(width, width, generator=made, dtype=torch.float64))
        # Only with these signs are all orthogonal matrices equally likely (Mezzadri, 2007).
        basis = basis * triangle.diagonal().sign()
        lengths = torch.randn(width, width, generator=made, dtype=torch.float64).norm(dim=1, keepdim=True)
        blocks.append((basis.T * lengths)[: count - start])
    return torch.cat(blocks).float()


def through_features(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, features: Tensor) -> Tensor:
    """An estimate of dense attention, from random features of queries and keys.

    Args:
        query: ``(n, heads, T, width)``, scaled.
        key: The same shape.
        value: The same shape.
        bias: Added to the scores of each key, ``(n, 1, 1, T)``; None: nothing.
        features: ``(count, width)``, see :func:`drawn_features`.

    Returns:
        The shape of the queries.
    """
    # Queries come divided by the root of their width; each side gets half of it.
    half = query.shape[-1] ** 0.25
    query, key = query * half, key / half
    of_keys = key @ features.T - key.square().sum(dim=-1, keepdim=True) / 2
    if bias is not None:
        of_keys = of_keys + bias.transpose(2, 3)
    # A feature's largest exponent moves from the keys to the queries: sums are at least 1, and nothing overflows.
    most = of_keys.amax(dim=2, keepdim=True)
    of_queries = query @ features.T + most
    of_queries = (of_queries - of_queries.amax(dim=3, keepdim=True)).exp()
    return _weighted(of_queries, (of_keys - most).exp(), value)


def through_elu(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Linear attention; see :func:`through_features` for what it takes."""
    query, key = F.elu(query * query.shape[-1] ** 0.5) + 1, F.elu(key) + 1
    if bias is not None:
        key = key * bias.transpose(2, 3).exp()
    return _weighted(query, key, value)


def _weighted(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Means of the values, weighted by products of nonnegative features: ``(n, heads, T, count)`` to ``(…, width)``."""
    sums = query @ key.sum(dim=2, keepdim=True).transpose(2, 3)
    return query @ (key.transpose(2, 3) @ value) / sums.clamp(min=_TINY)
