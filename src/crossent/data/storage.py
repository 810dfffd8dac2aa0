"""Where features are: in memory, or on disk where they are too many for it."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import IO, Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from crossent.data.standardization import Standardization
from crossent.errors import UserError

#: Features of more bytes than this, in float32, stay on disk where ``in_memory=auto``. A fixed number, and not a share
#: of what is free: the order of the rows depends on it, and a run has to be the same every time.
IN_MEMORY_BYTES = 2 * 2**30
# Of features, what is looked at at a time where all are gone through: little, so that it stays in cache.
_SLICE_BYTES = 4 * 2**20

# Numbers that are gathered from a file at a time, on their way to their places.
_PIECE_NUMBERS = 2**20

InMemory = Literal["auto"] | bool
Numbers = np.ndarray[Any, np.dtype[Any]]


def stays_in_memory(chosen: InMemory, rows: int, columns: int) -> bool:
    """Whether so many features are to be held in memory."""
    return rows * columns * 4 <= IN_MEMORY_BYTES if chosen == "auto" else chosen


def allocate(rows: int, columns: int, *, in_memory: bool) -> Numbers:
    """Room for features, (rows, columns), float32: in memory, or in a temporary file that is gone with the process.

    Raises:
        UserError: there is no room.
    """
    if in_memory or not rows * columns:
        try:
            return np.empty((rows, columns), np.float32)
        except MemoryError as error:
            wanted = f"{rows * columns * 4 / 1e9:.1f} GB"
            raise UserError(
                f"data: {wanted} of features do not fit in memory; data.in_memory=false leaves them on disk"
            ) from error
    with temporary_file() as file:
        size = rows * columns * 4
        if hasattr(os, "posix_fallocate"):  # or a full disk would show only as a signal that ends the process
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        return np.memmap(file, np.float32, "r+", shape=(rows, columns))


@contextlib.contextmanager
def temporary_file() -> Iterator[IO[bytes]]:
    """A file without a name, which is gone with the process, however that ends; what has mapped it keeps it.

    Raises:
        UserError: there is no room for it.
    """
    try:
        with tempfile.TemporaryFile(prefix="crossent-") as file:
            yield file
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        folder = tempfile.gettempdir()
        raise UserError(
            f"data: the rows do not go into {folder}: {error.strerror}; set TMPDIR to a folder with more room"
        ) from error


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
