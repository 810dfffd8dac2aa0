"""What a model and its predictions have to know of the data it was trained on. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

import msgspec
import numpy as np

from crossent.data.storage import Numbers

Labels = Literal["texts", "booleans", "whole numbers"]

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
class DataFacts:
    """What a model and its predictions have to know of the data it was trained on.

    Attributes:
        classes: the names of the classes.
        columns: the names of the features.
        class_counts: training rows of each class.
        mean: what is taken off each feature, (columns,), float64.
        scale: what the rest is divided by, (columns,), float64.
        fill: what stands for a missing value of each feature, (columns,), float64; None: none may be missing.
        labels: what the classes were before they had names.
        read_from: the columns of the file that the features come from; empty: features are as they are.
        all_columns: whether these were all columns but for target and weight, so that others are a mistake.
        target: the name of the column that the classes come from; None: they come from none.
        checksum: of all rows, by which to know whether they are still the same.
    """

    classes: tuple[str, ...]
    columns: tuple[str, ...]
    class_counts: tuple[int, ...]
    mean: Numbers
    scale: Numbers
    fill: Numbers | None = None
    labels: Labels = "texts"
    read_from: tuple[Column, ...] = ()
    all_columns: bool = True
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
        import torch  # which whoever writes a checkpoint has imported

        return {
            "classes": list(self.classes),
            "columns": list(self.columns),
            "class_counts": list(self.class_counts),
            "mean": torch.from_numpy(self.mean),
            "scale": torch.from_numpy(self.scale),
            "fill": None if self.fill is None else torch.from_numpy(self.fill),
            "labels": self.labels,
            "read_from": [
                {"name": each.name, "categories": None if each.categories is None else list(each.categories)}
                for each in self.read_from
            ],
            "all_columns": self.all_columns,
            "target": self.target,
            "checksum": self.checksum,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, object]) -> Self:
        """The facts that a checkpoint holds, arrays for its tensors.

        Raises:
            ValueError: they are no facts, or do not fit together.
        """
        stored: _Stored = msgspec.convert(dict(plain), _Stored)
        numbers = {
            name: None if (found := plain.get(name)) is None else np.asarray(found, np.float64)
            for name in ("mean", "scale", "fill")
        }
        mean, scale, fill = numbers["mean"], numbers["scale"], numbers["fill"]
        if mean is None or scale is None:
            raise ValueError("the scale of the features is missing")
        if any(each is not None and each.shape != (len(stored.columns),) for each in numbers.values()):
            raise ValueError(f"{len(stored.columns)} features, but the scale of others")
        if not all(np.isfinite(each).all() for each in numbers.values() if each is not None) or not (scale > 0).all():
            raise ValueError("the scale of the features is no finite number above 0")
        if len(stored.classes) < 2 or len(stored.class_counts) != len(stored.classes):
            raise ValueError(f"{len(stored.classes)} classes, but rows of {len(stored.class_counts)}")
        made = [name for column in stored.read_from for name in Column(column.name, column.categories).features]
        if made and tuple(made) != stored.columns:
            raise ValueError("its features are not those that its columns make")
        return cls(
            stored.classes,
            stored.columns,
            stored.class_counts,
            mean,
            scale,
            fill,
            stored.labels,
            tuple(Column(each.name, each.categories) for each in stored.read_from),
            stored.all_columns,
            stored.target,
            stored.checksum,
        )


class _StoredColumn(msgspec.Struct):
    name: str
    categories: tuple[str, ...] | None


class _Stored(msgspec.Struct):
    """The plain values among the facts, and what they have to be."""

    classes: tuple[str, ...]
    columns: tuple[str, ...]
    class_counts: tuple[int, ...]
    labels: Labels = "texts"
    read_from: tuple[_StoredColumn, ...] = ()
    all_columns: bool = True
    target: str | None = None
    checksum: int = 0
