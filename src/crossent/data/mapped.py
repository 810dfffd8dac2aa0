"""Features in a file, which come into memory as they are needed."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from crossent.data.standardization import Standardization
from crossent.data.storage import Numbers

# Of features, what is looked at at a time where all are gone through: little, so that it stays in cache.
_SLICE_BYTES = 4 * 2**20
# Numbers that are gathered from a file at a time, on their way to their places.
_PIECE_NUMBERS = 2**20


@dataclass(frozen=True)
class Mapped:
    """Features in a file, of which only the rows that are asked for come into memory.

    Attributes:
        array: (rows of the file, columns), mapped, any real type.
        rows: indices of those that count, (n,), or None for all.
        standardization: what is done to the rows as they are read.
    """

    array: Numbers
    rows: Tensor | None = None
    standardization: Standardization | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self), self.array.shape[1]

    def __len__(self) -> int:
        return self.array.shape[0] if self.rows is None else len(self.rows)

    def take(self, rows: Tensor) -> Self:
        """Some of the rows, by their indices, (n,); nothing is read."""
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def __getitem__(self, part: slice) -> Tensor:
        """Rows that follow one another, (n, columns), float32."""
        if self.rows is not None:
            return self._prepared(self._gather(self.rows[part]))
        return self._prepared(np.array(self.array[part], np.float32, order="C"))

    def read(self, rows: Tensor) -> Tensor:
        """The rows with these indices, (n,), in that order: (n, columns), float32."""
        return self._prepared(self._gather(rows if self.rows is None else self.rows[rows]))

    def _gather(self, rows: Tensor) -> Numbers:
        """Goes through the file in its own order, which is what disks are fast at."""
        ascending, places = (each.numpy() for each in rows.sort())
        gathered = np.empty((len(rows), self.array.shape[1]), np.float32)
        step = max(1, _PIECE_NUMBERS // max(1, self.array.shape[1]))
        for start in range(0, len(rows), step):
            piece = slice(start, start + step)
            gathered[places[piece]] = np.take(np.asarray(self.array), ascending[piece], axis=0)
        return gathered

    def _prepared(self, found: Numbers) -> Tensor:
        features = torch.from_numpy(found)
        return features if self.standardization is None else self.standardization(features, out=features)


Features = Tensor | Mapped


def slices(features: Features) -> list[slice]:
    """Parts of the rows that go through memory one after the other, but for what is in memory anyway: all at once."""
    rows, columns = features.shape
    step = max(1, _SLICE_BYTES // max(1, 4 * columns))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
