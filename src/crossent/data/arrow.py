"""What the files that Arrow reads have in common."""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from crossent.errors import UserError

#: Files of more bytes than this go through memory piece by piece.
FILE_BYTES = 2**30


class TableFile(Protocol):
    """A file of rows and named columns."""

    path: Path

    def read(self, types: Mapping[str, pa.DataType]) -> pa.Table:
        """All rows; columns named in ``types`` are to be read as those."""

    def place(self, row: int) -> str:
        """Where a row, counted from 0, stands, for messages."""


@contextlib.contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Words what keeps a file from being read.

    Raises:
        UserError: the file and the reason.
    """
    try:
        yield
    except UserError:
        raise
    except (pa.ArrowException, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        first = " ".join(reason.split()).split(". ")[0]
        raise UserError(f"{path}: cannot be read as a {what}: {first}") from error


def on_disk(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> pa.Table:
    """A table whose rows lie in a temporary file, which is gone with the process, and not in memory.

    Raises:
        UserError: the disk of temporary files is full.
    """
    with tempfile.NamedTemporaryFile(prefix="crossent-", suffix=".arrow") as file:
        try:
            with pa.ipc.new_file(file, schema) as writer:
                for batch in batches:
                    writer.write_batch(batch)
            file.flush()
        except OSError as error:
            raise UserError(
                f"data: the rows do not go into {tempfile.gettempdir()}: {error.strerror or error}; set TMPDIR to a "
                "folder with more room"
            ) from error
        return pa.ipc.open_file(pa.memory_map(file.name)).read_all()  # outlives the name of the file


def is_text(kind: pa.DataType) -> bool:
    """Whether values of the type are texts, stored as such or as indices of them."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return any(check(kind) for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def is_number(kind: pa.DataType) -> bool:
    """Whether values of the type are numbers, or true and false."""
    checks = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    return any(check(kind) for check in checks)


def as_texts(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts, however they are stored, as one type."""
    return values.cast(pa.large_string())


def listed(names: Sequence[str]) -> str:
    """Names for a message, the first twenty of them."""
    return ", ".join(names[:20]) + (f", … ({len(names)})" if len(names) > 20 else "")
