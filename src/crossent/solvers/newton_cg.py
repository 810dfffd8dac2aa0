"""Truncated Newton for convex losses, which says how far from the optimum it is."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from crossent.solvers import certificate, preconditioners
from crossent.solvers.active_rows import ActiveRows
from crossent.solvers.conjugate_gradients import Lanczos, Progress, Solved, solve
from crossent.solvers.evaluation import Evaluation, dot
from crossent.solvers.hessian import Hessian
from crossent.solvers.line_search import search
from crossent.solvers.memory import End, Memory
from crossent.solvers.objective import Objective
from crossent.solvers.preconditioners import Preconditioner

# How far a step is solved: until the preconditioned residual is this small a share of what it was, or smaller, as its
# size goes down (Eisenstat and Walker, Choosing the forcing terms in an inexact Newton method, 1996).
_FORCING = 0.1
# Of the tolerance, what a step's slopes may leave by what the step before has told, what its residual may in any case,
# and what both may together.
_LEFT, _MORE, _BOTH = 0.6, 0.3, 0.7
_FINEST_SINGLE = 1e-7  # of tolerances, which single precision can hold
_FURTHEST = 1e4  # that a step may move an output, if all columns have their largest number
_NEAR = 10.0  # times the tolerance, where few iterations are left
# The share of the value that a step's model has to gain for objective and gradient to be evaluated roughly behind it.
_FAR = 0.01
# Where products are in bfloat16, the share of the residual's size that they can tell from nothing.
_ROUGHLY = 1e-5
# What a step leaves of the gradient's size if it has led well; and if hardly anywhere, since products were too rough.
_WELL, _HARDLY = 0.25, 0.5


@dataclass(frozen=True)
class Step:
    """What a step has seen and done.

    Attributes:
        cost: the mean cost of a row, before the step.
        penalty: λ/2 ‖weight‖², before the step.
        gradient_norm: Euclidean, before the step.
        inner: products with the Hessian.
        length: of the step, 1 for Newton's own; 0: none was taken.
        suboptimality: a bound on (value − optimum) / optimum before the step; infinite where none was found.
        following: the same after the step.
        end: why no further step is worth taking; None: there may be one.
    """

    cost: float
    penalty: float
    gradient_norm: float
    inner: int
    length: float
    suboptimality: float
    following: float
    end: End | None


class NewtonCG(Optimizer):
    """Minimises an `Objective` by Newton steps that conjugate gradients solve as far as it pays.

    A step takes one pass through the rows for the objective and its gradient, and one for each product with the
    Hessian; how far it leads is told by `crossent.solvers.certificate`. Weights are kept in the parameters' precision,
    and sums in double. Nocedal and Wright, Numerical Optimization, 2006, section 7.1.

    Args:
        parameters: weight, (outputs, features), and, if there is one, the bias, (outputs,).
        objective: what is minimised; may be given later, before the first step.
        tol: the bound, relative to the optimum, at which it is done.
        max_inner: products with the Hessian a step, at most.

    Attributes:
        objective: what is minimised.
        last: what the last step has seen and done.
        reached: the objective at the weights that it has led to.
        is_last: whether the next step is the last one, so that it has to say how far from the optimum it ends.
    """

    def __init__(
        self,
        parameters: Iterable[Parameter],
        objective: Objective | None = None,
        *,
        tol: float = 1e-6,
        max_inner: int = 500,
    ) -> None:
        super().__init__(parameters, {"tol": tol, "max_inner": max_inner, "memory": None})
        self.objective = objective
        self.last: Step | None = None
        self.reached: Evaluation | None = None
        self.is_last = False
        self._here: Evaluation | None = None
        self._is_ahead = False  # of the parameters
        self._precondition: Preconditioner | None = None

    def step(self, closure: Callable[[], Any] | None = None) -> float:  # type: ignore[override]
        """Takes a step, and returns the objective's value before it.

        Args:
            closure: called first, for whoever counts on it; its result is not used.
        """
        if closure is not None:
            with torch.enable_grad():
                closure()
        with torch.inference_mode():  # a fifth faster where tensors are small
            memory = self._recalled()
            before = self._advance(memory)
            self._settle(memory)
        return before

    def solve(self, most: int) -> int:
        """Takes steps until there is no more to gain, but at most so many; returns how many.

        Parameters, and what goes into checkpoints, are brought up to date at the end alone, which saves small problems
        a twentieth of their time.
        """
        with torch.inference_mode():
            memory, taken = self._recalled(), 0
            while taken < most and (self.last is None or self.last.end is None):
                taken += 1
                self.is_last = taken == most
                self._advance(memory)
                if self._here is None:  # so that it is evaluated anew
                    self._settle(memory)
            self._settle(memory)
        return taken

    def _advance(self, memory: Memory) -> float:
        """Takes a step, and returns the objective's value before it; `_settle` has to follow."""
        matrix = self._known.matrix
        passes = matrix.passes
        here = self._here or self._first(memory)
        if memory.made is not None:  # or the step before has evaluated it already, and counted that
            passes = matrix.passes
        norm = math.sqrt(dot(here.gradient, here.gradient))
        start = self._better_start(here, memory)
        if start.smallest_lead > 0:
            start = self._exactly(start, memory)
        there, inner, length = start, 0, 0.0
        told = False
        end: End | None = "separable" if start.smallest_lead > 0 else None
        precision, known = memory.precision, memory.relative(start.value)
        if end is None:
            start, there, inner, length, told = self._newton(start, memory)
            self._is_ahead = True
            if memory.kind != "whole":  # since the parameters are kept where a preconditioner is made
                self._move(there.at)
        # A rough value may be too low for a claim.
        before, after = (math.inf if each.is_rough else memory.relative(each.value) for each in (here, there))
        if after <= self._group["tol"]:
            end = "tolerance"
        elif end is None:
            tolerated = self._group["tol"] if told and math.isfinite(known) and after > known / 2 else 0.0
            end = memory.gained(start.value - there.value, start.value, tolerated, told=told)
        if end in ("tolerance", "precision") and self._known.recedes(there.at - start.at):
            end = "endless"
        self.last = Step(here.cost, here.penalty, norm, inner, length, before, after, end)
        self.reached = self._here = there
        memory.is_far = there.is_rough and memory.precision == precision and there is not start
        if memory.precision != precision:  # as a run that goes on would have it
            self._here = self._precondition = None
        elif memory.is_far != there.is_rough:
            self._here = None
        if start is not there:
            self._known.visits.release(start)
        memory.passes += matrix.passes - passes
        return here.value

    def _settle(self, memory: Memory) -> None:
        """Brings parameters and checkpoints up to date."""
        if self._is_ahead and self.reached is not None:
            self._move(self.reached.at)
        # Not in `state`, whose numbers PyTorch turns into the parameters' precision when it is loaded.
        self._group["memory"] = dict(memory.__dict__)

    def begin_anew(self) -> None:
        """Forgets what it knows of the optimum, since the objective has another one now; starts from where it is."""
        memory = self._recalled()
        memory.lower, memory.stalled, memory.smallest = -math.inf, 0.0, 1.0
        memory.passes += 1  # to see where it is by the new objective
        memory.is_far = False
        self._group["memory"] = dict(memory.__dict__)
        self.last = self._here = self._precondition = None

    @property
    def passes(self) -> int:
        """Through the rows so far, also before the run went on."""
        return self._recalled().passes

    # -- one step -------------------------------------------------------------------------------------------

    def _first(self, memory: Memory) -> Evaluation:
        """The objective at the parameters' weights, of a run that begins or goes on."""
        at = self._weights()
        is_far = memory.has_rougher and not at.any() if memory.made is None else memory.is_far
        return self._evaluate(at, memory, roughly=is_far)

    def _exactly(self, evaluation: Evaluation, memory: Memory) -> Evaluation:
        """The same, where it was rough."""
        if not evaluation.is_rough:
            return evaluation
        self._known.visits.release(evaluation)
        return self._evaluate(evaluation.at, memory)

    def _better_start(self, here: Evaluation, memory: Memory) -> Evaluation:
        """Weights of 0, if that is better than weights from which no step has been taken yet."""
        if memory.made is not None or not here.at.any():
            return here
        zeros = self._evaluate(torch.zeros_like(here.at), memory)
        return here if here.value <= zeros.value else zeros

    def _newton(self, start: Evaluation, memory: Memory) -> tuple[Evaluation, Evaluation, int, float, bool]:
        """Takes Newton's step: whence and where it leads, its products, its length, and whether it tells how far."""
        objective, tolerance = self._known, self._group["tol"] * start.value
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
            return self._evaluate(self._rounded(at), memory, roughly=is_far)

        full = evaluate(start.at + direction)
        memory.learn(solved.decrease, start.value - full.value)
        lower = None
        if tells and furthest <= _FURTHEST:
            lower = self._lower(start, full, solved, precondition, memory)
        if memory.kind != "whole":
            slopes = full.gradient.to(memory.vector_dtype)
            remains = dot(slopes, precondition(slopes)) / solved.first if solved.first else 0.0
            memory.leads_well = remains <= _WELL
            memory.precision += memory.is_rough and remains > _HARDLY
        noise = 8 * torch.finfo(memory.dtype).eps * abs(start.value)
        there, length = search(evaluate, objective.visits.release, start, full, direction, noise)
        if lower is not None and not objective.l2:
            # What is no bound is not believed before a step has gained less than that.
            memory.lower = min(lower, 2 * there.value - start.value)
        elif lower is not None and lower <= min(start.value, there.value):  # or it is rounded away
            memory.lower = max(memory.lower, lower)
        return start, there, solved.steps, length, tells

    def _lower(
        self, start: Evaluation, full: Evaluation, solved: Solved, precondition: Preconditioner, memory: Memory
    ) -> float:
        """What the optimum is not below, as a step of length 1 tells; without a penalty an estimate."""
        objective = self._known
        allowed = self._group["tol"] * start.value
        aimed = certificate.aim(objective, start, full, solved.residual, memory.dtype, allowed)
        if objective.l2:
            return certificate.lower_bound(objective, aimed, full, memory.dtype)
        reach = certificate.reach(solved.lanczos, memory.smallest)
        return certificate.estimate(objective, aimed, full, precondition, reach, memory.vector_dtype)

    def _solve_whole(
        self, start: Evaluation, solution: Preconditioner, tolerance: float, memory: Memory
    ) -> tuple[Solved, bool]:
        """Newton's equation by the Hessian itself, and whether to tell how far from the optimum it leads."""
        direction = solution(start.gradient).neg_()
        decrease = -dot(direction, start.gradient) / 2
        solved = Solved(direction, torch.zeros_like(direction), 1, 2 * decrease, decrease, Lanczos())
        return solved, self._has_to_tell(memory) or memory.left(decrease) <= _LEFT * tolerance

    def _has_to_tell(self, memory: Memory) -> bool:
        return self.is_last or memory.stalled > 0

    def _solve(
        self, start: Evaluation, precondition: Preconditioner, tolerance: float, memory: Memory
    ) -> tuple[Evaluation, Solved, bool]:
        """Newton's equation: where, solved how, and whether to tell how far from the optimum its solution leads.

        That is told only when it will be little enough, as far as the last step tells, since the equation has to be
        solved further for it, and nothing may be rough or left out.
        """
        objective = self._known
        gradient = start.gradient.to(memory.vector_dtype)
        moved = precondition(gradient)
        tells = self._has_to_tell(memory)
        about = dot(gradient, moved) / 2  # to be gained
        may_tell = tells or memory.left(about) <= tolerance
        if start.is_rough and may_tell:
            start = self._exactly(start, memory)
            gradient = start.gradient.to(memory.vector_dtype)
            moved = precondition(gradient)
        leaves_out = memory.leads_well and not may_tell and about >= _FAR * start.value
        active = self._active(start, memory) if leaves_out else None
        can_tell = not start.is_rough and active is None

        def enough(progress: Progress) -> bool:
            nonlocal tells
            if can_tell and not tells:
                tells = memory.left(progress.decrease + 2 * progress.size) <= _LEFT * tolerance
            if not tells:
                forcing: float = min(_FORCING, progress.first**0.25)
                return progress.size <= progress.first * forcing**2
            if memory.is_rough and progress.size <= _ROUGHLY * progress.first:
                return True
            allowed = max(_MORE * tolerance, _BOTH * tolerance - memory.left(progress.decrease))
            return certificate.left_by(self._known, progress, memory.smallest, allowed) <= allowed

        solved = solve(
            Hessian(objective, start, memory.vector_dtype, memory.product_dtype, active),
            gradient,
            moved,
            precondition,
            enough,
            self._group["max_inner"],
        )
        memory.since += solved.steps
        if not objective.l2:  # else nobody asks for it
            memory.smallest = min(memory.smallest, solved.lanczos.smallest)
        return start, solved, tells

    def _active(self, evaluation: Evaluation, memory: Memory) -> ActiveRows | None:
        return self._known.active(evaluation, memory.vector_dtype, memory.product_dtype)

    def _preconditioner(self, start: Evaluation, memory: Memory) -> Preconditioner:
        """Made anew where the iterations since the last time have taken longer than that does."""
        objective = self._known
        is_near = memory.relative(start.value) <= _NEAR * self._group["tol"]  # or it has paid, but no longer does
        pays = memory.since >= preconditioners.products_of_blocks(objective) and not is_near
        if memory.made is None or pays or memory.kind != "blocks":
            if memory.kind == "diagonal" and pays and preconditioners.takes_blocks(objective):
                memory.kind = "blocks"
            if pays or memory.kind != "diagonal":
                memory.since = 0
            is_kept = memory.kind != "whole"  # beyond this step
            memory.made = [each.detach().clone() for each in self._group["params"]] if is_kept else []
            memory.made_far = start.is_rough
            memory.smallest = 1.0
            self._precondition = self._made(start, memory)
        elif self._precondition is None:  # of a run that goes on, or of another objective
            passes = objective.matrix.passes
            at = self._weights([each.to(self._weight.device) for each in memory.made])
            made = self._evaluate(at, memory, roughly=memory.made_far)
            self._precondition = self._made(made, memory)
            memory.passes -= objective.matrix.passes - passes  # which were counted when it was made
        return self._precondition

    def _made(self, at: Evaluation, memory: Memory) -> Preconditioner:
        match memory.kind:
            case "whole":
                return preconditioners.whole(self._known, at)
            case "blocks":
                return preconditioners.blocks(self._known, at, memory.vector_dtype)
            case "diagonal":
                return preconditioners.diagonal(self._known, at, memory.vector_dtype)

    # -- parameters and memory ------------------------------------------------------------------------------

    @property
    def _group(self) -> dict[str, Any]:
        return self.param_groups[0]

    @property
    def _weight(self) -> Parameter:
        return cast(Parameter, self._group["params"][0])

    @property
    def _known(self) -> Objective:
        assert self.objective is not None, "NewtonCG needs its objective before the first step"
        return self.objective

    def _recalled(self) -> Memory:
        if self._group["memory"] is not None:
            return Memory(**self._group["memory"])
        if preconditioners.takes_all(self._known):
            return Memory(kind="whole", precision=2)
        if self._known.is_small or self._group["tol"] < _FINEST_SINGLE:
            return Memory(precision=1)
        return Memory(precision=-1 if self._known.takes_bfloat16 else 0)

    def _evaluate(self, at: Tensor, memory: Memory, *, roughly: bool = False) -> Evaluation:
        """The objective at some weights, exactly, or as roughly as products are taken."""
        if not roughly:
            return self._known.evaluate(at, memory.dtype)
        found = self._known.evaluate(at, memory.vector_dtype, memory.product_dtype)
        found.is_rough = True
        return found

    def _weights(self, parameters: list[Tensor] | None = None) -> Tensor:
        """The parameters as the objective takes them."""
        weight, *bias = parameters or self._group["params"]
        return self._known.matrix.weights(weight, bias[0].expand(len(weight)) if bias else None)

    def _rounded(self, at: Tensor) -> Tensor:
        """Weights as the parameters will hold them, in the memory of what is given."""
        return self._known.matrix.rounded(at, self._weight.dtype)

    def _move(self, at: Tensor) -> None:
        self._is_ahead = False
        weight, bias = self._known.matrix.head(at)
        self._weight.copy_(weight)
        if bias is not None:
            self._group["params"][1].copy_(bias)
