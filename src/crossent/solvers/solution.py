"""The optimum in one call, for whoever has tensors and wants no run."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from crossent.data.mapped import Features
from crossent.losses import Loss
from crossent.solvers.memory import End
from crossent.solvers.newton_cg import NewtonCG
from crossent.solvers.objective import Objective


class Solution(NamedTuple):
    """Weights at the optimum, and how near that they are.

    Attributes:
        weight: (outputs, features), in double precision.
        bias: (outputs,), or None.
        value: the mean cost of a row and λ/2 ‖weight‖² together.
        suboptimality: a bound on (value − optimum) / optimum, without a penalty an estimate; infinite where none is
            known.
        steps: Newton's.
        products: with the Hessian.
        passes: through the rows, for all of it.
        end: why it went no further; None: the steps ran out.
    """

    weight: Tensor
    bias: Tensor | None
    value: float
    suboptimality: float
    steps: int
    products: int
    passes: int
    end: End | None


def minimize(
    loss: Loss,
    features: Features,
    targets: Tensor,
    sample_weight: Tensor | None = None,
    *,
    classes: int | None = None,
    l2: float = 0.0,
    bias: bool = True,
    tol: float = 1e-6,
    max_steps: int = 100,
) -> Solution:
    """Finds the weights with the least mean cost and penalty, starting from 0.

    Args:
        loss: a convex one.
        features: (rows, features), float32 or float64.
        targets: (rows,), int64.
        sample_weight: (rows,), 0 or more; None: all rows weigh the same.
        classes: how many; None: as many as the targets tell.
        l2: λ of λ/2 ‖weight‖²; scikit-learn's C is 1/(λN).
        bias: whether every output has one, which is not penalised.
        tol: the suboptimality at which it is done.
        max_steps: at most.

    Raises:
        NotConvexError: the loss is not convex in the weights.
        ValueError: targets that are no class.
    """
    outputs = loss.outputs(int(targets.max()) + 1 if classes is None else classes)
    device = targets.device
    parameters = [Parameter(torch.zeros(outputs, features.shape[1], dtype=torch.float64, device=device))]
    if bias:
        parameters.append(Parameter(torch.zeros(outputs, dtype=torch.float64, device=device)))
    objective = Objective(loss, features, targets, sample_weight, outputs=outputs, l2=l2, intercept=bias)
    solver = NewtonCG(parameters, objective, tol=tol)
    steps = solver.solve(max_steps)
    assert solver.last is not None
    assert solver.reached is not None
    found = [parameter.detach() for parameter in parameters]
    return Solution(
        found[0],
        found[1] if bias else None,
        solver.reached.value,
        solver.last.following,
        steps,
        objective.products,
        objective.matrix.passes,
        solver.last.end,
    )
