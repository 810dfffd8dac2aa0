"""What a solver knows of the objective at some weights."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Evaluation:
    """The objective at some weights.

    Attributes:
        at: the weights, (outputs, columns), in double precision.
        cost: the mean cost of a row.
        penalty: λ/2 ‖weights‖².
        gradient: of both together, (outputs, columns), in double precision.
        states: what tells how the rows' costs bend there, part by part; None: it was not kept.
        smallest: of what the costs' `level` goes by.
        raised: the mean of what the smooth costs of rows, which steps go by, have above these; 0 if there are no kinks.
        slack: the mean of what the smooth costs' slopes leave of Fenchel's inequality, which no certificate is below.
        smallest_lead: of a target's output over another class's, over all rows; NaN where it does not matter.
        is_rough: whether it is good for a step only from which the optimum is still far.
    """

    at: Tensor
    cost: float
    penalty: float
    gradient: Tensor
    states: list[Tensor] | None
    smallest: float
    smallest_lead: float
    raised: float = 0.0
    slack: float = 0.0
    is_rough: bool = False

    @property
    def value(self) -> float:
        """What is minimised."""
        return self.cost + self.penalty

    @property
    def smooth(self) -> float:
        """What steps go by, whose gradient and Hessian are known: the same where there are no kinks."""
        return self.cost + self.penalty + self.raised


def dot(one: Tensor, other: Tensor) -> float:
    """The inner product of two tensors in a precision and shape."""
    return float(torch.dot(one.reshape(-1), other.reshape(-1)))
