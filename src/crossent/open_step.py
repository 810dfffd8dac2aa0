"""The optimiser step under way, which may take several batches, several evaluations and several ranks."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from crossent.data.loader import Batch
from crossent.losses import Cost
from crossent.processes import together
from crossent.processes.grid import Grid

log = logging.getLogger(__name__)


class OpenStep:
    """The optimiser step under way: how it is evaluated, and the cost of its batches before the update.

    Called as the optimiser's closure. An optimiser may evaluate several times a step (LBFGS does, at other weights
    each time): only the first counts, since it is the one before the update. Batches whose gradients were accumulated
    for the step count as well, and so do the rows of all ranks.

    Args:
        check: looks at cost and gradient of the first evaluation, before the update.
        regularize: adds the penalty's gradient to what ranks have added up.
        grid: how the ranks share rows and classes.

    Attributes:
        evaluate: the optimiser's closure, which finds cost and gradient.
        parameters: whose gradients those are; with several batches, they hold what the earlier ones have added.
        sharded: those of them of which other ranks have the parts of other classes.
        is_first: whether the next evaluation is the step's first one.
        batch: that was evaluated last; None between steps.
        wishes: what this rank wants done after the step; asked at every evaluation that ranks share.
        granted: of these, what any rank wants, so that all of them do it.
        shared_cost: the mean cost a row over all ranks, of the evaluation before; 0 where there are no others.
    """

    def __init__(
        self, check: Callable[[], None], regularize: Callable[[], None] = lambda: None, grid: Grid | None = None
    ) -> None:
        self._check = check
        self._regularize = regularize
        self._grid = grid or Grid()
        self.evaluate: Callable[[], Any] = lambda: None
        self.parameters: Sequence[nn.Parameter] = ()
        self.sharded: Sequence[nn.Parameter] = ()
        self.is_first = True
        self.batch: Batch | None = None
        self.wishes: Callable[[], Sequence[bool]] = tuple
        self.granted: tuple[bool, ...] = ()
        self.shared_cost = 0.0
        self._costs: list[Cost] = []
        self._penalty: Tensor | None = None
        self._has_shares = False
        self._assumed = 0.0
        self._first: tuple[float, Tensor | None] | None = None  # the cost and the penalty before the update
        self._warned = False

    def __call__(self) -> Any:
        if self._grid.class_ranks is not None:
            self._grid.class_ranks.wishes = self.wishes
        result = self.evaluate()
        if self._has_shares:
            result = self._add_up()
        if self.is_first:
            self._check()
        self.is_first = False
        return result

    def add(
        self,
        cost: Cost,
        penalty: Tensor | None,
        batches: int,
        *,
        last: bool,
    ) -> Tensor:
        """Takes in the cost of a batch, and returns what to differentiate for it, a scalar.

        Lightning divides that by the number of batches that a full step has. The weight of all batches is known with
        the last one only; until then they count as if each had the weight of the first.

        Args:
            cost: of the batch.
            penalty: a scalar that belongs to the step, once.
            batches: that a full step has.
            last: whether the batch is the step's last one.
        """
        if self.is_first:
            self._costs.append(_apart(cost))
            self._penalty = None if penalty is None else penalty.detach()
        if batches == 1:
            return cost.mean if penalty is None else cost.mean + penalty
        assumed = float(self._costs[0].weight) or 1.0
        if not last:
            return cost.mean * (float(cost.weight) / assumed)
        total = self._nonzero(sum(float(cost.weight) for cost in self._costs))
        if total != assumed * batches:
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(assumed * batches / total)
        own = cost.mean * (float(cost.weight) / total)
        return batches * (own if penalty is None else own + penalty)

    def share(self, cost: Cost, penalty: Tensor | None, rows: int, batches: int) -> Tensor | float:
        """Takes in the cost of this rank's rows of a batch, and returns what to multiply its mean by, and its gradient.

        One process with several batches may take this way as well as `add`, and then has no other pass over gradients
        than the last one.

        The sum over ranks and batches of the products is the step's cost, but for a factor: the weight of all rows,
        which nobody knows yet, counts as the number of the first batch's rows. The penalty, of which every rank knows
        the gradient, is left to `regularize`.

        Args:
            cost: of the rows; there may be none.
            penalty: a scalar that belongs to the step, once.
            rows: of the batch, on all ranks.
            batches: that a full step has; Lightning divides by it.
        """
        if not self.is_first:
            self._costs.clear()  # evaluated again, at other weights
        self._costs.append(_apart(cost))
        self._penalty = None if penalty is None else penalty.detach()
        self._has_shares = True
        self._assumed = self._assumed or float(rows)
        return cost.weight * batches / self._assumed

    def _add_up(self) -> Tensor:
        """Turns the gradients of this rank's rows into those of all rows, and returns the objective that all share.

        Where classes are split, that is without the penalty: each rank knows its part of it, and no optimiser that
        works number by number asks for more.
        """
        gradients: list[Tensor] = []
        of_shard: list[Tensor] = []
        sharded = {id(parameter) for parameter in self.sharded}
        for parameter in self.parameters:
            if parameter.requires_grad:
                if parameter.grad is None:  # no row of this rank's has led there
                    parameter.grad = torch.zeros_like(parameter)
                (of_shard if id(parameter) in sharded else gradients).append(parameter.grad)
        own = sum(float(cost.mean) * float(cost.weight) for cost in self._costs)
        weight = sum(float(cost.weight) for cost in self._costs)
        classes = self._grid.class_ranks
        if classes is None:
            wishes = self.wishes()
        else:
            wishes = classes.heard(of_shard[0])
            classes.wishes = tuple
            for gradient in gradients:  # each rank's classes have led there
                classes.total(gradient)
        if self._grid.rows > 1:
            group = self._grid.of_my_classes
            if of_shard:
                # In messages of their own: the others are as long for every shard, and so add up to the same bits.
                together.add_up(of_shard, (), group)
            numbers = [own, weight, *map(float, wishes)]
            own, weight, *summed = together.add_up(gradients or [of_shard[0].new_empty(0)], numbers, group)
            wishes = [wish > 0 for wish in summed]
        self.granted = tuple(wishes)
        weight = self._nonzero(weight)
        if weight != self._assumed:
            for gradient in (*gradients, *of_shard):
                gradient.mul_(self._assumed / weight)
        self._regularize()
        self.shared_cost = own / weight
        if self.is_first:
            self._first = self.shared_cost, self._penalty
        penalty = 0.0 if self._penalty is None or classes is not None else float(self._penalty)
        return torch.tensor(self.shared_cost + penalty, dtype=torch.float64)

    def metrics(self) -> dict[str, float]:
        """The mean cost a row of all batches of the step, and the penalty where there is one; all ranks call this."""
        if self._first is not None:
            cost, penalty = self._first
        else:
            weight = self._nonzero(sum(float(cost.weight) for cost in self._costs))
            cost = sum(float(cost.mean) * float(cost.weight) for cost in self._costs) / weight
            penalty = self._penalty
        if penalty is None:
            return {"cost": cost}
        if self._grid.class_ranks is not None:
            penalty = penalty.clone()
            self._grid.class_ranks.total(penalty)
        return {"cost": cost, "penalty": float(penalty)}

    def clear(self) -> None:
        """Makes ready for the next step."""
        self._costs.clear()
        self.is_first = True
        self.batch = None
        self._has_shares = False
        self._assumed = 0.0

    def _nonzero(self, weight: float) -> float:
        """The weight of all batches; 1 where no row counts, so that the cost is 0."""
        if weight == 0 and not self._warned:
            log.warning(
                "a step has no row that counts: all are ignored or weigh 0; its cost is 0, and no row moves the weights"
            )
            self._warned = True
        return weight or 1.0


def _apart(cost: Cost) -> Cost:
    """The cost without the graph, which holds the batch."""
    return Cost(cost.mean.detach(), cost.weight) if cost.mean.requires_grad else cost
