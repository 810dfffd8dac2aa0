"""Rows in memory, and what a model has to know of them."""

from dataclasses import dataclass, replace
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True)
class Table:
    """Labelled rows.

    Attributes:
        features: (rows, columns), floating.
        targets: (rows,), int64, from 0 to classes - 1, or ``loss.ignore_index`` where a row is to count for nothing.
        classes: the names of the classes.
        columns: the names of the features.
        weights: (rows,), 0 or more, how much each row counts; None: every row once.
    """

    features: Tensor
    targets: Tensor
    classes: tuple[str, ...]
    columns: tuple[str, ...]
    weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: Tensor) -> Self:
        """The rows with these indices, (n,), in that order."""
        weights = None if self.weights is None else self.weights[rows]
        return replace(self, features=self.features[rows], targets=self.targets[rows], weights=weights)


@runtime_checkable
class Source(Protocol):
    """Where rows come from: what ``data=custom`` has to offer."""

    def load(self) -> Table:
        """Reads all rows."""


@dataclass(frozen=True)
class Standardization:
    """(x − mean) / scale, column by column; both (columns,), float64."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def identity(cls, columns: int) -> Self:
        """Changes nothing."""
        return cls(torch.zeros(columns, dtype=torch.float64), torch.ones(columns, dtype=torch.float64))

    @classmethod
    def of(cls, features: Tensor) -> Self:
        """Mean and standard deviation of each column of (rows, columns); constant columns are left alone."""
        exact = features.double()
        scale, mean = torch.std_mean(exact, dim=0, correction=0)
        constant = (exact == exact[:1]).all(dim=0)
        return cls(mean.masked_fill(constant, 0.0), scale.masked_fill(constant, 1.0))

    def __call__(self, features: Tensor) -> Tensor:
        """Standardises (rows, columns), in the precision of the features."""
        return ((features.double() - self.mean) / self.scale).to(features.dtype)


@dataclass(frozen=True)
class DataFacts:
    """What a model and its predictions have to know of the data it was trained on.

    Attributes:
        classes: the names of the classes.
        columns: the names of the features.
        class_counts: training rows of each class.
        standardization: what was done to the features.
    """

    classes: tuple[str, ...]
    columns: tuple[str, ...]
    class_counts: tuple[int, ...]
    standardization: Standardization

    def to_plain(self) -> dict[str, object]:
        """Values that a checkpoint can hold and ``torch.load(weights_only=True)`` reads."""
        return {
            "classes": list(self.classes),
            "columns": list(self.columns),
            "class_counts": list(self.class_counts),
            "mean": self.standardization.mean,
            "scale": self.standardization.scale,
        }
