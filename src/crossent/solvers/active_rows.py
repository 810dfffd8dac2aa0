"""The rows that make the Hessian what it is.

Where most rows are told apart already, their costs hardly bend any more, and the Hessian is nearly that of the others.
Far from the optimum a step goes by those alone; of the rest it takes the diagonal, so that a column in which no active
row has anything is not taken for flat.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from crossent.losses.convex import ConvexCosts
from crossent.processes import together
from crossent.solvers.evaluation import Evaluation
from crossent.solvers.visits import Visits

# Rows of which every so many are looked at, to see whether it pays.
_LOOKS = 8
# What the rows' second derivatives, squared and added up, are more than if all were the same, so that it pays.
_UNEVEN = 2.0
# Rows that bend by less than this share of the mean are left out: some 1 % of what bends, in half of the rows.
_SHARE = 0.1


@dataclass(frozen=True)
class Part:
    """Some active rows.

    Attributes:
        rows: which they are, (n,).
        features: (n, columns).
        state: (states, n).
    """

    rows: Tensor
    features: Tensor
    state: Tensor


@dataclass(frozen=True)
class ActiveRows:
    """Of this rank.

    Attributes:
        parts: of them.
        others: the sum of the other rows' second derivatives by each weight, (outputs, columns).
    """

    parts: list[Part]
    others: Tensor


def active_rows(
    visits: Visits, costs: ConvexCosts, evaluation: Evaluation, dtype: torch.dtype, features: torch.dtype
) -> ActiveRows | None:
    """Those at some weights; None where it does not pay to leave the others out.

    Args:
        visits: to the rows.
        costs: of the rows.
        evaluation: where; its states are kept.
        dtype: of the states.
        features: their precision.
    """
    sums = evaluation.at.new_zeros(2)
    count = 0.0
    for rows, (state,) in visits.kept(dtype, evaluation):
        first = -(visits.first + rows.start) % _LOOKS
        looked = torch.arange(rows.start + first, rows.stop, _LOOKS, device=state.device)
        bends = costs.second_derivatives(looked, state[:, first::_LOOKS]).sum(0)
        sums += torch.stack([bends.sum(), bends.square().sum()])
        count += len(looked)
    if together.ranks() > 1:
        (count,) = together.add_up([sums], [count])
    total, squares = sums.tolist()
    if not squares * count > _UNEVEN * total**2:
        return None
    least = _SHARE * total / count
    others = evaluation.at.new_zeros(evaluation.at.shape, dtype=dtype)
    parts: list[Part] = []
    for rows, part, (state,) in visits.known(dtype, evaluation, features=features):
        bends = costs.second_derivatives(rows, state)
        is_active = bends.sum(0) >= least
        chosen = is_active.nonzero().squeeze(1)
        parts.append(Part(chosen + rows.start, part.index_select(0, chosen), state.index_select(1, chosen)))
        visits.add_sums(others, bends.masked_fill_(is_active, 0), part.square())
    return ActiveRows(parts, others)
