"""Costs by the margins of a squared hinge."""

import math

import torch
from torch import Tensor

from crossent.losses.convex.base import ConvexCosts, OfRows, Which, smallest_lead


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
        self._targets = OfRows(targets.unsqueeze(0))
        self._margin = margin
        self._doubled = OfRows(weights * 2 / classes)
        self.lightest = float(weights.min()) if len(weights) else 1.0
        self.masses = torch.zeros(classes, dtype=torch.float64, device=targets.device).index_add_(0, targets, weights)

    def visit(self, outputs: Tensor, rows: Which, state: Tensor) -> tuple[Tensor, float]:
        targets, doubled = self._targets.of(rows), self._doubled.of(rows, outputs)
        torch.sub(outputs, outputs.gather(0, targets) - self._margin, out=state)
        smallest = float(state.amin()) if state.numel() else 0.0
        state.scatter_(0, targets, -torch.inf)  # the target is no other class
        torch.clamp(state, min=0, out=outputs)
        costs = (outputs.square().sum(0) * self._doubled.of(rows)).sum() / 2
        outputs.mul_(doubled)
        outputs.scatter_add_(0, targets, -outputs.sum(0, keepdim=True))
        return costs, smallest

    def bend(self, directions: Tensor, rows: Which, state: Tensor) -> None:
        targets = self._targets.of(rows)
        directions.sub_(directions.gather(0, targets)).mul_(state > 0)
        directions.mul_(self._doubled.of(rows, directions))
        directions.scatter_add_(0, targets, -directions.sum(0, keepdim=True))

    def second_derivatives(self, rows: Which, state: Tensor) -> Tensor:
        found = (state > 0).to(state.dtype).mul_(self._doubled.of(rows, state))
        return found.scatter_add_(0, self._targets.of(rows), found.sum(0, keepdim=True))

    def hessians(self, rows: Which, state: Tensor) -> Tensor:
        found = state.new_zeros(self.outputs, self.outputs, state.shape[1])
        for output in range(self.outputs):
            found[output, output] = 1
            self.bend(found[output], rows, state)
        return found

    def aim(self, rows: Which, state: Tensor, there: Tensor, lift: Tensor) -> tuple[Tensor, Tensor]:
        targets, doubled = self._targets.of(rows), self._doubled.of(rows, state)
        moved = there + (lift.unsqueeze(1) - lift[targets])
        aimed = moved.clamp_(min=0).masked_fill_(state <= 0, 0)  # where no margin is violated, the slope stays 0
        missed = torch.where(aimed > 0, there, 0).clamp_(max=0).mul_(aimed)  # of margins that the step has met
        left = (there.clamp(min=0) - aimed).square_().div_(2).sub_(missed).sum(0).mul_(doubled).sum(dtype=torch.float64)
        changed = aimed.sub_(state.clamp(min=0)).mul_(doubled)
        return changed.scatter_add_(0, targets, -changed.sum(0, keepdim=True)), left

    def hessian_sum(self, rows: Which, state: Tensor) -> Tensor:
        active = (state > 0).to(state.dtype).mul_(self._doubled.of(rows, state))
        crossed = state.new_zeros(self.outputs, self.outputs).index_add_(1, self._targets.of(rows).squeeze(0), -active)
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
        return smallest_lead(outputs, self._targets.of(rows))
