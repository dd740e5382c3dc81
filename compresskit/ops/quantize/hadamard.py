"""Orthogonal matrices that spread outliers over all columns: randomized Hadamard matrices, or random ones.

A Hadamard matrix is made as a product of Sylvester's doubling and Paley's constructions (1933), which reach nearly all
widths of language models; random signs in front of it make it a different one for each seed. Where no construction
reaches a width, the orthogonal factor of a Gaussian matrix is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

_DOUBLED = 64
"""Largest power of two that is one factor: a product of small factors takes fewer operations than their matrix."""
_PIECE = 1 << 22
"""Numbers that are turned at once in float64."""


@dataclass(frozen=True)
class Rotation:
    """An orthogonal matrix: signs, then the Kronecker product of its factors.

    Attributes:
        signs: float64 ``(size,)``, each 1 or -1.
        factors: Orthogonal float64 matrices; the product of their sizes is ``size``.
        is_hadamard: All entries have one magnitude.
    """

    signs: Tensor
    factors: tuple[Tensor, ...]
    is_hadamard: bool

    @classmethod
    def of(cls, size: int, generator: torch.Generator) -> Rotation:
        """A random one: a Hadamard matrix where a construction is known for the size.

        Args:
            size: Rows and columns, at least 1.
            generator: Gives the signs, or the matrix.
        """
        signs = torch.randint(2, (size,), generator=generator).double() * 2 - 1
        factors = _hadamard_factors(size)
        if factors is not None:
            return cls(signs, factors, True)
        matrix, upper = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
        return cls(signs, (matrix * upper.diagonal().sign(),), False)

    @property
    def size(self) -> int:
        """Rows and columns."""
        return len(self.signs)

    def turn(self, x: Tensor, axis: int) -> Tensor:
        """Multiply the rows along an axis by the matrix.

        Args:
            x: Floating point; ``axis`` has a multiple of ``size`` entries, which are turned in runs of that many.
            axis: Which one.

        Returns:
            A new tensor of the same shape and dtype; products are taken in float64.
        """
        rows = x.detach().movedim(axis, -1)
        found = torch.empty(rows.shape, dtype=x.dtype)
        flat = found.view(-1, rows.shape[-1])
        given, step = rows.reshape(flat.shape), max(1, _PIECE // rows.shape[-1])
        for start in range(0, len(flat), step):
            part = given[start : start + step].double()
            flat[start : start + step] = self._turned(part.reshape(-1, self.size)).reshape(part.shape)
        return found.movedim(-1, axis).contiguous()

    def _turned(self, rows: Tensor) -> Tensor:
        found = rows * self.signs
        before = accumulate((len(factor) for factor in self.factors), int.__mul__, initial=1)
        for left, factor in zip(before, self.factors, strict=False):
            found = torch.einsum("nlfr,fg->nlgr", found.reshape(len(rows), left, len(factor), -1), factor)
        return found.reshape(rows.shape)


def _hadamard_factors(size: int) -> tuple[Tensor, ...] | None:
    """Factors of an orthogonal Hadamard matrix; None where no construction is known."""
    twos = (size & -size).bit_length() - 1
    for doublings in range(twos, -1, -1):
        base = _paley(size >> doublings)
        if base is not None:
            return tuple(factor / math.sqrt(len(factor)) for factor in (base, *_sylvester(doublings)))
    return None


def _sylvester(doublings: int) -> list[Tensor]:
    """Hadamard matrices whose product has the size ``2 ** doublings``."""
    matrix, most = torch.ones(1, 1, dtype=torch.float64), _DOUBLED.bit_length() - 1
    for _ in range(min(doublings, most)):
        matrix = torch.kron(matrix, torch.tensor([[1, 1], [1, -1]], dtype=torch.float64))
    return [matrix, *(_sylvester(doublings - most) if doublings > most else [])]


def _paley(size: int) -> Tensor | None:
    """A Hadamard matrix by Paley's first or second construction over a prime field; None where neither has the size."""
    one = torch.ones(1, 1, dtype=torch.float64)
    if size == 1:
        return one
    if _is_prime(size - 1) and size % 4 == 0:
        core, row = _residues(size - 1), one.expand(1, size - 1)
        return torch.eye(size, dtype=torch.float64) + torch.cat(
            [torch.cat([0 * one, row], 1), torch.cat([-row.T, core], 1)]
        )
    half = size // 2
    if size % 4 or not _is_prime(half - 1) or half % 4 != 2:
        return None
    core, row = _residues(half - 1), one.expand(1, half - 1)
    conference = torch.cat([torch.cat([0 * one, row], 1), torch.cat([row.T, core], 1)])
    on, off = (torch.tensor(m, dtype=torch.float64) for m in ([[1, 1], [1, -1]], [[1, -1], [-1, -1]]))
    return torch.kron(conference, on) + torch.kron(torch.eye(half, dtype=torch.float64), off)


def _residues(prime: int) -> Tensor:
    """1 where the difference of row and column is a square modulo the prime, else -1; 0 on the diagonal."""
    squares = {n * n % prime for n in range(1, prime)}
    signs = torch.tensor([0, *(1 if n in squares else -1 for n in range(1, prime))], dtype=torch.float64)
    index = torch.arange(prime)
    return signs[(index[:, None] - index) % prime]


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1))
