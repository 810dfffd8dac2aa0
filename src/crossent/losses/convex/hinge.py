"""Costs by how far margins are violated: of a hinge, whose kinks are rounded off, and of a squared one."""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from crossent.losses.convex.base import ConvexCosts, OfRows, Visited, Which, smallest_lead

# In the place of a target, which is no other class: far on the right side, with a cube that single precision holds.
_TARGET = -1e12


class MarginCosts(ConvexCosts):
    """weight_i · Σ over the other classes j of h(margin − z_target + z_j) / classes, for a convex h.

    A state is the violations that h is of, (classes, rows).

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
        self.enough = margin
        self._weights = OfRows(weights / classes)
        self.lightest = float(weights.min()) if len(weights) else 1.0
        self.masses = torch.zeros(classes, dtype=torch.float64, device=targets.device).index_add_(0, targets, weights)

    @abstractmethod
    def _costs(self, violations: Tensor) -> Tensor:
        """H of each."""

    @abstractmethod
    def _slopes(self, violations: Tensor) -> Tensor:
        """H' of each."""

    @abstractmethod
    def _bends(self, violations: Tensor) -> Tensor:
        """H'' of each."""

    @abstractmethod
    def _aimed(self, violations: Tensor, moved: Tensor) -> Tensor:
        """H' + h'' · (moved − violations), or the nearest slope that the conjugate allows."""

    @abstractmethod
    def _left(self, slopes: Tensor, there: Tensor) -> Tensor:
        """What slopes leave of Fenchel's inequality at some violations."""

    def _smoothed(self, violations: Tensor) -> tuple[Tensor, Tensor]:
        """By how much more h is than what it stands for, and what its slopes leave of that one's inequality."""
        raise NotImplementedError

    def visit(self, outputs: Tensor, rows: Which, state: Tensor) -> Visited:
        targets, weights = self._targets.of(rows), self._weights.of(rows)
        torch.sub(outputs, outputs.gather(0, targets) - self.enough, out=state)
        largest = float(torch.linalg.vector_norm(state, torch.inf)) if state.numel() else 0.0
        state.scatter_(0, targets, _TARGET)
        cost = torch.dot(self._costs(state).sum(0).to(weights.dtype), weights)
        raised = slack = 0.0
        if self.smoothing:
            raised, slack = (float(torch.dot(each.sum(0).to(weights.dtype), weights)) for each in self._smoothed(state))
        torch.mul(self._slopes(state), self._weights.of(rows, outputs), out=outputs)
        outputs.scatter_add_(0, targets, -outputs.sum(0, keepdim=True))
        return Visited(cost, -largest, raised, slack)

    def bend(self, directions: Tensor, rows: Which, state: Tensor) -> None:
        targets = self._targets.of(rows)
        directions.sub_(directions.gather(0, targets)).mul_(self._bends(state))
        directions.mul_(self._weights.of(rows, directions))
        directions.scatter_add_(0, targets, -directions.sum(0, keepdim=True))

    def second_derivatives(self, rows: Which, state: Tensor) -> Tensor:
        found = self._bends(state).mul_(self._weights.of(rows, state))
        return found.scatter_add_(0, self._targets.of(rows), found.sum(0, keepdim=True))

    def hessians(self, rows: Which, state: Tensor) -> Tensor:
        found = state.new_zeros(self.outputs, self.outputs, state.shape[1])
        for output in range(self.outputs):
            found[output, output] = 1
            self.bend(found[output], rows, state)
        return found

    def hessian_sum(self, rows: Which, state: Tensor) -> Tensor:
        bends = self._bends(state).mul_(self._weights.of(rows, state))
        crossed = state.new_zeros(self.outputs, self.outputs).index_add_(1, self._targets.of(rows).squeeze(0), -bends)
        found = crossed + crossed.t()
        found.diagonal().add_(self.second_derivatives(rows, state).sum(1))
        return found

    def aim(self, rows: Which, state: Tensor, there: Tensor, lift: Tensor) -> tuple[Tensor, Tensor]:
        targets, weights = self._targets.of(rows), self._weights.of(rows, state)
        aimed = self._aimed(state, there + (lift.unsqueeze(1) - lift[targets]))
        left = self._left(aimed, there).sum(0).mul_(weights).sum(dtype=torch.float64)
        changed = aimed.sub_(self._slopes(state)).mul_(weights)
        return changed.scatter_add_(0, targets, -changed.sum(0, keepdim=True)), left

    def leads(self, outputs: Tensor, rows: Which) -> Tensor:
        return smallest_lead(outputs, self._targets.of(rows))


class HingeCosts(MarginCosts):
    """Those of max(0, u), in the place of which (u + √(u² + 4μ²)) / 2 is minimised, for a smoothing μ that may be set.

    That is smooth, so that Newton's steps lead far; it is above the hinge by at most μ, and by next to nothing away
    from the kink: Chen and Harker, A non-interior-point continuation method for linear complementarity problems, 1993.
    Its slopes lie between 0 and 1, where the conjugate of the hinge itself is 0.
    """

    def __init__(self, targets: Tensor, weights: Tensor, margin: float, classes: int, total: float) -> None:
        super().__init__(targets, weights, margin, classes, total)
        self.smoothing = margin  # where all violations begin

    def _size(self, violations: Tensor) -> Tensor:
        return violations.square().add_(4 * self.smoothing**2).sqrt_()

    def _costs(self, violations: Tensor) -> Tensor:
        return violations.clamp(min=0)

    def _slopes(self, violations: Tensor) -> Tensor:
        return torch.div(violations, self._size(violations)).add_(1).div_(2)

    def _bends(self, violations: Tensor) -> Tensor:
        return self._size(violations).pow_(-3).mul_(2 * self.smoothing**2)

    def _aimed(self, violations: Tensor, moved: Tensor) -> Tensor:
        bends = self._bends(violations)
        return self._slopes(violations).addcmul_(bends, moved.sub_(violations)).clamp_(0, 1)

    def _left(self, slopes: Tensor, there: Tensor) -> Tensor:
        return torch.where(there > 0, 1 - slopes, -slopes).mul_(there)

    def _smoothed(self, violations: Tensor) -> tuple[Tensor, Tensor]:
        raised = (self._size(violations) + violations.abs()).reciprocal_().mul_(2 * self.smoothing**2)
        return raised, self._left(self._slopes(violations), violations)

    def level(self, slopes: Tensor, smallest: float) -> tuple[float, float]:
        # Mixed with slopes that are the same for all rows of a class: those of classes whose mean is too large, towards
        # those of which it is too small, in proportion to both. A hinge leaves no more of any slopes than |violation|.
        above, below = slopes.clamp(min=0), slopes.clamp(max=0).neg_()
        if not (above.any() and below.any()):
            return 0.0, 0.0
        wanted = self.outputs * torch.outer(above, below) / above.sum()  # Σ by the target and by the other class
        ratio = float((wanted.amax(1) / (self.masses / self.total)).nan_to_num(nan=0.0).max())
        share = ratio / (1 + ratio) if math.isfinite(ratio) else 1.0
        return (share * -smallest, 2 * share) if share < 1 else (math.inf, math.inf)


class SquaredHingeCosts(MarginCosts):
    """Those of max(0, u)²: bend as far as margins are violated, and not at all elsewhere."""

    def _costs(self, violations: Tensor) -> Tensor:
        return violations.clamp(min=0).square_()

    def _slopes(self, violations: Tensor) -> Tensor:
        return violations.clamp(min=0).mul_(2)

    def _bends(self, violations: Tensor) -> Tensor:
        return (violations > 0).to(violations.dtype).mul_(2)

    def _aimed(self, violations: Tensor, moved: Tensor) -> Tensor:
        return moved.clamp_(min=0).mul_(2).masked_fill_(violations <= 0, 0)  # where none is violated, the slope stays 0

    def _left(self, slopes: Tensor, there: Tensor) -> Tensor:
        missed = there.clamp(max=0).mul_(slopes)  # of margins that the step has met
        return (there.clamp(min=0) - slopes / 2).square_().sub_(missed)

    def level(self, slopes: Tensor, smallest: float) -> tuple[float, float]:
        # Slopes are 0 or more, so rows of classes whose mean is too large can take on more towards those of which it is
        # too small, all rows of a class as much.
        if bool((self.masses[slopes > 0] == 0).any()):
            return math.inf, math.inf
        missing = float(slopes.abs().sum())
        square = self.outputs * missing**2 * self.total / (4 * self.lightest)
        return missing / 2 * max(0.0, -smallest) + square, missing
