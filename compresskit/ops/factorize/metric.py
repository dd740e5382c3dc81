"""In which norm the error of a layer's weight is measured.

Plain, the error of a weight ``W`` is ``|W − Ŵ|²``. With the second moments ``H`` of the layer's inputs it is the mean
squared error of what the layer gives, ``|(W − Ŵ) H^½|²``: "SVD-LLM: Truncation-aware Singular Value Decomposition for
Large Language Model Compression" (Wang et al., 2025), with a symmetric root in the place of Cholesky's. With the second
moments ``G`` of the loss's gradients by the layer's outputs it is, to second order, what the model's output loses:
``|G^½ (W − Ŵ) H^½|²``, the Kronecker-factored Fisher matrix of "Optimizing Neural Networks with Kronecker-factored
Approximate Curvature" (Martens & Grosse, 2015) as the weight of a decomposition. "Language model compression with
weighted low-rank factorization" (Hsu et al., 2022) keeps only the sums of each row of that matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_INNER, _OUTER = 1e-4, 1e-3
"""Shares of the mean of the diagonal that are added to it."""
_TINY = 1e-12


@dataclass(frozen=True)
class Metric:
    """The norm of one layer's errors.

    Attributes:
        inner: Second moments of the inputs, float64 ``(columns, columns)``; None counts all columns alike.
        outer: Second moments of the gradients by the outputs, float64 ``(outputs, outputs)``; None for all alike.
    """

    inner: Tensor | None = None
    outer: Tensor | None = None

    def roots(self, outputs: int, columns: int) -> tuple[Root, Root]:
        """The roots of both sides: of the outputs, and of the columns."""
        return Root.of(self.outer, outputs, _OUTER), Root.of(self.inner, columns, _INNER)


@dataclass(frozen=True)
class Root:
    """The symmetric root of a matrix of second moments, and its inverse: float64, square."""

    forth: Tensor
    back: Tensor

    @classmethod
    def of(cls, moments: Tensor | None, size: int, damping: float) -> Root:
        """The root; the unit matrix for None, and for moments that are all zero."""
        eye = torch.eye(size, dtype=torch.float64)
        if moments is None or not float(level := moments.diagonal().double().mean()):
            return cls(eye, eye)
        values, vectors = torch.linalg.eigh(moments.double() + damping * level * eye)
        root = values.clamp(min=_TINY * float(values[-1])).sqrt()
        return cls((vectors * root) @ vectors.T, (vectors / root) @ vectors.T)


@dataclass(frozen=True)
class Decomposition:
    """Singular values of a matrix in a metric, with what takes it apart.

    Attributes:
        energy: Squared singular values, float64, falling.
    """

    left: Tensor
    right: Tensor
    energy: Tensor

    @classmethod
    def of(cls, matrix: Tensor, outer: Root, inner: Root) -> Decomposition:
        """Decompose ``(outputs, columns)``."""
        u, s, v = torch.linalg.svd(outer.forth @ matrix.double() @ inner.forth, full_matrices=False)
        return cls(outer.back @ (u * s), v @ inner.back, s.square())

    def pair(self, rank: int) -> tuple[Tensor, Tensor]:
        """The two factors of the nearest matrix of a rank: ``(outputs, rank)`` and ``(rank, columns)``."""
        return self.left[:, :rank], self.right[:rank]

    def tail(self, rank: int) -> float:
        """The squared error that a rank leaves: the sum of the squared singular values behind it."""
        return float(self.energy[rank:].sum())

    def share(self, rank: int) -> float:
        """The same as a share of all."""
        total = float(self.energy.sum())
        return self.tail(rank) / total if total else 0.0
