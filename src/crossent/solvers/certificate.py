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

from crossent.solvers import preconditioners
from crossent.solvers.conjugate_gradients import Lanczos, Progress
from crossent.solvers.evaluation import Evaluation, dot
from crossent.solvers.objective import Objective
from crossent.solvers.preconditioners import Preconditioner

# How often the intercepts' slopes are brought nearer to 0, and what they may cost of what is allowed.
_LEVELLINGS, _LEVEL = 4, 0.1
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
        residual: r, (outputs, columns), in the last column the mean slope of the intercepts.
        left: of Fenchel's inequality, a mean over the rows, once the intercepts' slopes are brought to 0 for good.
        changed: ‖r‖ by that, and by rounding, at most.
    """

    residual: Tensor
    left: float
    changed: float


def aim(
    objective: Objective,
    start: Evaluation,
    there: Evaluation,
    left_over: Tensor,
    dtype: torch.dtype,
    allowed: float,
) -> Aim:
    """Finds what a step aims at, by a pass through the rows, or a few.

    The mean slopes of the intercepts have to vanish there, so it aims a little beside where the step leads.

    Args:
        objective: what is minimised.
        start: where the step starts.
        there: where it leads.
        left_over: of Newton's equation by the step, (outputs, columns): about the residual before any levelling.
        dtype: of the products.
        allowed: what the bound may come to.
    """
    levels = objective.intercept and objective.outputs <= _FEW_OUTPUTS
    inverse: Tensor | None = None
    lift = start.at.new_zeros(objective.outputs)
    slopes = left_over[:, -1].to(torch.float64)
    if levels and bool(slopes.any()):
        inverse = _of_intercepts(objective, start)
        lift -= inverse @ slopes
        if objective.visits.keeps:  # as exactly as it is needed, nearly always, and in half the time of a pass
            lift -= inverse @ objective.aimed_slopes(start, there, lift, dtype)
    for _ in range(_LEVELLINGS):
        residual, left = objective.aim(start, there, lift, dtype)
        more, changed = objective.costs.level(residual[:, -1], there.smallest) if objective.intercept else (0.0, 0.0)
        if changed:
            changed *= objective.longest
        by_residual = changed**2 / (2 * objective.l2) if objective.l2 else 0.0
        if not levels or more + by_residual <= _LEVEL * allowed:
            break
        inverse = _of_intercepts(objective, start) if inverse is None else inverse
        lift -= inverse @ residual[:, -1]
    rounded = _DIGITS * torch.finfo(torch.float64).eps * math.sqrt(dot(start.gradient, start.gradient))
    return Aim(residual, left + more, changed + rounded)


def _of_intercepts(objective: Objective, start: Evaluation) -> Tensor:
    """The inverse of the Hessian by the intercepts alone, (outputs, outputs)."""
    hessian = objective.intercepts(start)
    if objective.costs.has_gauge:
        hessian += hessian.diagonal().mean() / len(hessian)
    return preconditioners.inverse(hessian.unsqueeze(0))[0]


def lower_bound(objective: Objective, aimed: Aim, behind: Evaluation, dtype: torch.dtype) -> float:
    """What the optimum is not below, where there is a penalty; −∞ where that cannot be said.

    Args:
        objective: what is minimised.
        aimed: by the step.
        behind: the objective behind it.
        dtype: of what was evaluated.
    """
    if objective.largest is None:
        return -math.inf
    norm = float(torch.linalg.vector_norm(aimed.residual[:, : objective.penalised])) + aimed.changed
    return _below(objective, behind, aimed.left + norm**2 / (2 * objective.l2), dtype)


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
        rounded = eps * (_DIGITS_OF_MANY * size / math.sqrt(max(1.0, objective.rows)) + behind.value)
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
    lowest = min(smallest, lanczos.smallest) / _SAFETY
    return lanczos.remainder(lowest) if lowest > 0 else math.inf  # which is rounding's


def left_by(objective: Objective, progress: Progress, smallest: float, allowed: float) -> float:
    """What a residual adds to the bound, or, without a penalty, to the estimate."""
    if objective.l2:
        # With the intercepts' slopes, since bringing them to 0 leaves about as much in the other columns.
        return dot(progress.residual, progress.residual) / (2 * objective.l2)
    if progress.size / 2 > allowed or not progress.lanczos.is_due:
        return math.inf  # what it is multiplied by takes longer to know, and is no less than 1
    return reach(progress.lanczos, smallest) * progress.size / 2
