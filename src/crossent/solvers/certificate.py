"""How far from the optimum a Newton step leads.

By Fenchel's duality (see `crossent.losses.convex.base`), with the slopes α that the step aims at, the weights W behind
it, their outputs z, and r = λ W + Σ x αᵀ, which is 0 at the optimum, the objective behind the step is at most

    Σ (φ_i(z_i) + φ_i*(α_i) − ⟨α_i, z_i⟩) + ‖r‖² / 2λ

above the optimum, all sums being means over the rows. The intercepts are not penalised, so their mean slope has to be
0.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from crossent.solvers.conjugate_gradients import Lanczos, Progress
from crossent.solvers.evaluation import Evaluation
from crossent.solvers.objective import Objective
from crossent.solvers.preconditioners import Preconditioner

# How often the intercepts' slopes are brought nearer to 0, and what they may cost of what is allowed.
_LEVELLINGS, _LEVEL = 4, 0.05
# Outputs up to which the intercepts' own Hessian is solved.
_FEW_OUTPUTS = 1024
# By how much the smallest eigenvalue may be below the smallest Ritz value.
_SAFETY = 4.0
# By how many of the last digits a row's cost may be wrong; in single precision they are many rows', and cancel.
_DIGITS, _DIGITS_OF_MANY = 8, 4
_FARTHEST = 0.5  # of the value, that a gap may be


class Aim(NamedTuple):
    """What a step aims at.

    Attributes:
        direction: of the step, (outputs, columns); the intercepts' part is changed so that their slopes vanish.
        residual: r, (outputs, columns), in the last column the mean slope of the intercepts.
        left: of Fenchel's inequality, a mean over the rows.
    """

    direction: Tensor
    residual: Tensor
    left: float


def aim(
    objective: Objective,
    start: Evaluation,
    direction: Tensor,
    slopes: Tensor,
    dtype: torch.dtype,
    allowed: float,
    *,
    is_exact: bool,
) -> Aim:
    """Finds what a step aims at, by a few passes through the rows.

    Args:
        objective: what is minimised.
        start: where the step starts.
        direction: (outputs, columns).
        slopes: of the intercepts behind it, as it was solved, (outputs,).
        dtype: of the products.
        allowed: what the bound may come to.
        is_exact: whether the step solves Newton's equation to the last digits.
    """
    levels = objective.intercept and objective.outputs <= _FEW_OUTPUTS
    inverse: Tensor | None = None
    if levels and not is_exact:
        inverse = _of_intercepts(objective, start)
        direction = _levelled(direction, inverse, slopes)
    for _ in range(_LEVELLINGS):
        residual, left = objective.aim(start, direction.to(dtype))
        if not levels or objective.costs.level(residual[:, -1], start.smallest)[0] <= _LEVEL * allowed:
            break
        inverse = _of_intercepts(objective, start) if inverse is None else inverse
        direction = _levelled(direction, inverse, residual[:, -1])
    return Aim(direction, residual, left)


def _levelled(direction: Tensor, inverse: Tensor, slopes: Tensor) -> Tensor:
    found = direction.clone()
    found[:, -1] -= inverse @ slopes.to(torch.float64)
    return found


def _of_intercepts(objective: Objective, start: Evaluation) -> Tensor:
    """The inverse of the Hessian by the intercepts alone, (outputs, outputs)."""
    hessian = objective.intercepts(start)
    if objective.costs.has_gauge:
        hessian += hessian.diagonal().mean() / len(hessian)
    inverse: Tensor = torch.linalg.pinv(hessian, hermitian=True)
    return inverse


def lower_bound(objective: Objective, aimed: Aim, behind: Evaluation, rounded: Tensor, dtype: torch.dtype) -> float:
    """What the optimum is not below, where there is a penalty; −∞ where that cannot be said.

    Args:
        objective: what is minimised.
        aimed: by the step.
        behind: the objective behind it.
        rounded: by what the weights there are others than those that the step led to, (outputs, columns).
        dtype: of what was evaluated.
    """
    if objective.largest is None:
        return -math.inf
    more, changed = 0.0, 0.0
    if objective.intercept:
        more, changed = objective.costs.level(aimed.residual[:, -1], behind.smallest)
        if objective.costs.has_gauge:  # a number that all intercepts have in common changes nothing
            rounded = rounded.clone()
            rounded[:, -1] -= rounded[:, -1].mean()
    residual = torch.addcmul(aimed.residual, rounded, objective.penalties)
    norm = float(torch.linalg.vector_norm(residual[:, : objective.penalised]))
    norm += changed * float(torch.linalg.vector_norm(objective.largest)) if changed else 0.0
    # No output has moved by more than this, and no row's cost bends by more than four times its weight.
    weight = float(objective.costs.masses.sum()) / objective.total
    moved = 4 * weight * float((rounded.abs() @ objective.largest).square().sum())
    gap = (math.sqrt(aimed.left) + math.sqrt(moved)) ** 2 + more + norm**2 / (2 * objective.l2)
    return _below(objective, behind, gap, dtype)


def estimate(
    objective: Objective,
    aimed: Aim,
    behind: Evaluation,
    precondition: Preconditioner,
    reach: float,
    dtype: torch.dtype,
) -> float:
    """About what the optimum is not below, where there is no penalty: by ⟨r, H⁻¹ r⟩ / 2 in the place of ‖r‖² / 2λ.

    The two parts of the distance are the squares of two errors that may add up.

    Args:
        objective: what is minimised.
        aimed: by the step.
        behind: the objective behind it.
        precondition: about the inverse of H, the Hessian.
        reach: as `reach` has it.
        dtype: of the preconditioner.
    """
    residual = aimed.residual.to(dtype)
    size = max(0.0, float((residual * precondition(residual)).sum()))
    return _below(objective, behind, (math.sqrt(aimed.left) + math.sqrt(reach * size / 2)) ** 2, dtype)


def _below(objective: Objective, behind: Evaluation, gap: float, dtype: torch.dtype) -> float:
    """The value without the gap and without what may be rounded: a row's cost errs by the digits of its logits."""
    eps, size = torch.finfo(dtype).eps, max(0.0, -behind.smallest)
    if dtype == torch.float64:
        rounded = _DIGITS * eps * (size + behind.value)
    else:
        rounded = eps * (_DIGITS_OF_MANY * size / math.sqrt(max(1.0, objective.rows)) + behind.value / 2)
    # A step that leads far off has outputs whose probabilities are too small for numbers, and a gap that is too small.
    return behind.value - gap - rounded if gap <= _FARTHEST * behind.value else -math.inf


def reach(lanczos: Lanczos, smallest: float) -> float:
    """What ⟨residual, precondition(residual)⟩ is to be multiplied by for ⟨r, H⁻¹ r⟩, or more.

    Args:
        lanczos: of the step's iterations; before the first one the preconditioner counts as the Hessian itself.
        smallest: Ritz value of the same preconditioner in earlier steps; the smallest eigenvalue is below it, so it is
            taken for a fourth of it.
    """
    if not math.isfinite(lanczos.smallest):
        return _SAFETY
    return lanczos.remainder(min(smallest, lanczos.smallest) / _SAFETY)


def left_by(objective: Objective, progress: Progress, smallest: float, allowed: float) -> float:
    """What a residual adds to the bound, or, without a penalty, to the estimate."""
    if objective.l2:
        square = progress.residual[:, : objective.penalised].square().sum(dtype=torch.float64)
        return float(square) / (2 * objective.l2)
    if progress.size / 2 > allowed:
        return math.inf  # what it is multiplied by takes longer to know, and is no less than 1
    return reach(progress.lanczos, smallest) * progress.size / 2
