"""How far to go along a Newton step."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from crossent.solvers.evaluation import Evaluation, dot

_ARMIJO = 1e-4
_HALVINGS = 40
# The share of its slope at the start with which the objective still falls steeply, and how often a step is extended.
_STEEP, _EXTENSIONS = 0.2, 3


class Found(NamedTuple):
    """Where a search has ended.

    Attributes:
        there: the objective there.
        length: of the step; 0 where none lowers the objective.
    """

    there: Evaluation
    length: float


def search(
    evaluate: Callable[[Tensor], Evaluation],
    release: Callable[[Evaluation], None],
    start: Evaluation,
    full: Evaluation,
    direction: Tensor,
    noise: float,
) -> Found:
    """Takes the first of the lengths 1, 1/2, 1/4, … that lowers the objective enough, or a longer one that is better.

    Far from the optimum, where most rows are on the right side already, Newton's steps are too short by far, as they
    take an exponential for a parabola. The condition is Armijo's: Nocedal and Wright, Numerical Optimization, 2006,
    section 3.1.

    Args:
        evaluate: the objective at some weights.
        release: called with evaluations that are not needed.
        start: where the step starts.
        full: the objective at the length 1.
        direction: (outputs, columns).
        noise: of the objective's values; where a change is less, the gradient has to become smaller.
    """
    slope = dot(start.gradient, direction)
    length, there = 1.0, full
    for _ in range(_HALVINGS):
        falls = there.smooth <= start.smooth + _ARMIJO * length * slope
        if falls or (there.smooth <= start.smooth + noise and _norm(there) < _norm(start)):
            break
        release(there)
        length /= 2
        there = evaluate(start.at + length * direction)
    else:
        return Found(start, 0.0)
    if length == 1:
        there, length = _extended(evaluate, release, start, there, direction, slope)
    return Found(there, length)


def _extended(
    evaluate: Callable[[Tensor], Evaluation],
    release: Callable[[Evaluation], None],
    start: Evaluation,
    there: Evaluation,
    direction: Tensor,
    before: float,
) -> tuple[Evaluation, float]:
    """Goes on along a step as long as the objective still falls steeply, to where its slope is about to be 0."""
    slope, last, length = dot(there.gradient, direction), 0.0, 1.0
    steep = _STEEP * before
    for _ in range(_EXTENSIONS):
        if slope > steep:
            break
        further = min(max(slope / (before - slope), 0.5), 2.0) if before < slope else 2.0
        longer = length + (length - last) * further
        beyond = evaluate(start.at + longer * direction)
        if not beyond.smooth < there.smooth:
            release(beyond)
            break
        release(there)
        there, before, slope = beyond, slope, dot(beyond.gradient, direction)
        last, length = length, longer
    return there, length


def _norm(at: Evaluation) -> float:
    return float(torch.linalg.vector_norm(at.gradient))
