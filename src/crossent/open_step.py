"""The optimiser step under way, which may take several batches and several evaluations."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from crossent.data.loader import Batch
from crossent.losses import Cost

log = logging.getLogger(__name__)


class OpenStep:
    """The optimiser step under way: how it is evaluated, and the cost of its batches before the update.

    Called as the optimiser's closure. An optimiser may evaluate several times a step (LBFGS does, at other weights
    each time): only the first counts, since it is the one before the update. Batches whose gradients were accumulated
    for the step count as well.

    Args:
        check: looks at the gradient of the first evaluation, before the update.

    Attributes:
        evaluate: the optimiser's closure, which finds cost and gradient.
        is_first: whether the next evaluation is the step's first one.
        place: the batch that was evaluated last, and its index in the epoch; None between steps.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check
        self.evaluate: Callable[[], Any] = lambda: None
        self.is_first = True
        self.place: tuple[Batch, int] | None = None
        self._costs: list[Cost] = []
        self._penalty: Tensor | None = None
        self._warned = False

    def __call__(self) -> Any:
        result = self.evaluate()
        if self.is_first:
            self._check()
        self.is_first = False
        return result

    def add(
        self,
        cost: Cost,
        penalty: Tensor | None,
        parameters: Callable[[], Iterator[nn.Parameter]],
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
            parameters: whose gradients hold what the earlier batches of the step have added.
            batches: that a full step has.
            last: whether the batch is the step's last one.
        """
        if self.is_first:
            self._costs.append(Cost(cost.mean.detach(), cost.weight))  # not the graph, which holds the batch
            self._penalty = None if penalty is None else penalty.detach()
        if batches == 1:
            return cost.mean if penalty is None else cost.mean + penalty
        assumed = float(self._costs[0].weight) or 1.0
        if not last:
            return cost.mean * (float(cost.weight) / assumed)
        total = self._weight()
        if total != assumed * batches:
            for parameter in parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(assumed * batches / total)
        own = cost.mean * (float(cost.weight) / total)
        return batches * (own if penalty is None else own + penalty)

    def metrics(self) -> dict[str, float]:
        """The mean cost a row of all batches of the step, and the penalty where there is one."""
        metrics = {"cost": sum(float(cost.mean) * float(cost.weight) for cost in self._costs) / self._weight()}
        if self._penalty is not None:
            metrics["penalty"] = float(self._penalty)
        return metrics

    def clear(self) -> None:
        """Makes ready for the next step."""
        self._costs.clear()
        self.is_first = True
        self.place = None

    def _weight(self) -> float:
        """The weight of all batches; 1 where no row counts, so that the cost is 0."""
        weight = sum(float(cost.weight) for cost in self._costs)
        if weight == 0 and not self._warned:
            log.warning(
                "a step has no row that counts: all are ignored or weigh 0; its cost is 0, and so is its gradient"
            )
            self._warned = True
        return weight or 1.0
