"""What is recorded of some steps beside their cost: how many rows were right, and how long weights and gradient are."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from crossent.data.loader import Batch, evaluation_rows
from crossent.head import Head, of_all_classes
from crossent.judging import predict
from crossent.metrics import wide
from crossent.processes import together
from crossent.processes.grid import Grid

# So many of the first points have details, and half as many between any number of points and twice that.
_FIRST = 12


def has_details(step: int, every: int, end: int) -> bool:
    """Whether a step has more recorded than its cost: ever fewer do, since a curve is read over the whole of it.

    It depends on the step alone, so that a run that goes on has the same points as one that was never stopped.

    Args:
        step: its index.
        every: steps from one point of the cost to the next.
        end: steps of the run, of which the last point has details, too; −1: nobody knows.
    """
    point, rest = divmod(step, every)
    return not rest and (point % (1 << (point // _FIRST).bit_length()) == 0 or step + every >= end > 0)


class Details:
    """Finds the details of a step, with its gradient there and before the update; all ranks do so together.

    Args:
        head: weight and bias.
        grid: how the ranks share rows and classes.
        ignored: the target of rows that do not count.

    Attributes:
        are_due: whether the step under way has details.
    """

    def __init__(self, head: Head, grid: Grid, ignored: int) -> None:
        self._head = head
        self._grid = grid
        self._ignored = ignored
        self._every, self._end = 0, -1
        self.are_due = False

    def begin(self, every: int, end: int) -> None:
        """Begins a run.

        Args:
            every: steps from one point of the cost to the next; 0: there are none.
            end: steps of the run; −1: nobody knows.
        """
        self._every, self._end = every, end

    def begin_step(self, step: int) -> None:
        """Begins the step with this index."""
        every = self._every
        self.are_due = every > 0 and not step % every and has_details(step, every, self._end)

    def find(self, batch: Batch, features: Tensor, parameters: Iterable[nn.Parameter]) -> dict[str, float]:
        """How many of the batch's rows the weights are right about, and the norms of gradient and weight.

        Args:
            batch: the last one of the step.
            features: its features, (rows, columns), in the precision of the weights.
            parameters: those that are trained.
        """
        with torch.no_grad():
            gradients = [(each, each.grad) for each in parameters if each.grad is not None]
            weight = self._head.weight
            gradient_norm, weight_norm = self.norms(gradients, [(weight, weight)])
            accuracy = self._accuracy(batch, features)
        return {"accuracy": accuracy, "gradient_norm": gradient_norm, "weight_norm": weight_norm}

    def norms(self, *groups: list[tuple[nn.Parameter, Tensor]]) -> list[float]:
        """The Euclidean norm of each group of tensors, over the classes of all ranks.

        Args:
            groups: tensors, each behind the parameter that it belongs to.
        """
        classes = self._grid.class_ranks
        if classes is None:
            return [math.hypot(*(torch.linalg.vector_norm(each).item() for _, each in group)) for group in groups]
        sharded = {id(parameter) for parameter in self._head.sharded.values()}
        own, shared = self._head.weight.new_zeros(2, len(groups), dtype=torch.float64)
        for index, group in enumerate(groups):
            for parameter, tensor in group:
                square = torch.linalg.vector_norm(tensor, dtype=torch.float64).square()
                (own if id(parameter) in sharded else shared)[index] += square
        classes.total(own)
        found: list[float] = (own + shared).sqrt().tolist()
        return found

    def _accuracy(self, batch: Batch, features: Tensor) -> float:
        head, shard = self._head, self._head.shard
        bias = None if head.output_bias is None else head.output_bias.unsqueeze(1)
        step = evaluation_rows(shard.classes, features.shape[1])
        right, whole, precision = 0.0, 0.0, wide(features)  # weights of rows
        for first in range(0, len(features), step):
            part, targets = features[first : first + step].T, batch.targets[first : first + step]
            # A row of numbers for each class: to compare few along a row of theirs takes several times as long.
            outputs = head.weight @ part if bias is None else torch.addmm(bias, head.weight, part)
            if len(outputs) == shard.of:  # whose largest is at hand: the cost is finite, and so are they
                predicted = outputs.max(dim=0).indices
            else:
                predicted, _ = predict(of_all_classes(outputs.T, shard.classes), shard)
            counts = targets != self._ignored
            hits = counts & (predicted == targets)
            if batch.weights is not None:
                weights = batch.weights[first : first + step]
                counts, hits = counts * weights, hits * weights
            right += hits.sum(dtype=precision).item()
            whole += counts.sum(dtype=precision).item()
        if together.ranks() > 1:
            sums = torch.tensor([right, whole], dtype=torch.float64, device=features.device)
            right, whole = together.total(sums, self._grid.of_my_classes).tolist()
        return right / (whole or 1.0)
