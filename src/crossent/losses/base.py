"""What a loss is: features, weight, bias and targets in, sums over the rows out."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Totals(NamedTuple):
    """Sums over rows, kept apart so that the means of parts can be put together exactly.

    Attributes:
        cost: scalar, the sum of the rows' weighted costs.
        weight: the sum of the rows' weights; their number where every row counts once.
    """

    cost: Tensor
    weight: Tensor | float

    @property
    def mean(self) -> Tensor:
        """The mean cost a row, a scalar: Σ weight · cost / Σ weight."""
        return self.cost / self.weight


class Loss(nn.Module, ABC):
    """A loss of a softmax classifier, given what the logits are made of rather than the logits themselves.

    So a loss may compute the logits slice by slice, or only those of its own classes, and need never hold all of
    them. Losses that are content with plain logits derive from `LogitLoss`.
    """

    def outputs(self, classes: int) -> int:
        """How many outputs the head has for so many classes: one each, unless the loss says otherwise."""
        return classes

    @abstractmethod
    def forward(self, features: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Totals:
        """Sums the costs of the rows.

        Args:
            features: (rows, features).
            weight: (outputs, features).
            bias: (outputs,), or None.
            targets: (rows,), integers from 0 to classes - 1.
        """


class LogitLoss(Loss):
    """A loss written as the cost of each row, given all its logits; autograd finds the gradient.

    A loss of your own needs one method::

        class Margin(LogitLoss):
            def cost(self, logits, targets):
                return torch.nn.functional.multi_margin_loss(logits, targets, reduction="none")
    """

    def forward(self, features: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Totals:
        """Sums the costs of the rows; see `Loss.forward`."""
        costs = self.cost(F.linear(features, weight, bias), targets)
        exact = torch.promote_types(costs.dtype, torch.float32)  # 16 bits overflow at 65,504
        return Totals(costs.sum(dtype=exact), float(len(targets)))

    @abstractmethod
    def cost(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The cost of each row, (rows,), from its logits, (rows, outputs), and target, (rows,)."""
