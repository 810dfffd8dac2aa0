"""Costs by the margins of a squared hinge."""

import math

import torch
from torch import Tensor

from crossent.losses.convex.base import Cast, ConvexCosts, Which, smallest_lead


class SquaredHingeCosts(ConvexCosts):
    """weight_i · Σ over the other classes j of max(0, margin − z_target + z_j)² / classes.

    Bends as far as margins are violated, and not at all elsewhere.

    Args:
        targets: (rows,), int64.
        weights: (rows,), of the costs.
        margin: above 0.
        classes: how many.
        total: the sum of the rows' weights.
    """

    is_unbounded = False
    has_gauge = True

    def __init__(self, targets: Tensor, weights: Tensor, margin: float, classes: int, total: float) -> None:
        self.outputs = self.states = classes
        self.total = total
        self._targets = targets.unsqueeze(0)
        self._margin = margin
        self._doubled = Cast(weights * 2 / classes)
        self.lightest = float(weights.min()) if len(weights) else 1.0
        self.masses = torch.zeros(classes, dtype=torch.float64, device=targets.device).index_add_(0, targets, weights)

    def visit(self, outputs: Tensor, rows: Which, state: Tensor) -> tuple[Tensor, float]:
        targets, doubled = self._targets[:, rows], self._doubled.like(outputs)[rows]
        torch.sub(outputs, outputs.gather(0, targets) - self._margin, out=state)
        smallest = float(state.amin()) if state.numel() else 0.0
        state.scatter_(0, targets, -torch.inf)  # the target is no other class
        torch.clamp(state, min=0, out=outputs)
        costs = (outputs.square().sum(0) * doubled).sum(dtype=torch.float64) / 2
        outputs.mul_(doubled)
        outputs.scatter_add_(0, targets, -outputs.sum(0, keepdim=True))
        return costs, smallest

    def bend(self, directions: Tensor, rows: Which, state: Tensor) -> None:
        targets = self._targets[:, rows]
        directions.sub_(directions.gather(0, targets)).mul_(state > 0)
        directions.mul_(self._doubled.like(directions)[rows])
        directions.scatter_add_(0, targets, -directions.sum(0, keepdim=True))

    def second_derivatives(self, rows: Which, state: Tensor) -> Tensor:
        found = (state > 0).to(state.dtype).mul_(self._doubled.like(state)[rows])
        return found.scatter_add_(0, self._targets[:, rows], found.sum(0, keepdim=True))

    def hessians(self, rows: Which, state: Tensor) -> Tensor:
        found = state.new_zeros(self.outputs, self.outputs, state.shape[1])
        for output in range(self.outputs):
            found[output, output] = 1
            self.bend(found[output], rows, state)
        return found

    def aim(self, directions: Tensor, rows: Which, state: Tensor) -> Tensor:
        targets, doubled = self._targets[:, rows], self._doubled.like(state)[rows]
        moved = state + (directions - directions.gather(0, targets))
        aimed = moved.clamp(min=0).masked_fill_(state <= 0, 0)  # where no margin is violated, the slope stays 0
        left = moved.clamp_(min=0).sub_(aimed).square_().sum(0).mul_(doubled).sum(dtype=torch.float64) / 2
        torch.sub(aimed, state.clamp(min=0), out=directions).mul_(doubled)
        directions.scatter_add_(0, targets, -directions.sum(0, keepdim=True))
        return left

    def hessian_sum(self, rows: Which, state: Tensor) -> Tensor:
        active = (state > 0).to(state.dtype).mul_(self._doubled.like(state)[rows])
        crossed = state.new_zeros(self.outputs, self.outputs).index_add_(1, self._targets[0, rows], -active)
        found = crossed + crossed.t()
        found.diagonal().add_(self.second_derivatives(rows, state).sum(1))
        return found

    def level(self, slopes: Tensor, smallest: float) -> tuple[float, float]:
        # Slopes are 0 or more, so rows of classes whose mean is too large can take on more towards those of which it is
        # too small, all rows of a class as much.
        if bool((self.masses[slopes > 0] == 0).any()):
            return math.inf, math.inf
        missing = float(slopes.abs().sum())
        square = self.outputs * missing**2 * self.total / (4 * self.lightest)
        return missing / 2 * max(0.0, -smallest) + square, missing

    def leads(self, outputs: Tensor, rows: Which) -> Tensor:
        return smallest_lead(outputs, self._targets[:, rows])
