"""What the steps of a solver leave to those that follow."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from crossent.solvers.preconditioners import Kind

#: Why a solver takes no further step: it is there; it is as near as one likes, but no weights are there; all rows are
#: told apart, so that there is nothing to be near to; the arithmetic has no more digits.
End = Literal["tolerance", "endless", "separable", "precision"]

_TINY = 1e-200  # of a decrease, which is to have powers
# How many times over a step's slopes may leave what the step before has told.
_BEND = 5.0
# Steps that gain nothing, in single precision; fewer in double; and what one counts that gains next to nothing.
_PATIENCE, _NEXT_TO_NOTHING = 3, 0.34


@dataclass
class Memory:
    """What steps leave to those that follow; it goes into checkpoints, so that a run goes on with the same bits.

    Attributes:
        lower: the best lower bound of the optimum so far.
        bend: by how much the last step's quadratic model was wrong, over the model's decrease to the power of 3/2.
        kind: of preconditioner.
        since: products with the Hessian since the preconditioner was made.
        smallest: Ritz value of the preconditioned Hessian since then.
        made: the weights at which it was made, (outputs, columns); None: no step has been taken yet.
        stalled: steps in a row that have gained nothing.
        passes: through the rows.
        precision: −1: products with the Hessian in bfloat16, all else in single; 0: all in single; 1: objective and
            gradient in double; 2: products with the Hessian as well.
        is_far: whether the objective was evaluated roughly where the steps have led.
        made_far: the same where the preconditioner was made.
        made_smoothing: `smoothing` when it was made.
        leads_well: whether the last step has led well, so that the next one may leave something out.
        smoothing: how far kinks are rounded off; 0: there are none.
        exact: (outputs, columns), where the steps have led, before that was rounded to what the parameters hold; None:
            it is the same.
        largest: number of each column, as the first evaluation has found it in its precision, (columns,).
        rounding: by how much more the value is where the parameters are; infinite as long as nobody asks for it.
    """

    lower: float = -math.inf
    bend: float = math.inf
    kind: Kind = "diagonal"
    since: int = 0
    smallest: float = 1.0
    made: Tensor | None = None
    stalled: float = 0.0
    passes: int = 0
    precision: int = 0
    is_far: bool = False
    made_far: bool = False
    made_smoothing: float = 0.0
    leads_well: bool = True
    smoothing: float = 0.0
    exact: Tensor | None = None
    largest: Tensor | None = None
    rounding: float = 0.0

    @property
    def dtype(self) -> torch.dtype:
        """Of objective and gradient."""
        return torch.float64 if self.precision > 0 else torch.float32

    @property
    def is_rough(self) -> bool:
        """Whether products are good to two or three digits only."""
        return self.precision < 0

    @property
    def has_rougher(self) -> bool:
        """Whether a rougher arithmetic than that of objective and gradient is faster: that of the products."""
        return abs(self.precision) == 1

    @property
    def product_dtype(self) -> torch.dtype:
        """Of what is multiplied with the Hessian."""
        return torch.bfloat16 if self.is_rough else self.vector_dtype

    @property
    def vector_dtype(self) -> torch.dtype:
        """Of what the products are added up to."""
        return torch.float64 if self.precision == 2 else torch.float32

    def relative(self, value: float) -> float:
        """How far a value is above the optimum at most, relative to that; infinite where no bound is known."""
        if value <= 0:  # which no cost is below
            return 0.0
        return (value - self.lower) / self.lower if self.lower > 0 else math.inf

    def learn(self, decrease: float, gain: float) -> None:
        """Takes in by how much a step's quadratic model was to decrease, and how much it has gained."""
        self.bend = abs(decrease - gain) / decrease / math.sqrt(decrease) if decrease > _TINY else math.inf

    def left(self, decrease: float) -> float:
        """What the slopes that a step aims at may leave: it is of the fourth order of the step's length."""
        return 0.0 if decrease <= _TINY else (_BEND * self.bend * decrease) ** 2

    def gained(self, gain: float, value: float, tolerated: float, *, told: bool) -> End | None:
        """Counts steps that gain nothing; first the arithmetic is made finer, and then there is no more to gain.

        Args:
            gain: of the step.
            value: of the objective before it.
            tolerated: a share of the value that is next to nothing.
            told: whether the step has told how far it leads, without which there is no end.
        """
        if gain <= torch.finfo(self.dtype).eps * abs(value):
            self.stalled += 1.0
        elif gain <= tolerated * abs(value):
            self.stalled += _NEXT_TO_NOTHING
        else:
            self.stalled = 0.0
        if self.stalled < _PATIENCE - abs(self.precision) or not told:
            return None
        if self.precision == 2:
            return "precision"
        self.precision, self.stalled = self.precision + 1, 0.0
        return None
