"""What the rows of classes were taken for."""

from typing import NamedTuple

import torch
from torch import Tensor

from crossent.data.loader import Batch


class Confusion(NamedTuple):
    """What the rows of some classes were taken for.

    Attributes:
        classes: (classes,), which.
        places: (all classes,), where each of all classes is among the columns; the last column is all others.
        counts: (classes, classes), or (classes, classes + 1) where there are others; weights of rows.
    """

    classes: Tensor
    places: Tensor
    counts: Tensor

    @classmethod
    def empty(cls, classes: Tensor, of: int) -> "Confusion":
        """Without rows."""
        places = torch.full((of,), len(classes))
        places[classes] = torch.arange(len(classes))
        return cls(classes, places, torch.zeros(len(classes), len(classes) + (len(classes) < of), dtype=torch.float64))

    @classmethod
    def of_all(cls, counts: Tensor) -> "Confusion":
        """Of all classes, given the weights of rows by class and prediction, (classes, classes)."""
        return cls(torch.arange(len(counts)), torch.arange(len(counts)), counts.cpu())

    def add(self, batch: Batch, predicted: Tensor, ignored: int) -> None:
        """Takes in rows of these classes, but for those with the target that is ignored."""
        targets, predicted = batch.targets.cpu(), predicted.cpu()
        weights = torch.ones(len(targets)) if batch.weights is None else batch.weights.cpu()
        named = targets != ignored
        cells = self.places[targets[named]] * self.counts.shape[1] + self.places[predicted[named]]
        self.counts.view(-1).index_add_(0, cells, weights[named].double())

    @property
    def shares(self) -> Tensor:
        """Of each class's rows, (classes, columns); 0 where it has none."""
        return self.counts / self.counts.sum(dim=1, keepdim=True).clamp(min=1e-300)

    def names(self, of_all: tuple[str, ...]) -> list[str]:
        """Of the columns."""
        others = ["others"] * (self.counts.shape[1] - len(self.classes))
        return [of_all[index] for index in self.classes.tolist()] + others
