"""How far kinks are rounded off: a hinge's optimum is come to by those of smooth costs, smoother ones first.

Each begins near its optimum, so that few steps lead there, while the last one alone would take hundreds.
"""

from crossent.solvers.evaluation import Evaluation

# Of the tolerance, what rounding off may leave in the end.
_SHARE = 0.4
# Of what it leaves, what a step gains where the next smoothing is worth while; by what that is finer; and no finer than
# this share of the coarsest.
_SOLVED, _FINER, _FINEST = 0.1, 0.4, 1e-10


def is_fine(evaluation: Evaluation, tolerance: float) -> bool:
    """Whether it is fine enough, where a bound is to come to a tolerance."""
    return evaluation.slack <= _SHARE * tolerance


def rest(evaluation: Evaluation, tolerance: float) -> float:
    """What it leaves of a tolerance to all else."""
    return max(tolerance - evaluation.slack, (1 - _SHARE) * tolerance)


def tolerated(smoothing: float, coarsest: float, reached: Evaluation) -> float:
    """The share of the value that is next to nothing: where it gets no finer, what rounding off leaves anyway."""
    return reached.slack / reached.value if 0 < smoothing <= _FINEST * coarsest else 0.0


def finer(smoothing: float, coarsest: float, reached: Evaluation, decrease: float, tolerance: float) -> float:
    """The smoothing to go on with, or the same.

    Args:
        smoothing: so far; 0 where there are no kinks.
        coarsest: that it began with.
        reached: by the last step.
        decrease: of that step's model.
        tolerance: that the bound is to come to.
    """
    if not smoothing or is_fine(reached, tolerance) or decrease > _SOLVED * reached.slack:
        return smoothing
    share = max(_FINER, _SHARE / 2 * tolerance / reached.slack)  # with which what it leaves goes down
    return max(smoothing * min(share, 1.0), _FINEST * coarsest)
