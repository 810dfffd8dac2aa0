"""Labelled rows, and what a model has to know of them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from crossent.data.standardization import Standardization
from crossent.data.storage import Features, Mapped

#: Of a row; the sum of weights has to fit float32.
LARGEST_WEIGHT = 1e30
#: What to do where a value of a file is missing.
MISSING_REMEDIES = "data.missing=mean fills in the mean of the training rows, data.missing=drop leaves the row out"


@dataclass(frozen=True)
class Column:
    """A column of a file, as it goes into features.

    Attributes:
        name: its name there.
        categories: its different texts, each of which makes a feature of 0 and 1; None for numbers.
    """

    name: str
    categories: tuple[str, ...] | None = None

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the features that it makes."""
        return (self.name,) if self.categories is None else tuple(f"{self.name}={each}" for each in self.categories)


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
        read_from: the columns of the file that the features come from; empty: features are as they are.
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
    read_from: tuple[Column, ...] = ()
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


@dataclass(frozen=True)
class DataFacts:
    """What a model and its predictions have to know of the data it was trained on.

    Attributes:
        classes: the names of the classes.
        columns: the names of the features.
        class_counts: training rows of each class.
        standardization: what was done to the features.
        read_from: the columns of the file that the features come from.
        target: the name of the column that the classes come from; None: they come from none.
        checksum: of all rows, by which to know whether they are still the same.
    """

    classes: tuple[str, ...]
    columns: tuple[str, ...]
    class_counts: tuple[int, ...]
    standardization: Standardization
    read_from: tuple[Column, ...] = ()
    target: str | None = None
    checksum: int = 0

    def difference(self, stored: Mapping[str, object]) -> str | None:
        """What differs from the facts that a checkpoint has stored, in words, or None where nothing does.

        Sums of floating numbers, which another machine may round otherwise, are not compared: the checksum is exact.
        """
        plain = self.to_plain()
        named = {
            "classes": "classes",
            "columns": "columns",
            "class_counts": "rows of the classes",
            "checksum": "values",
        }
        return next((words for name, words in named.items() if stored.get(name, plain[name]) != plain[name]), None)

    def to_plain(self) -> dict[str, object]:
        """Values that a checkpoint can hold and ``torch.load(weights_only=True)`` reads."""
        return {
            "classes": list(self.classes),
            "columns": list(self.columns),
            "class_counts": list(self.class_counts),
            "mean": self.standardization.mean,
            "scale": self.standardization.scale,
            "fill": self.standardization.fill,
            "read_from": [
                {"name": each.name, "categories": None if each.categories is None else list(each.categories)}
                for each in self.read_from
            ],
            "target": self.target,
            "checksum": self.checksum,
        }
