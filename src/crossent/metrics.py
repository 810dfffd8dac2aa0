"""What evaluation adds up."""

import torch
from torch import Tensor
from torchmetrics import Metric


class WeightedMean(Metric):
    """Σ weight · value / Σ weight, over all batches and ranks; NaN shows.

    torchmetrics has a MeanMetric, but up to 1.9 it either leaves NaN out or, with ``nan_strategy="disable"``, takes
    every weight for 1.
    """

    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, values: Tensor, weights: Tensor) -> None:
        """Takes in values and their weights, of one shape."""
        values, weights = (each.to(torch.promote_types(each.dtype, torch.float32)) for each in (values, weights))
        # Not in place: a run in 16 bits makes the states so, too, which are too narrow for sums.
        self.total = self.total + (values * weights).sum()
        self.weight = self.weight + weights.sum()

    def compute(self) -> Tensor:
        """The mean, a scalar; 0 where nothing has a weight."""
        return self.total / self.weight.where(self.weight != 0, 1)
