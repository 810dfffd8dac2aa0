"""Labelled rows."""

from dataclasses import dataclass, replace
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from crossent.data.facts import Column, Labels
from crossent.data.mapped import Features, Mapped
from crossent.data.standardization import Standardization


@dataclass(frozen=True)
class Table:
    """Labelled rows.

    Attributes:
        features: (rows, columns), floating; in memory, or mapped from a file.
        targets: (rows,), int64, from 0 to classes - 1, or ``loss.ignore_index`` where a row is to count for nothing.
        classes: the names of the classes.
        columns: the names of the features.
        weights: (rows,), 0 or more, how much each row counts; None: every row once.
        parts: how many rows, in this order, are for training, validation and testing, where the source says so; rows
            for training may be split further.
        labels: what the classes were before they had names.
        read_from: the columns of the file that the features come from; empty: features are as they are.
        all_columns: whether these are all columns of the file but for target and weight.
        target: the name of the column that the classes come from; None: they come from none.
        best_accuracy: the highest accuracy that is possible on these rows, where that is known.
        origins: the files that the rows are from, and how many are from each, for messages about one of them.
    """

    features: Features
    targets: Tensor
    classes: tuple[str, ...]
    columns: tuple[str, ...]
    weights: Tensor | None = None
    parts: tuple[int, int, int] | None = None
    labels: Labels = "texts"
    read_from: tuple[Column, ...] = ()
    all_columns: bool = True
    target: str | None = None
    best_accuracy: float | None = None
    origins: tuple[tuple[str, int], ...] = ()

    def __len__(self) -> int:
        return len(self.targets)

    def place(self, row: int) -> str:
        """Where a row is from, for a message about it."""
        for origin, rows in self.origins:
            if row < rows:
                return f"{origin}: row {row}"
            row -= rows
        return f"data: row {row}"

    @property
    def origin(self) -> str:
        """Where the first rows are from, for a message about all of them."""
        return self.origins[0][0] if self.origins else "data"

    def all_features(self) -> Tensor:
        """The features of all rows in memory, (rows, columns)."""
        return self.features[:]

    def take(self, rows: Tensor) -> Self:
        """The rows with these indices, (n,), in that order; the table itself if those are all of its rows."""
        if len(rows) == len(self) and torch.equal(rows, torch.arange(len(self))):
            return self
        features = self.features.take(rows) if isinstance(self.features, Mapped) else self.features[rows]
        weights = None if self.weights is None else self.weights[rows]
        return replace(self, features=features, targets=self.targets[rows], weights=weights)

    def without_empty_classes(self) -> Self:
        """The same rows, of classes that have any."""
        rows = torch.bincount(self.targets[self.targets >= 0], minlength=len(self.classes))
        kept = tuple(name for name, count in zip(self.classes, rows.tolist(), strict=True) if count)
        places = (rows > 0).cumsum(0) - 1  # of the classes among those that are kept
        targets = places[self.targets.clamp(min=0)].where(self.targets >= 0, self.targets)
        return replace(self, targets=targets, classes=kept)

    def standardized(self, standardization: Standardization, *, in_place: bool = False) -> Self:
        """The same rows with their features prepared, those in a file as they are read.

        Args:
            standardization: what is done to them.
            in_place: whether memory of theirs may be written to.
        """
        if isinstance(self.features, Mapped):
            return replace(self, features=replace(self.features, standardization=standardization))
        return replace(self, features=standardization(self.features, out=self.features if in_place else None))


@runtime_checkable
class Source(Protocol):
    """Where rows come from: what ``data=custom`` has to offer."""

    def load(self) -> Table:
        """Reads all rows."""
