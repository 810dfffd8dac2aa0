"""The notebook's rule for two classes: one logit, a sigmoid and binary cross entropy."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from crossent.errors import UserError
from crossent.losses.base import LogitLoss


class Binary(LogitLoss):
    """softplus(d) − target · d, where d is the only output: the logit of class 1 over class 0.

    With one output an L2 penalty has the optimum of logistic regression; with two it would have another.

    Args:
        pos_weight: the costs of class 1's rows are multiplied by this, but not their share of the mean's denominator,
            as PyTorch has it; None: they count as they are.
    """

    has_softmax: ClassVar[bool] = False

    def __init__(self, pos_weight: float | None = None) -> None:
        super().__init__()
        self.pos_weight = 1.0 if pos_weight is None else pos_weight

    def outputs(self, classes: int) -> int:
        """One, for two classes.

        Raises:
            UserError: there are not two classes.
        """
        if classes != 2:
            raise UserError(f"loss=binary: made for 2 classes, the data has {classes}; use loss=cross_entropy")
        return 1

    def classes(self, outputs: int) -> int:
        """Two, for one output.

        Raises:
            ValueError: there is not one output.
        """
        if outputs != 1:
            raise ValueError(f"weight has {outputs} rows; Binary takes one output, the logit of class 1 over class 0")
        return 2

    def cost(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The cost of each row, (rows,), from one logit a row, (rows, 1)."""
        positive = targets == 1
        # binary_cross_entropy_with_logits takes the difference of two near numbers for class 0, and so loses what is
        # left of a small cost.
        costs = -F.logsigmoid(torch.where(positive, logits.squeeze(1), -logits.squeeze(1)))
        return costs if self.pos_weight == 1 else torch.where(positive, self.pos_weight * costs, costs)
