"""What the files that Arrow reads have in common."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from crossent.data.storage import temporary_file
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
    except UnicodeError as error:
        hint = "save it as UTF-8, or set data.encoding (latin-1, utf-16, …)"
        raise UserError(f"{path}: cannot be read as a {what}: its text is in another encoding; {hint}") from error
    except (pa.ArrowException, OSError, LookupError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        first = " ".join(reason.split()).split(". ")[0]
        raise UserError(f"{path}: cannot be read as a {what}: {first}") from error


def on_disk(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> pa.Table:
    """A table whose rows lie in a temporary file, which is gone with the process, and not in memory.

    Raises:
        UserError: the disk of temporary files is full.
    """
    # Parts of a file may have other dictionaries, of which Arrow's format takes one.
    types = [kind.value_type if pa.types.is_dictionary(kind) else kind for kind in schema.types]
    decoded = pa.schema(list(zip(schema.names, types, strict=True)))
    with temporary_file() as file:
        with pa.ipc.new_file(file, decoded) as writer:
            for batch in batches:
                writer.write_batch(batch.cast(decoded))
        file.flush()
        mapped = np.memmap(file, np.uint8, "r")
    return pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped))).read_all()


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
