"""Goes through the rows part by part, with what is known of them at some weights."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crossent.losses.convex import ConvexCosts
from crossent.losses.convex.base import Which
from crossent.solvers.design_matrix import DesignMatrix
from crossent.solvers.evaluation import Evaluation


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


class Visits:
    """The rows' features and states, kept from an evaluation or made anew, in memory that is used again and again.

    Args:
        matrix: the features.
        costs: whose states these are.
        keeps: whether an evaluation's states are kept.
        first: the index of the first of this rank's rows among all.
    """

    def __init__(self, matrix: DesignMatrix, costs: ConvexCosts, *, keeps: bool, first: int) -> None:
        self.keeps = keeps
        self._matrix = matrix
        self._costs = costs
        self.first = first
        self._memory: dict[torch.dtype, dict[int, Tensor]] = {}  # by precision and rows, over one another
        self._free: dict[tuple[torch.dtype, int], list[Tensor]] = {}
        self._samples: dict[int, _Sample] = {}
        self._narrow: tuple[list[Tensor], list[Tensor]] | None = None  # states, and the same in another precision

    def outputs(self, weights: Tensor, part: Tensor) -> Tensor:
        """Of some rows, (outputs, rows), in the weights' precision and in memory that the next call takes over."""
        found, count = self._own(weights.dtype, len(part)), part.shape[1]
        has_ones, is_narrow = count == weights.shape[1], part.dtype != weights.dtype
        if has_ones and not is_narrow:
            return torch.mm(weights, part.t(), out=found)
        weights, intercepts = weights[:, :count], weights[:, count:]
        if not is_narrow:
            return torch.addmm(intercepts, weights, part.t(), out=found)
        narrow = torch.mm(weights.to(part.dtype), part.t(), out=self._own(part.dtype, len(part)))
        return found.copy_(narrow) if has_ones else torch.add(narrow, intercepts, out=found)

    def add_sums(self, found: Tensor, slopes: Tensor, part: Tensor, share: float = 1.0) -> None:
        """Adds what some rows' slopes, (outputs, rows), come to by the weights, (outputs, columns), times a share."""
        count = part.shape[1]
        has_ones = count == found.shape[1]
        inner = found if has_ones else found[:, :count]
        if slopes.dtype == part.dtype == found.dtype:
            inner.addmm_(slopes, part, alpha=share)
        else:
            inner.add_(torch.mm(slopes.to(part.dtype), part), alpha=share)
        if not has_ones:
            found[:, count].add_(slopes.sum(1), alpha=share)

    def zeros(self, dtype: torch.dtype, part: Tensor) -> Tensor:
        """The outputs by weights of 0, likewise."""
        return self._own(dtype, len(part)).zero_()

    def state(self, outputs: Tensor) -> Tensor:
        """Memory for the states of as many rows, (states, rows)."""
        free = self._free.get((outputs.dtype, outputs.shape[1]))
        return free.pop() if free else outputs.new_empty(self._costs.states, outputs.shape[1])

    def release(self, evaluation: Evaluation) -> None:
        """Takes the memory back of what was kept of an evaluation, for the next one; it cannot be used any more."""
        states, evaluation.states = evaluation.states, None
        for state in states or ():
            self._free.setdefault((state.dtype, state.shape[1]), []).append(state)

    def holds(self, evaluation: Evaluation, dtype: torch.dtype) -> bool:
        """Whether all that `known` goes through stays in memory, with the features in a precision."""
        return evaluation.states is not None and self._matrix.is_ready(dtype)

    def known(
        self, dtype: torch.dtype, *evaluations: Evaluation, features: torch.dtype | None = None
    ) -> Iterator[tuple[slice, Tensor, list[Tensor]]]:
        """Rows, their features and their states at some weights, part by part, in a precision.

        Args:
            dtype: of states, and of features for which no other is given.
            evaluations: at which weights.
            features: their precision.
        """
        kept = [None if each.states is None else self._cast(each.states, dtype) for each in evaluations]
        for index, (rows, part) in enumerate(self._matrix.parts(features or dtype)):
            found: list[Tensor] = []
            for evaluation, states in zip(evaluations, kept, strict=True):
                if states is not None:
                    found.append(states[index])
                    continue
                outputs = self.outputs(evaluation.at.to(dtype), part)
                found.append(outputs.new_empty(self._costs.states, len(part)))
                self._costs.visit(outputs, rows, found[-1])
            yield rows, part, found

    def kept(self, dtype: torch.dtype | None, *evaluations: Evaluation) -> Iterator[tuple[slice, Sequence[Tensor]]]:
        """Rows and their states at some weights, part by part, without a pass through the features if they are kept.

        Args:
            dtype: of the states; None: as they are.
            evaluations: at which weights.
        """
        if not all(each.states is not None for each in evaluations):
            for rows, _, states in self.known(dtype or torch.float32, *evaluations):
                yield rows, states
            return
        kept = [each.states if dtype is None else self._cast(each.states, dtype) for each in evaluations if each.states]
        for rows, *found in zip(self._matrix.slices, *kept, strict=True):
            yield rows, found

    def evenly(
        self, evaluation: Evaluation, dtype: torch.dtype, stride: int
    ) -> Iterator[tuple[Tensor, Which, Tensor, int]]:
        """All rows, or every so many, which are the same ones however many ranks share the rows.

        Args:
            evaluation: where.
            dtype: of what is found.
            stride: from row to row; 1: all of them.

        Yields:
            The features of some rows, (rows, columns), which rows these are, their states, (states, rows), and how
            many rows each of them stands for.
        """
        if stride <= 1:
            for rows, part, (state,) in self.known(dtype, evaluation):
                yield self._matrix.with_ones(part), rows, state, 1
            return
        sample = self._samples.get(stride)
        if sample is None:
            device = self._matrix.device
            chosen = torch.arange(-self.first % stride, len(self._matrix), stride, device=device)
            features = self._matrix.take(chosen, torch.float32)
            sample = self._samples[stride] = _Sample(chosen, features, features.new_empty(0))
        if sample.evaluation is not evaluation:
            outputs = evaluation.at.to(torch.float32) @ sample.features.t()
            sample.evaluation, sample.state = evaluation, outputs.new_empty(self._costs.states, len(sample.rows))
            self._costs.visit(outputs, sample.rows, sample.state)
        yield sample.features.to(dtype), sample.rows, sample.state.to(dtype), stride

    def _own(self, dtype: torch.dtype, rows: int) -> Tensor:
        """Memory for some rows' outputs, (outputs, rows)."""
        views = self._memory.setdefault(dtype, {})
        found = views.get(rows)
        if found is None:
            numbers = self._costs.outputs * rows
            largest = views[max(views)] if views else torch.empty(0, dtype=dtype, device=self._matrix.device)
            if largest.numel() < numbers:
                views.clear()
                largest = largest.new_empty(numbers)
            found = views[rows] = largest.view(-1)[:numbers].view(-1, rows)
        return found

    def _cast(self, states: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
        if not states or states[0].dtype == dtype:
            return states
        if self._narrow is None or self._narrow[0] is not states:
            self._narrow = states, [state.to(dtype) for state in states]
        return self._narrow[1]
