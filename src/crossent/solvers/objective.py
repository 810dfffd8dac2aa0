"""The convex function that a solver minimises: the mean cost of rows and the penalty, as a function of the weights."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from crossent.data.mapped import Features
from crossent.losses import Loss
from crossent.losses.convex import ConvexCosts, costs
from crossent.losses.convex.base import Which
from crossent.processes import together
from crossent.solvers.design_matrix import DesignMatrix, column_sums
from crossent.solvers.evaluation import Evaluation

#: What is kept of all rows' outputs to multiply by the Hessian; where that would be more, it is computed each time.
KEPT_BYTES = 2**30
# What rows gain at least by a direction that is followed for ever, and the share of it that others may seem to mind.
_GAIN, _ROUNDED = 0.1, 0.02
# Multiply-adds of a pass, up to which double precision takes no longer than it is worth.
_SMALL = 50_000_000


@dataclass
class _Sample:
    """Some rows, ready in memory.

    Attributes:
        rows: which they are, (n,).
        features: (n, columns).
        state: (states, n), at the weights of `evaluation`.
        evaluation: where the rows were looked at last.
    """

    rows: Tensor
    features: Tensor
    state: Tensor
    evaluation: Evaluation | None = None


class Objective:
    """Σ weight · cost / Σ weight + λ/2 ‖weights‖², the intercept not penalised.

    Weights are (outputs, columns) here, those of the shifted features of `DesignMatrix` and, where there is one, the
    intercept in the last column. Where several ranks share the rows, all of them ask for the same at the same time.

    Args:
        loss: a convex one.
        features: (rows, features), of this rank's rows; float32 or float64.
        targets: (rows,), int64; rows with ``loss.ignore_index`` count for nothing.
        sample_weight: (rows,), 0 or more; None: all rows weigh the same.
        l2: λ, 0 or more.
        intercept: whether there is one for each output.
        first: the index of the first of this rank's rows among all.

    Raises:
        NotConvexError: the loss is not convex in the weights.
        ValueError: targets that are no class.
    """

    def __init__(
        self,
        loss: Loss,
        features: Features,
        targets: Tensor,
        sample_weight: Tensor | None = None,
        *,
        outputs: int,
        l2: float = 0.0,
        intercept: bool = True,
        first: int = 0,
    ) -> None:
        counts = targets != loss.ignore_index
        if sample_weight is not None:
            counts &= sample_weight > 0
        if not counts.all():
            rows = counts.nonzero().squeeze(1)
            features = features[rows] if isinstance(features, Tensor) else features.take(rows)
            targets = targets[rows]
            sample_weight = None if sample_weight is None else sample_weight[rows]
        classes = loss.classes(outputs)
        if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < classes:
            raise ValueError(f"targets from {int(targets.min())} to {int(targets.max())}, expected 0 to {classes - 1}")
        self.costs: ConvexCosts = costs(loss, targets, sample_weight, outputs)
        self.outputs = outputs
        self.intercept = intercept
        columns = features.shape[1]
        shift = torch.zeros(columns, dtype=torch.float64, device=targets.device)
        if intercept:
            sums = together.total(column_sums(features).to(targets.device))
            shift = (sums[:-1] / sums[-1].clamp(min=1)).float().double()
        self.matrix = DesignMatrix(features, outputs, intercept=intercept, shift=shift)
        numbers = torch.tensor([self.costs.total, float(len(targets))], dtype=torch.float64, device=targets.device)
        self.total, self.rows = together.total(numbers).tolist()
        self.costs.total = self.total = self.total or 1.0
        self.costs.masses = together.total(self.costs.masses)
        self.costs.lightest = -together.largest(-self.costs.lightest)[0]
        #: The largest number of each column, by size, (columns,); once one pass has seen them.
        self.largest: Tensor | None = None
        self.penalise(l2)
        self.numbers = outputs * self.matrix.columns
        self.is_small = self.rows * self.numbers <= _SMALL
        self._keeps = len(targets) * self.costs.states * (8 if self.is_small else 4) <= KEPT_BYTES
        self._first = first  # of this rank
        self._memory: dict[torch.dtype, Tensor] = {}
        self._samples: dict[int, _Sample] = {}
        self._free: list[Tensor] | None = None
        self._narrow: tuple[list[Tensor], list[Tensor]] | None = None  # states, and the same in another precision
        self.products = 0

    def penalise(self, l2: float) -> None:
        """Sets λ; what was evaluated before is of another objective."""
        self.l2 = l2
        #: λ of each column, (columns,): 0 for that of the intercept; in double and in single precision.
        self.penalties = torch.full((self.matrix.columns,), l2, dtype=torch.float64, device=self.matrix.device)
        if self.intercept:
            self.penalties[-1] = 0
        self.penalties_as = {torch.float64: self.penalties, torch.float32: self.penalties.float()}

    @property
    def penalised(self) -> int:
        """How many of the columns the penalty is of."""
        return self.matrix.columns - self.intercept

    def weights(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """A head's weight, (outputs, features), and bias, (outputs,), as the objective takes them."""
        found = weight.new_empty(self.outputs, self.matrix.columns, dtype=torch.float64)
        found[:, : self.penalised] = weight
        if self.intercept:
            torch.mv(found[:, :-1], self.matrix.shift, out=found[:, -1])
            if bias is not None:
                found[:, -1] += bias
        return found

    def head(self, weights: Tensor) -> tuple[Tensor, Tensor | None]:
        """The weight, (outputs, features), and the bias, (outputs,), of a head, from what the objective takes."""
        if not self.intercept:
            return weights, None
        return weights[:, :-1], torch.addmv(weights[:, -1], weights[:, :-1], self.matrix.shift, alpha=-1)

    def recedes(self, direction: Tensor) -> bool:
        """Whether a direction, (outputs, columns), can be followed for ever: no row minds, and some gain by it.

        Then there is no minimum, since every row's cost falls, or stays as it is, however far one goes. Rows that mind
        by less than a share of what others gain count as rounded.
        """
        if self.l2 or not self.costs.is_unbounded:
            return False
        smallest, largest = torch.inf, 0.0
        for rows, part in self.matrix.parts(direction.dtype):
            moved = self._outputs(direction, part)
            smallest = min(smallest, float(self.costs.leads(moved, rows)))
            largest = max(largest, float(moved.abs().max()))
        worst, largest = together.largest(-smallest, largest)
        return largest > _GAIN and worst <= _ROUNDED * largest

    def release(self, evaluation: Evaluation) -> None:
        """Takes the memory back of what was kept of an evaluation, for the next one; it cannot be used any more."""
        if evaluation.states is not None:
            self._free, evaluation.states = evaluation.states, None

    def evaluate(self, at: Tensor, dtype: torch.dtype) -> Evaluation:
        """The objective and its gradient, by one pass through the rows.

        Args:
            at: weights, (outputs, columns).
            dtype: of the products.
        """
        leads = not self.l2 and self.costs.is_unbounded
        weights = at.to(dtype)
        gradient, cost, smallest, lead = torch.zeros_like(at), 0.0, torch.inf, torch.inf
        largest = torch.zeros_like(self.penalties)
        states: list[Tensor] | None = [] if self._keeps else None
        free, self._free = self._free, None
        for rows, part in self.matrix.parts(dtype):
            outputs = self._outputs(weights, part)
            if leads:
                lead = min(lead, float(self.costs.leads(outputs, rows)))
            if self.largest is None:
                largest = torch.maximum(largest, part.abs().amax(0).to(largest.dtype))
            there = None if free is None else free[len(states or ())]
            if there is None or there.dtype != dtype:
                there = outputs.new_empty(self.costs.states, outputs.shape[1])
            found, low = self.costs.visit(outputs, rows, there)
            cost, smallest = cost + float(found), min(smallest, low)
            gradient += outputs @ part
            if states is not None:
                states.append(there)
        if together.ranks() > 1:
            message = together.total(torch.cat([gradient.flatten(), gradient.new_tensor([cost])]))
            gradient, cost = message[:-1].view_as(gradient), float(message[-1])
            lead, smallest, *all_largest = together.largest(-lead, -smallest, *largest.tolist())
            lead, smallest, largest = -lead, -smallest, largest.new_tensor(all_largest)
        self.largest = largest if self.largest is None else self.largest
        penalised = at * self.penalties
        gradient = torch.add(penalised, gradient, alpha=1 / self.total)
        penalty = float((penalised * at).sum()) / 2 if self.l2 else 0.0
        return Evaluation(at, cost / self.total, penalty, gradient, states, smallest, lead if leads else float("nan"))

    def product(self, evaluation: Evaluation, direction: Tensor) -> Tensor:
        """The Hessian times a direction, (outputs, columns): two products with the features, in its precision."""
        self.products += 1
        found: Tensor | None = None
        for rows, part, state in self._with_states(evaluation, direction.dtype):
            moved = self._outputs(direction, part)
            self.costs.bend(moved, rows, state)
            found = moved @ part if found is None else found.addmm_(moved, part)
        found = together.total(torch.zeros_like(direction) if found is None else found)
        found /= self.total
        return found.addcmul_(direction, self.penalties_as[direction.dtype]) if self.l2 else found

    def aim(self, evaluation: Evaluation, direction: Tensor) -> tuple[Tensor, float]:
        """What a certificate needs of a step, by one pass through the rows.

        Args:
            evaluation: where the step starts.
            direction: of it, (outputs, columns), at full length.

        Returns:
            How far the slopes that the step aims at leave the objective from being stationary behind it, (outputs,
            columns), and the mean of what they leave of Fenchel's inequality.
        """
        found, left = torch.zeros_like(evaluation.at), 0.0
        for rows, part, state in self._with_states(evaluation, direction.dtype):
            moved = self._outputs(direction, part)
            left += float(self.costs.aim(moved, rows, state))
            found += moved @ part
        if together.ranks() > 1:
            message = together.total(torch.cat([found.flatten(), found.new_tensor([left])]))
            found, left = message[:-1].view_as(found), float(message[-1])
        found /= self.total
        found += evaluation.gradient
        return found.addcmul_(direction, self.penalties), left / self.total

    def intercepts(self, evaluation: Evaluation) -> Tensor:
        """The Hessian by the intercepts alone, (outputs, outputs), in double precision."""
        found = torch.zeros(self.outputs, self.outputs, dtype=torch.float64, device=evaluation.at.device)
        if evaluation.states is None:
            for rows, _, state in self._with_states(evaluation, torch.float32):
                found += self.costs.hessian_sum(rows, state)
        else:  # without a pass through the features
            for rows, state in zip(self.matrix.slices, evaluation.states, strict=True):
                found += self.costs.hessian_sum(rows, state)
        return together.total(found).div_(self.total)

    def curvature(
        self, evaluation: Evaluation, dtype: torch.dtype, count: int | None = None
    ) -> Iterator[tuple[Tensor, Which, Tensor, int]]:
        """What tells how the objective bends, by all rows or by some of them, evenly spread.

        Those are the same ones however many ranks share the rows.

        Args:
            evaluation: where.
            dtype: of what is computed.
            count: of rows, about; None: all.

        Yields:
            The features of some rows, (rows, columns), which rows these are, their states, (states, rows), and how
            many rows each of them stands for.
        """
        stride = 1 if count is None else int(self.rows) // count
        if stride <= 1:
            for rows, part, state in self._with_states(evaluation, dtype):
                yield part, rows, state, 1
            return
        sample = self._samples.get(stride)
        if sample is None:
            chosen = torch.arange(-self._first % stride, len(self.matrix), stride, device=self.matrix.device)
            features = self.matrix.take(chosen, torch.float32)
            sample = self._samples[stride] = _Sample(chosen, features, features.new_empty(0))
        if sample.evaluation is not evaluation:
            outputs = evaluation.at.to(torch.float32) @ sample.features.t()
            sample.evaluation, sample.state = evaluation, outputs.new_empty(self.costs.states, len(sample.rows))
            self.costs.visit(outputs, sample.rows, sample.state)
        yield sample.features.to(dtype), sample.rows, sample.state.to(dtype), stride

    def _outputs(self, weights: Tensor, part: Tensor) -> Tensor:
        """(outputs, rows), in memory that the next call takes over."""
        count = self.outputs * len(part)
        memory = self._memory.get(weights.dtype)
        if memory is None or len(memory) < count:
            memory = self._memory[weights.dtype] = weights.new_empty(count)
        return torch.mm(weights, part.t(), out=memory[:count].view(self.outputs, len(part)))

    def _with_states(self, evaluation: Evaluation, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Rows, their features and their states, part by part, in a precision."""
        states = None if evaluation.states is None else self._cast(evaluation.states, dtype)
        weights = evaluation.at.to(dtype)
        for index, (rows, part) in enumerate(self.matrix.parts(dtype)):
            if states is not None:
                yield rows, part, states[index]
                continue
            outputs = self._outputs(weights, part)
            state = outputs.new_empty(self.costs.states, len(part))
            self.costs.visit(outputs, rows, state)
            yield rows, part, state

    def _cast(self, states: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
        if not states or states[0].dtype == dtype:
            return states
        if self._narrow is None or self._narrow[0] is not states:
            self._narrow = states, [state.to(dtype) for state in states]
        return self._narrow[1]
