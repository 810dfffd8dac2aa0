"""Room for features: in memory, or on disk where they are too many for it. Imports no torch."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from typing import IO, Any, Literal

import numpy as np

from crossent.errors import UserError

#: Features of more bytes than this, in float32, stay on disk where ``in_memory=auto``. A fixed number, and not a share
#: of what is free: the order of the rows depends on it, and a run has to be the same every time.
IN_MEMORY_BYTES = 2 * 2**30


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
