"""What a solver has to know of a convex loss: its costs of rows, their slope, how they bend, and their conjugates.

Rows' outputs are (outputs, rows) here, other than elsewhere: along a short last dimension softmax is ten times slower,
and along a short first one it is not.

The conjugates make a certificate. For costs φ_i of rows, linear in the weights, and any slopes α_i that lie where φ_i*
is finite, Fenchel's duality bounds the minimum from below (Rockafellar, Convex Analysis, 1970, section 31). The slopes
that a Newton step aims at, ∇φ_i + ∇²φ_i · u_i for outputs that move by u_i, are such a point near the minimum, and what
they leave of the bound, φ_i(z_i + u_i) + φ_i*(α_i) − ⟨α_i, z_i + u_i⟩, is of the fourth order of u_i.
"""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

#: Some rows: neighbours, or any by their indices, (n,).
Which = slice | Tensor


class Visited(NamedTuple):
    """What is found of some rows.

    Attributes:
        cost: the sum of the costs, a scalar in double precision.
        smallest: of what `ConvexCosts.level` goes by.
        raised: the sum of what the smooth costs, which slopes and second derivatives are of, have above them.
        slack: the sum of what the smooth costs' slopes leave of the costs' own Fenchel's inequality.
    """

    cost: Tensor
    smallest: float
    raised: float = 0.0
    slack: float = 0.0


class ConvexCosts(ABC):
    """The weighted costs of rows as convex functions of their outputs.

    All methods take some of the rows, neighbours or any by their indices, and what belongs to them.

    Attributes:
        total: the sum of the rows' weights, by which the mean divides; of all ranks' rows, once that is known.
        masses: what the rows' targets add up to, (classes,), likewise.
        lightest: the smallest weight of a row, of all ranks' likewise.
        levels: whether the mean slope of each output has to be 0 at the optimum, as an intercept wants it.
        is_unbounded: whether a row's cost can go on falling for ever, so that there may be no minimum.
        enough: the lead of a target's output over the others' with which a row costs nothing; infinite: none is.
        has_gauge: whether one number added to all outputs of a row changes nothing.
        outputs: of a row.
        states: numbers that are kept of a row's outputs, to tell how its cost bends there.
        smoothing: of costs with kinks, how wide these are rounded off: slopes and second derivatives are of smooth
            costs, from which the costs differ the less, the smaller this is set; 0: there are no kinks.
    """

    total: float
    masses: Tensor
    lightest: float = 1.0
    levels: bool = True
    is_unbounded: bool
    enough: float = math.inf
    has_gauge: bool
    outputs: int
    states: int
    smoothing: float = 0.0

    @abstractmethod
    def visit(self, outputs: Tensor, rows: Which, state: Tensor) -> Visited:
        """The sum of the costs, and what goes with it.

        Args:
            outputs: (outputs, rows); turn into the costs' slopes.
            rows: which they are.
            state: (states, rows); is written.
        """

    @abstractmethod
    def bend(self, directions: Tensor, rows: Which, state: Tensor) -> None:
        """Turns directions, (outputs, rows), into their products with the costs' second derivatives."""

    @abstractmethod
    def second_derivatives(self, rows: Which, state: Tensor) -> Tensor:
        """Of each row's cost by each output twice, (outputs, rows)."""

    @abstractmethod
    def hessians(self, rows: Which, state: Tensor) -> Tensor:
        """Of each row's cost by all pairs of outputs, (outputs, outputs, rows)."""

    @abstractmethod
    def hessian_sum(self, rows: Which, state: Tensor) -> Tensor:
        """The sum of `hessians` over the rows, (outputs, outputs)."""

    @abstractmethod
    def aim(self, rows: Which, state: Tensor, there: Tensor, lift: Tensor) -> tuple[Tensor, Tensor]:
        """The slopes that a Newton step aims at, and what they leave of the costs' Fenchel's inequality behind it.

        Where the conjugate does not allow such slopes, others near them are taken that it does allow.

        Args:
            rows: which they are.
            state: of the outputs before the step, (states, rows).
            there: the same behind it.
            lift: (outputs,), by how much more than they do the outputs are to move where the slopes are aimed at.

        Returns:
            The differences of the slopes from those before the step, (outputs, rows), and what they leave at most,
            summed, a scalar.
        """

    @abstractmethod
    def level(self, slopes: Tensor, smallest: float) -> tuple[float, float]:
        """What it costs at most to change slopes of rows so that their mean is 0, as an intercept wants it.

        Args:
            slopes: the mean over all rows, (outputs,), of the slopes that a step aims at.
            smallest: what `visit` has returned behind the step.

        Returns:
            By how much more the slopes leave of Fenchel's inequality, a mean over the rows; and the mean of the
            absolute values of the changes. Infinite where that cannot be done.
        """

    @abstractmethod
    def leads(self, outputs: Tensor, rows: Which) -> Tensor:
        """The smallest lead of a target's output over another class's, a scalar."""


class Cast:
    """Numbers in double precision, handed out in others as they are needed."""

    def __init__(self, values: Tensor) -> None:
        self._copies = {torch.float64: values}

    def like(self, tensor: Tensor) -> Tensor:
        """All of them, in a tensor's precision."""
        found = self._copies.get(tensor.dtype)
        if found is None:
            found = self._copies[tensor.dtype] = self._copies[torch.float64].to(tensor.dtype)
        return found


class OfRows:
    """Numbers of rows, (…, rows), handed out for some of them; where these are neighbours, only once made."""

    def __init__(self, values: Tensor) -> None:
        self._copies = {values.dtype: values}
        self._parts: dict[tuple[int, int, torch.dtype], Tensor] = {}
        self._values = values

    def of(self, rows: Which, like: Tensor | None = None) -> Tensor:
        """Those of some rows, (…, n), in a tensor's precision; None: in their own."""
        dtype = self._values.dtype if like is None else like.dtype
        if isinstance(rows, Tensor):
            return self._all(dtype)[..., rows]
        key = rows.start, rows.stop, dtype
        found = self._parts.get(key)
        if found is None:
            found = self._parts[key] = self._all(dtype)[..., rows]
        return found

    def _all(self, dtype: torch.dtype) -> Tensor:
        if dtype not in self._copies:
            self._copies[dtype] = self._values.to(dtype)
        return self._copies[dtype]


def smallest_lead(outputs: Tensor, targets: Tensor) -> Tensor:
    """The smallest lead of a target's output over another's of its row, a scalar.

    Args:
        outputs: (outputs, rows).
        targets: (1, rows), int64.
    """
    return (outputs.gather(0, targets) - outputs).scatter_(0, targets, torch.inf).amin()
