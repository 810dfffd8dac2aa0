"""The Hessian at some weights, which is only ever multiplied by."""

from collections.abc import Iterator

import torch
from torch import Tensor

from crossent.losses.convex.base import Which
from crossent.processes import together
from crossent.solvers.active_rows import ActiveRows
from crossent.solvers.evaluation import Evaluation
from crossent.solvers.objective import Objective


class Hessian:
    """Its products with directions, by two products with the features each.

    Args:
        objective: whose Hessian.
        evaluation: where.
        dtype: of directions.
        multiplied: dtype of what is multiplied with the features.
        active: the rows that are gone by; None: all.
    """

    def __init__(
        self,
        objective: Objective,
        evaluation: Evaluation,
        dtype: torch.dtype,
        multiplied: torch.dtype,
        active: ActiveRows | None = None,
    ) -> None:
        self._objective = objective
        self._evaluation = evaluation
        self._dtype, self._multiplied = dtype, multiplied
        self._share = 1 / objective.total
        own = objective.penalties_as[dtype]
        self._diagonal = own if together.is_first() else torch.zeros_like(own)  # since ranks' products are added up
        self._held: list[tuple[Which, Tensor, Tensor]] | None = None
        if active is not None:
            self._diagonal = torch.add(self._diagonal, active.others, alpha=self._share)
            self._held = [(each.rows, each.features, each.state) for each in active.parts]
        elif objective.visits.holds(evaluation, multiplied):
            self._held = list(self._known())
            objective.matrix.passes -= 1  # which is counted with the product

    def __call__(self, direction: Tensor) -> Tensor:
        """The product with a direction, (outputs, columns)."""
        objective = self._objective
        objective.products += 1
        found = direction * self._diagonal
        if self._held is not None:
            objective.matrix.passes += 1
        for rows, part, state in self._held if self._held is not None else self._known():
            moved = objective.visits.outputs(direction, part)
            objective.costs.bend(moved, rows, state)
            objective.visits.add_sums(found, moved, part, self._share)
        return together.total(found)

    def _known(self) -> Iterator[tuple[Which, Tensor, Tensor]]:
        """Rows, their features and their states, part by part."""
        visits = self._objective.visits
        for rows, part, (state,) in visits.known(self._dtype, self._evaluation, features=self._multiplied):
            yield rows, part, state
