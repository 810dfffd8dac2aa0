"""Conjugate gradients: solves a Newton step by products with the Hessian alone."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from crossent.solvers.preconditioners import Preconditioner

_RARELY = 16  # of that many iterations, after the last of which eigenvalues are worth their time


class Solved(NamedTuple):
    """What conjugate gradients have found.

    Attributes:
        direction: (outputs, columns).
        residual: of Newton's equation there, (outputs, columns).
        steps: products with the Hessian that it took.
        first: ⟨gradient, precondition(gradient)⟩.
        decrease: of the quadratic model.
        lanczos: tells about the eigenvalues of the preconditioned H.
    """

    direction: Tensor
    residual: Tensor
    steps: int
    first: float
    decrease: float
    lanczos: "Lanczos"


class Progress(NamedTuple):
    """How far conjugate gradients are.

    Attributes:
        residual: (outputs · columns,).
        size: ⟨residual, precondition(residual)⟩.
        first: the same in the beginning.
        decrease: of the quadratic model so far.
        lanczos: tells about the eigenvalues of the preconditioned H.
    """

    residual: Tensor
    size: float
    first: float
    decrease: float
    lanczos: "Lanczos"


def solve(
    product: Callable[[Tensor], Tensor],
    gradient: Tensor,
    moved: Tensor,
    precondition: Preconditioner,
    enough: Callable[[Progress], bool],
    most: int,
) -> Solved:
    """Minimises ⟨gradient, d⟩ + ⟨d, H d⟩ / 2 by preconditioned conjugate gradients from d = 0.

    Hestenes and Stiefel, Methods of conjugate gradients for solving linear systems, 1952.

    Args:
        product: H times a direction.
        gradient: (outputs, columns).
        moved: precondition(gradient).
        precondition: about H's inverse times a residual.
        enough: whether to stop.
        most: iterations.
    """
    shape = gradient.shape
    residual, moved = gradient.clone().view(-1), moved.reshape(-1)
    direction, along = torch.zeros_like(residual), -moved
    size = first = torch.dot(residual, moved).item()
    steps, decrease = 0, 0.0
    lanczos = Lanczos()
    while steps < most and size > 0:
        bent = product(along.view(shape)).view(-1)
        steps += 1
        curvature = torch.dot(along, bent).item()
        if not curvature > 0:  # rounding, where nothing is left to gain
            break
        length = size / curvature
        direction.add_(along, alpha=length)
        residual.add_(bent, alpha=length)
        decrease += length * size / 2
        moved = precondition(residual.view(shape)).view(-1)
        before, size = size, torch.dot(residual, moved).item()
        lanczos.add(length, size / before)
        if enough(Progress(residual, size, first, decrease, lanczos)):
            break
        along = torch.sub(along.mul_(size / before), moved)
    return Solved(direction.view(shape), residual.view(shape), steps, first, decrease, lanczos)


class Lanczos:
    """The matrix of which conjugate gradients take the Cholesky factor as they go: its eigenvalues are Ritz values.

    Golub and Van Loan, Matrix Computations, 2013, section 11.3.
    """

    def __init__(self) -> None:
        self._lengths: list[float] = []
        self._ratios: list[float] = []

    def add(self, length: float, ratio: float) -> None:
        """Takes in an iteration: the length of its step, and by what the residual's size has changed."""
        self._lengths.append(length)
        self._ratios.append(ratio)

    @property
    def is_due(self) -> bool:
        """Whether eigenvalues may be asked for, which take the time of many iterations once there are hundreds."""
        count = len(self._lengths)
        return count % max(1, count // _RARELY) == 0

    @property
    def smallest(self) -> float:
        """The smallest Ritz value, which is above the smallest eigenvalue; infinite before the first iteration."""
        if not self._lengths:
            return math.inf
        lengths, ratios = np.array(self._lengths), np.array(self._ratios)
        with np.errstate(all="ignore"):
            carried = np.concatenate([[0.0], ratios[:-1] / lengths[:-1]])
            beside = np.sqrt(ratios[:-1]) / lengths[:-1]
            matrix = np.diag(1 / lengths + carried) + np.diag(beside, 1) + np.diag(beside, -1)
        return float(np.linalg.eigvalsh(matrix)[0]) if np.isfinite(matrix).all() else math.inf

    def remainder(self, lowest: float) -> float:
        """What the residual's size is to be multiplied by for a bound on ⟨r, H⁻¹ r⟩.

        By the quadrature of Gauss and Radau: Meurant and Tichý, On computing quadrature-based bounds for the A-norm of
        the error in conjugate gradients, 2013, section 3.

        Args:
            lowest: above 0, and no more than the smallest eigenvalue.
        """
        found = 1 / lowest
        for length, ratio in zip(self._lengths, self._ratios, strict=True):
            beyond = max(found - length, 0.0)
            found = beyond / (lowest * beyond + ratio) if beyond + ratio > 0 else 0.0
        return min(found, 1 / lowest)
