"""The convex function that a solver minimises: the mean cost of rows and the penalty, as a function of the weights."""

import math

import torch
from torch import Tensor

from crossent.data.mapped import Features
from crossent.losses import Loss
from crossent.losses.convex import ConvexCosts, costs
from crossent.processes import together
from crossent.solvers import machine
from crossent.solvers.active_rows import ActiveRows, active_rows
from crossent.solvers.design_matrix import DesignMatrix
from crossent.solvers.evaluation import Evaluation, dot
from crossent.solvers.visits import Visits

# What rows gain at least by a direction that is followed for ever, and the share of it that others may seem to mind.
_GAIN, _ROUNDED = 0.1, 0.02
# Multiply-adds of a pass, up to which double precision takes no longer than it is worth.
_SMALL = 50_000_000


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
        if len(targets):
            least, most = (int(each) for each in targets.aminmax())
            if not 0 <= least <= most < classes:
                raise ValueError(f"targets from {least} to {most}, expected 0 to {classes - 1}")
        self.costs: ConvexCosts = costs(loss, targets, sample_weight, outputs)
        self.costs.levels = intercept
        self.smoothing = self.costs.smoothing  # with which to begin
        self.outputs = outputs
        self.intercept = intercept
        self.matrix = DesignMatrix(features, outputs, intercept=intercept)
        self.total, self.rows = self.costs.total, float(len(targets))
        if together.ranks() > 1:
            self.total, self.rows = together.add_up([self.costs.masses], [self.total, self.rows])
        self.costs.total = self.total = self.total or 1.0
        self.costs.lightest = -together.largest(-self.costs.lightest)[0]
        #: The largest number of each column, by size, (columns,); once one pass has seen them.
        self.largest: Tensor | None = None
        self.longest = math.inf  # a row may be: the norm of that
        self.penalise(l2)
        self.numbers = outputs * self.matrix.columns
        self.is_small = self.rows * self.numbers <= _SMALL
        self.matrix.has_ones &= self.is_small
        kept = len(targets) * self.costs.states * (8 if self.is_small else 4)
        keeps = kept <= machine.kept_bytes(targets.device)
        takes = keeps and not self.is_small and machine.multiplies_bfloat16(targets.device)
        # As all ranks can, since all have to ask one another for the same.
        none_kept, none_taken, none_left = together.any_of(not keeps, not takes, not (keeps and self.matrix.fits))
        self.visits = Visits(self.matrix, self.costs, keeps=not none_kept, first=first)
        #: Whether products may be in bfloat16: where they are many, and the machines of all ranks are fast at it.
        self.takes_bfloat16 = not none_taken
        self._may_leave_out = not none_left
        if self.takes_bfloat16:
            self.matrix.multiplied = torch.bfloat16
        #: With the Hessian, so far.
        self.products = 0
        self._active: tuple[Evaluation, ActiveRows | None] | None = None

    def penalise(self, l2: float) -> None:
        """Sets λ; what was evaluated before is of another objective."""
        self.l2 = l2
        #: λ of each column, (columns,): 0 for that of the intercept; in double and in single precision.
        self.penalties = torch.full((self.matrix.columns,), l2, dtype=torch.float64, device=self.matrix.device)
        if self.intercept:
            self.penalties[-1] = 0
        self.penalties_as = {torch.float64: self.penalties, torch.float32: self.penalties.float()}

    def learn_largest(self, largest: Tensor) -> None:
        """Takes in the largest number of each column, by size, (columns,)."""
        self.largest, self.longest = largest, float(torch.linalg.vector_norm(largest))

    @property
    def penalised(self) -> int:
        """How many of the columns the penalty is of."""
        return self.matrix.columns - self.intercept

    def furthest(self, direction: Tensor, limit: float) -> float:
        """By how much a direction moves an output at most, if all columns have their largest number.

        Up to a limit a rougher bound will do, which takes a fifth of the time where tensors are small.
        """
        if self.largest is None:
            return 0.0
        rough = math.sqrt(dot(direction, direction)) * self.longest
        return rough if rough <= limit else float((direction.abs() @ self.largest).max())

    def recedes(self, direction: Tensor) -> bool:
        """Whether a direction, (outputs, columns), can be followed for ever: no row minds, and some gain by it.

        Then there is no minimum, since every row's cost falls, or stays as it is, however far one goes. Rows that mind
        by less than a share of what others gain count as rounded.
        """
        if self.l2 or not self.costs.is_unbounded:
            return False
        smallest, largest = torch.inf, 0.0
        for rows, part in self.matrix.parts(direction.dtype):
            moved = self.visits.outputs(direction, part)
            smallest = min(smallest, float(self.costs.leads(moved, rows)))
            largest = max(largest, float(moved.abs().max()))
        worst, largest = together.largest(-smallest, largest)
        return largest > _GAIN and worst <= _ROUNDED * largest

    def evaluate(self, at: Tensor, dtype: torch.dtype, multiplied: torch.dtype | None = None) -> Evaluation:
        """The objective and its gradient, by one pass through the rows.

        Args:
            at: weights, (outputs, columns).
            dtype: of the rows' outputs and costs.
            multiplied: dtype of what is multiplied; None: the same.
        """
        leads = not self.l2 and (self.costs.is_unbounded or self.costs.enough < math.inf)
        weights = at.to(dtype)
        is_zero = not self.is_small and not at.any()  # where every run begins
        gradient = torch.zeros_like(at)
        cost, raised, slack, smallest, lead = 0.0, 0.0, 0.0, torch.inf, torch.inf
        largest = torch.zeros_like(self.penalties) if self.largest is None else self.largest
        states: list[Tensor] = []
        for rows, part in self.matrix.parts(multiplied or dtype):
            outputs = self.visits.zeros(dtype, part) if is_zero else self.visits.outputs(weights, part)
            if leads:
                lead = min(lead, float(self.costs.leads(outputs, rows)))
            if self.largest is None:
                size = part.abs().amax(0).to(largest.dtype) * (1 + torch.finfo(part.dtype).eps)  # as it was rounded
                least = size if len(size) == len(largest) else torch.cat([size, size.new_ones(1)])
                largest = torch.maximum(largest, least)
            state = self.visits.state(outputs)
            found = self.costs.visit(outputs, rows, state)
            cost, smallest = cost + float(found.cost), min(smallest, found.smallest)
            raised, slack = raised + found.raised, slack + found.slack
            self.visits.add_sums(gradient, outputs, part)
            if self.visits.keeps:
                states.append(state)
        if together.ranks() > 1:
            cost, raised, slack = together.add_up([gradient], [cost, raised, slack])
            lead, smallest, *all_largest = together.largest(-lead, -smallest, *largest.tolist())
            lead, smallest, largest = -lead, -smallest, largest.new_tensor(all_largest)
        if self.largest is None:
            self.learn_largest(largest)
        penalty = 0.0
        gradient /= self.total
        if self.l2:
            penalised = at * self.penalties
            gradient += penalised
            penalty = dot(penalised, at) / 2
        kept = states if self.visits.keeps else None
        return Evaluation(
            at,
            cost / self.total,
            penalty,
            gradient,
            kept,
            smallest,
            lead if leads else float("nan"),
            raised / self.total,
            slack / self.total,
        )

    def active(self, evaluation: Evaluation, dtype: torch.dtype, features: torch.dtype) -> ActiveRows | None:
        """The rows that products may go by far from the optimum, as `active_rows` has it; None: all."""
        if not self._may_leave_out:  # what is chosen would take too much memory, or be read again
            return None
        if self._active is None or self._active[0] is not evaluation:
            self._active = evaluation, active_rows(self.visits, self.costs, evaluation, dtype, features)
        return self._active[1]

    def aim(self, start: Evaluation, there: Evaluation, lift: Tensor, dtype: torch.dtype) -> tuple[Tensor, float]:
        """What a certificate needs of a step, by one pass through the rows.

        Args:
            start: where the step starts.
            there: where it has led.
            lift: (outputs,), by how much more than that the intercepts are to move where the slopes are aimed at.
            dtype: of the products.

        Returns:
            How far the slopes that the step aims at leave the objective from being stationary behind it, (outputs,
            columns), and the mean of what they leave of Fenchel's inequality.
        """
        found, left, lift = torch.zeros_like(start.at), 0.0, lift.to(dtype)
        for rows, part, (state, behind) in self.visits.known(dtype, start, there):
            changed, more = self.costs.aim(rows, state, behind, lift)
            left += float(more)
            self.visits.add_sums(found, changed, part)
        if together.ranks() > 1:
            (left,) = together.add_up([found], [left])
        found /= self.total
        found += start.gradient
        return found.addcmul_(there.at - start.at, self.penalties), left / self.total

    def aimed_slopes(self, start: Evaluation, there: Evaluation, lift: Tensor, dtype: torch.dtype) -> Tensor:
        """The mean slopes of the intercepts that `aim` finds, (outputs,), from what is kept of both."""
        found, lift = start.at.new_zeros(self.outputs), lift.to(dtype)
        for rows, (state, behind) in self.visits.kept(dtype, start, there):
            changed, _ = self.costs.aim(rows, state, behind, lift)
            found += changed.sum(1)
        return together.total(found).div_(self.total).add_(start.gradient[:, -1])

    def intercepts(self, evaluation: Evaluation) -> Tensor:
        """The Hessian by the intercepts alone, (outputs, outputs), in double precision."""
        found = torch.zeros(self.outputs, self.outputs, dtype=torch.float64, device=evaluation.at.device)
        for rows, (state,) in self.visits.kept(None, evaluation):
            found += self.costs.hessian_sum(rows, state)
        return together.total(found).div_(self.total)
