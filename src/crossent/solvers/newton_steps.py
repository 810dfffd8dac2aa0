"""Newton's steps: by what they are preconditioned, how far their equation is solved, and where they lead."""

from dataclasses import dataclass

import torch
from torch import Tensor

from crossent.solvers import certificate, preconditioners, smoothing
from crossent.solvers.conjugate_gradients import Lanczos, Progress, Solved, solve
from crossent.solvers.evaluation import Evaluation, dot
from crossent.solvers.hessian import Hessian
from crossent.solvers.line_search import search
from crossent.solvers.memory import Memory
from crossent.solvers.objective import Objective
from crossent.solvers.preconditioners import Preconditioner

# How far a step is solved: until the preconditioned residual is this small a share of what it was, or smaller, as its
# size goes down (Eisenstat and Walker, Choosing the forcing terms in an inexact Newton method, 1996).
_FORCING = 0.1
# Of the tolerance, what a step's slopes may leave by what the step before has told, what its residual may in any case,
# and what both may together.
_LEFT, _MORE, _BOTH = 0.6, 0.3, 0.7
_FURTHEST = 1e4  # that a step may move an output, if all columns have their largest number
_NEAR = 10.0  # times the tolerance, where few iterations are left
# The share of the value that a step's model has to gain for objective and gradient to be evaluated roughly behind it.
_FAR = 0.01
# Where products are in bfloat16, the share of the residual's size that they can tell from nothing.
_ROUGHLY = 1e-5
# What a step leaves of the gradient's size if it has led well; and if hardly anywhere, since products were too rough.
_WELL, _HARDLY = 0.25, 0.5


@dataclass(frozen=True)
class Taken:
    """A step that was taken.

    Attributes:
        start: whence; the same as was given, or evaluated more exactly.
        there: where it has led.
        solved: how its equation was solved.
        length: 1 for Newton's own; 0: none lowers the objective.
        tells: whether it tells how far from the optimum it has led.
    """

    start: Evaluation
    there: Evaluation
    solved: Solved
    length: float
    tells: bool


class NewtonSteps:
    """Takes Newton's steps, whose equation is solved by conjugate gradients as far as it pays.

    Args:
        objective: what is minimised.
        dtype: in which weights are kept.
        tol: the bound, relative to the optimum, that is to be reached.
        max_inner: products with the Hessian a step, at most.

    Attributes:
        objective: what is minimised.
        is_last: whether the next step is the last one, so that it has to say how far from the optimum it ends.
    """

    def __init__(self, objective: Objective, dtype: torch.dtype, *, tol: float, max_inner: int) -> None:
        self.is_last = False
        self.objective = objective
        self._dtype = dtype
        self._tol, self._max_inner = tol, max_inner
        self._precondition: Preconditioner | None = None

    def forget(self) -> None:
        """Has the preconditioner made anew, as in a run that goes on."""
        self._precondition = None

    def take(self, start: Evaluation, memory: Memory) -> Taken:
        """Takes a step from some weights; what it has learnt is left in the memory."""
        objective, tolerance = self.objective, smoothing.rest(start, self.allowed(start))
        precondition = self._preconditioner(start, memory)
        if memory.kind == "whole":
            solved, tells = self._solve_whole(start, precondition, tolerance, memory)
        else:
            start, solved, tells = self._solve(start, precondition, tolerance, memory)
        is_far = memory.has_rougher and not tells and not memory.stalled
        is_far = is_far and solved.decrease >= _FAR * start.value
        direction = solved.direction.to(torch.float64)
        if objective.costs.has_gauge:  # columns in which only differences count keep a mean of 0
            free = objective.penalised if objective.l2 else 0
            count = objective.matrix.columns - free
            levelled = direction.narrow(1, free, count)
            levelled -= (start.at.narrow(1, free, count) + levelled).sum(0).div_(objective.outputs)
        furthest = objective.furthest(direction, _FURTHEST)
        if furthest > _FURTHEST:  # where next to nothing bends
            direction = direction * (_FURTHEST / furthest)

        def evaluate(at: Tensor) -> Evaluation:
            return self.evaluate(at if memory.smoothing else self.rounded(at), memory, roughly=is_far)

        full = evaluate(start.at + direction)
        memory.learn(solved.decrease, start.smooth - full.smooth)
        lower = None
        if tells and furthest <= _FURTHEST:
            lower = self._lower(start, full, solved, precondition, memory)
        if memory.kind != "whole":
            slopes = full.gradient.to(memory.vector_dtype)
            remains = dot(slopes, precondition(slopes)) / solved.first if solved.first else 0.0
            memory.leads_well = remains <= _WELL
            lacks_digits = memory.precision == 1 and solved.steps >= self._max_inner  # as it mostly is
            memory.precision += lacks_digits or (memory.is_rough and remains > _HARDLY)
        noise = 8 * torch.finfo(memory.dtype).eps * abs(start.value)
        there, length = search(evaluate, objective.visits.release, start, full, direction, noise)
        if lower is not None and not objective.l2:
            # What is no bound is not believed before a step has gained less than that.
            memory.lower = min(lower, 2 * there.value - start.value)
        elif lower is not None and lower <= min(start.value, there.value):  # or it is rounded away
            memory.lower = max(memory.lower, lower)
        return Taken(start, there, solved, length, tells)

    def evaluate(self, at: Tensor, memory: Memory, *, roughly: bool = False) -> Evaluation:
        """The objective at some weights, exactly, or as roughly as products are taken."""
        if not roughly:
            return self.objective.evaluate(at, memory.dtype)
        found = self.objective.evaluate(at, memory.vector_dtype, memory.product_dtype)
        found.is_rough = True
        return found

    def exactly(self, evaluation: Evaluation, memory: Memory) -> Evaluation:
        """The same, where it was rough."""
        if not evaluation.is_rough:
            return evaluation
        self.objective.visits.release(evaluation)
        return self.evaluate(evaluation.at, memory)

    def rounded(self, at: Tensor) -> Tensor:
        """Weights as the parameters will hold them, in the memory of what is given."""
        return self.objective.matrix.rounded(at, self._dtype)

    def anew(self, found: Tensor) -> Tensor:
        """What may come from a checkpoint, in memory of its own: sums may depend on where in memory they begin."""
        return found.to(self.objective.matrix.device, copy=True)

    def allowed(self, evaluation: Evaluation) -> float:
        """What the bound is to come to."""
        found: float = self._tol * evaluation.value
        return found

    def _lower(
        self, start: Evaluation, full: Evaluation, solved: Solved, precondition: Preconditioner, memory: Memory
    ) -> float:
        """What the optimum is not below, as a step of length 1 tells; without a penalty an estimate."""
        objective = self.objective
        aimed = certificate.aim(objective, start, full, solved.residual, memory.dtype, self.allowed(start))
        if objective.l2:
            return certificate.lower_bound(objective, aimed, full, memory.dtype)
        reach = certificate.reach(solved.lanczos, memory.smallest)
        return certificate.estimate(objective, aimed, full, precondition, reach, memory.vector_dtype)

    def _has_to_tell(self, memory: Memory) -> bool:
        return self.is_last or memory.stalled > 0

    def _solve_whole(
        self, start: Evaluation, solution: Preconditioner, tolerance: float, memory: Memory
    ) -> tuple[Solved, bool]:
        """Newton's equation by the Hessian itself, and whether to tell how far from the optimum it leads."""
        direction = solution(start.gradient).neg_()
        decrease = -dot(direction, start.gradient) / 2
        solved = Solved(direction, torch.zeros_like(direction), 1, 2 * decrease, decrease, Lanczos())
        is_little = memory.left(decrease) <= _LEFT * tolerance and smoothing.is_fine(start, self.allowed(start))
        return solved, self._has_to_tell(memory) or is_little

    def _solve(
        self, start: Evaluation, precondition: Preconditioner, tolerance: float, memory: Memory
    ) -> tuple[Evaluation, Solved, bool]:
        """Newton's equation: where, solved how, and whether to tell how far from the optimum its solution leads.

        That is told only when it will be little enough, as far as the last step tells, since the equation has to be
        solved further for it, and nothing may be rough or left out.
        """
        objective = self.objective
        gradient = start.gradient.to(memory.vector_dtype)
        moved = precondition(gradient)
        tells = self._has_to_tell(memory)
        about = dot(gradient, moved) / 2  # to be gained
        is_fine = smoothing.is_fine(start, self.allowed(start))
        may_tell = tells or (is_fine and memory.left(about) <= tolerance)
        if start.is_rough and may_tell:
            start = self.exactly(start, memory)
            gradient = start.gradient.to(memory.vector_dtype)
            moved = precondition(gradient)
        leaves_out = memory.leads_well and not may_tell and about >= _FAR * start.value
        active = objective.active(start, memory.vector_dtype, memory.product_dtype) if leaves_out else None
        can_tell = not start.is_rough and active is None

        def enough(progress: Progress) -> bool:
            nonlocal tells
            if can_tell and is_fine and not tells:
                tells = memory.left(progress.decrease + 2 * progress.size) <= _LEFT * tolerance
            if not tells:
                forcing: float = min(_FORCING, progress.first**0.25)
                return progress.size <= progress.first * forcing**2
            if memory.is_rough and progress.size <= _ROUGHLY * progress.first:
                return True
            allowed = max(_MORE * tolerance, _BOTH * tolerance - memory.left(progress.decrease))
            return certificate.left_by(self.objective, progress, memory.smallest, allowed) <= allowed

        solved = solve(
            Hessian(objective, start, memory.vector_dtype, memory.product_dtype, active),
            gradient,
            moved,
            precondition,
            enough,
            self._max_inner,
        )
        memory.since += solved.steps
        if not objective.l2:  # else nobody asks for it
            memory.smallest = min(memory.smallest, solved.lanczos.smallest)
        return start, solved, tells

    def _preconditioner(self, start: Evaluation, memory: Memory) -> Preconditioner:
        """Made anew where the iterations since the last time have taken longer than that does."""
        objective = self.objective
        is_near = memory.relative(start.value) <= _NEAR * self._tol  # or it has paid, but no longer does
        couples = memory.kind in ("blocks", "coupled") and preconditioners.takes_coupled(objective)
        cost = (preconditioners.products_of_coupled if couples else preconditioners.products_of_blocks)(objective)
        pays = memory.since >= cost and not is_near
        if memory.made is None or pays or memory.kind not in ("blocks", "coupled"):
            if memory.kind == "diagonal" and pays and preconditioners.takes_blocks(objective):
                memory.kind = "blocks"
            elif memory.kind == "blocks" and pays and couples:
                memory.kind = "coupled"
            if pays or memory.kind != "diagonal":
                memory.since = 0
            memory.made, memory.made_far, memory.made_smoothing = start.at, start.is_rough, memory.smoothing
            memory.smallest = 1.0
            self._precondition = self._made(start, memory)
        elif self._precondition is None:  # of a run that goes on, or of another objective
            passes = objective.matrix.passes
            objective.costs.smoothing = memory.made_smoothing
            made = self.evaluate(self.anew(memory.made), memory, roughly=memory.made_far)
            self._precondition = self._made(made, memory)
            objective.costs.smoothing = memory.smoothing
            memory.passes -= objective.matrix.passes - passes  # which were counted when it was made
        return self._precondition

    def _made(self, at: Evaluation, memory: Memory) -> Preconditioner:
        match memory.kind:
            case "whole":
                return preconditioners.whole(self.objective, at)
            case "coupled":
                return preconditioners.coupled(self.objective, at, memory.vector_dtype)
            case "blocks":
                return preconditioners.blocks(self.objective, at, memory.vector_dtype)
            case "diagonal":
                return preconditioners.diagonal(self.objective, at, memory.vector_dtype)
