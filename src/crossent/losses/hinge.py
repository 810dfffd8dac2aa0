"""The multi-class hinge loss, which knows no probabilities: only which logits come too near the target's."""

from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from crossent.losses.base import LogitLoss


class Hinge(LogitLoss):
    """Σ over the other classes j of max(0, margin − logit of the target + logit of j)^p, divided by the classes.

    `torch.nn.functional.multi_margin_loss`, after Crammer and Singer, On the Algorithmic Implementation of Multiclass
    Kernel-based Vector Machines, 2001.

    Args:
        margin: above 0; by how much the target's logit has to lead.
        p: 1, or 2 for the squared hinge.
    """

    has_softmax: ClassVar[bool] = False

    def __init__(self, margin: float = 1.0, p: Literal[1, 2] = 1) -> None:
        super().__init__()
        self.margin = margin
        self.p = p

    def cost(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The cost of each row, (rows,)."""
        return F.multi_margin_loss(logits, targets, p=self.p, margin=self.margin, reduction="none")
