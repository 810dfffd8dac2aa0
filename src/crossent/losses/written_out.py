"""Two of the notebook's three ways of writing the cross entropy of a softmax, as they stand there.

The third is `crossent.losses.row_losses.CrossEntropy`. All agree; only the one written by hand can break.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from crossent.losses.base import LogitLoss


class OneHot(LogitLoss):
    """Σ_c 1[c = target] · −log(softmax(logits))_c, written by hand as in the notebook.

    The softmax underflows where logits lie far apart: in float32 the gradient is NaN from a gap of 88.75 on.
    """

    def cost(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The cost of each row, (rows,)."""
        one_hot = torch.zeros_like(logits).scatter_(1, targets.unsqueeze(1), 1)
        return (one_hot * -torch.log(F.softmax(logits, dim=1))).sum(dim=1)


class NegativeLogLikelihood(LogitLoss):
    """``nll_loss(log_softmax(logits))``: the logarithm taken inside the softmax, so nothing underflows."""

    def cost(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The cost of each row, (rows,)."""
        return F.nll_loss(F.log_softmax(logits, dim=1), targets, reduction="none")
