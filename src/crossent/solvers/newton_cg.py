"""Truncated Newton for convex losses, which says how far from the optimum it is."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from crossent.solvers import preconditioners, smoothing
from crossent.solvers.evaluation import Evaluation, dot
from crossent.solvers.memory import End, Memory
from crossent.solvers.newton_steps import NewtonSteps
from crossent.solvers.objective import Objective

_FINEST_SINGLE = 1e-7  # of tolerances, which single precision can hold
_ENOUGH = 1.001  # times as far as is enough, since it is rounded


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
        max_inner: int = 1000,
    ) -> None:
        super().__init__(parameters, {"tol": tol, "max_inner": max_inner, "memory": None})
        self.objective = objective
        self.last: Step | None = None
        self.reached: Evaluation | None = None
        self.is_last = False
        self._here: Evaluation | None = None
        self._is_ahead = False  # of the parameters
        self._taking: NewtonSteps | None = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from where another solver was."""
        super().load_state_dict(state_dict)
        self._here = self._taking = None

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
        self._known.costs.smoothing = memory.smoothing
        if memory.largest is not None and self._known.largest is None:
            self._known.learn_largest(self._steps.anew(memory.largest))
        here = self._here or self._first(memory)
        if memory.made is not None:  # or the step before has evaluated it already, and counted that
            passes = matrix.passes
        norm = math.sqrt(dot(here.gradient, here.gradient))
        memory.largest = self._known.largest
        start = self._better_start(here, memory)
        if start.smallest_lead > 0:
            start = self._steps.exactly(start, memory)
        there, inner, length, decrease = start, 0, 0.0, math.inf
        told = False
        end: End | None = None
        precision, known = memory.precision, memory.relative(start.value)
        if start.smallest_lead > 0 and math.isinf(self._known.costs.enough):
            end = "separable"
        elif start.smallest_lead > 0:
            there, length = self._where_nothing_costs(start, memory)
            self._is_ahead = True
        else:
            self._steps.is_last = self.is_last
            taken = self._steps.take(start, memory)
            start, there, length, told = taken.start, taken.there, taken.length, taken.tells
            inner, decrease = taken.solved.steps, taken.solved.decrease
            self._is_ahead = True
        # A rough value may be too low for a claim.
        before = math.inf if here.is_rough else memory.relative(here.value + memory.rounding)
        held = there
        if memory.smoothing and self._weight.dtype != torch.float64:
            is_due = self.is_last or math.isfinite(memory.lower)
            held = self._steps.evaluate(self._steps.rounded(there.at.clone()), memory) if is_due else there
            memory.rounding = held.value - there.value if is_due else math.inf
        after = math.inf if there.is_rough else memory.relative(held.value)
        if after <= self._group["tol"]:
            end = "tolerance"
        elif end is None:
            tolerated = self._group["tol"] if told and math.isfinite(known) and after > known / 2 else 0.0
            tolerated = max(tolerated, smoothing.tolerated(memory.smoothing, self._known.smoothing, there))
            end = memory.gained(start.smooth - there.smooth, start.value, tolerated, told=told)
        if end in ("tolerance", "precision") and self._known.recedes(there.at - start.at):
            end = "endless"
        if (end is not None or self.is_last) and held is not there:
            there, memory.rounding = held, 0.0
        self.last = Step(here.cost, here.penalty, norm, inner, length, before, after, end)
        self.reached = self._here = there
        memory.is_far = there.is_rough and memory.precision == precision and there is not start
        if memory.precision != precision:  # as a run that goes on would have it
            self._here = None
            self._steps.forget()
        elif memory.is_far != there.is_rough:
            self._here = None
        finer = smoothing.finer(memory.smoothing, self._known.smoothing, there, decrease, self._steps.allowed(there))
        if end is None and finer < memory.smoothing:
            memory.smoothing, memory.stalled = finer, 0.0
            memory.passes += 1  # to see where it is by that
            self._here = None
        if start is not there:
            self._known.visits.release(start)
        memory.passes += matrix.passes - passes
        return here.value

    def _settle(self, memory: Memory) -> None:
        """Brings parameters and checkpoints up to date."""
        if self._is_ahead and self.reached is not None:
            self._move(self.reached.at)
        if memory.smoothing and self.reached is not None:  # near kinks too much hangs on the last digits
            memory.exact = self.reached.at
        # Not in `state`, whose numbers PyTorch turns into the parameters' precision when it is loaded.
        self._group["memory"] = dict(memory.__dict__)

    def begin_anew(self) -> None:
        """Forgets what it knows of the optimum, since the objective has another one now; starts from where it is."""
        memory = self._recalled()
        memory.lower, memory.stalled, memory.smallest = -math.inf, 0.0, 1.0
        memory.passes += 1  # to see where it is by the new objective
        memory.is_far = False
        memory.smoothing, memory.exact = self._known.smoothing, None
        self._group["memory"] = dict(memory.__dict__)
        self.last = self._here = None
        self._steps.forget()

    @property
    def passes(self) -> int:
        """Through the rows so far, also before the run went on."""
        return self._recalled().passes

    # -- one step -------------------------------------------------------------------------------------------

    def _first(self, memory: Memory) -> Evaluation:
        """The objective at the parameters' weights, of a run that begins or goes on."""
        at = self._weights() if memory.exact is None else self._steps.anew(memory.exact)
        is_far = memory.has_rougher and not at.any() if memory.made is None else memory.is_far
        return self._steps.evaluate(at, memory, roughly=is_far)

    def _better_start(self, here: Evaluation, memory: Memory) -> Evaluation:
        """Weights of 0, if that is better than weights from which no step has been taken yet."""
        if memory.made is not None or not here.at.any():
            return here
        zeros = self._steps.evaluate(torch.zeros_like(here.at), memory)
        return here if here.smooth <= zeros.smooth else zeros

    def _where_nothing_costs(self, start: Evaluation, memory: Memory) -> tuple[Evaluation, float]:
        """Where all rows lead by enough, and how many times as far from 0 that is."""
        times = _ENOUGH * self._known.costs.enough / start.smallest_lead
        return self._steps.evaluate(self._steps.rounded(start.at * times), memory), times

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

    @property
    def _steps(self) -> NewtonSteps:
        """Of the objective that it has."""
        if self._taking is None or self._taking.objective is not self.objective:
            group = self._group
            self._taking = NewtonSteps(self._known, self._weight.dtype, tol=group["tol"], max_inner=group["max_inner"])
        return self._taking

    def _recalled(self) -> Memory:
        if self._group["memory"] is not None:
            return Memory(**self._group["memory"])
        if preconditioners.takes_all(self._known):
            return Memory(kind="whole", precision=2, smoothing=self._known.smoothing)
        if self._known.is_small or self._group["tol"] < _FINEST_SINGLE or self._known.smoothing:
            return Memory(precision=1, smoothing=self._known.smoothing)
        return Memory(precision=-1 if self._known.takes_bfloat16 else 0)

    def _weights(self) -> Tensor:
        """The parameters as the objective takes them."""
        weight, *bias = self._group["params"]
        return self._known.matrix.weights(weight, bias[0].expand(len(weight)) if bias else None)

    def _move(self, at: Tensor) -> None:
        self._is_ahead = False
        weight, bias = self._known.matrix.head(at)
        self._weight.copy_(weight)
        if bias is not None:
            self._group["params"][1].copy_(bias)
