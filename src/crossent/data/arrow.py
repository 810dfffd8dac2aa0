"""What the files that Arrow reads have in common."""

import contextlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from crossent.data.storage import Numbers, temporary_file
from crossent.errors import UserError

#: Files of more bytes than this go through memory piece by piece.
FILE_BYTES = 2**30


class Part(NamedTuple):
    """Some rows of a file that follow one another.

    Attributes:
        rows: they.
        done: what share of the file has been read with them, from 0 to 1; None: nobody knows.
    """

    rows: pa.Table
    done: float | None


class MisfitError(Exception):
    """A value is not of the type that its column is to have.

    Attributes:
        column: its name.
        value: as it stands in the file.
        place: where it stands.
    """

    def __init__(self, column: str, value: str, place: str) -> None:
        super().__init__(column, value, place)
        self.column, self.value, self.place = column, value, place


class TableFile(Protocol):
    """A file of rows and named columns."""

    path: Path

    def read(self, types: Mapping[str, pa.DataType]) -> pa.Table:
        """All rows; columns named in ``types`` are to be read as those."""

    def schema(self, keep: Collection[str] = ()) -> pa.Schema:
        """Its columns, and of what types they seem to be; those to keep only if they come out as they went in."""

    def parts(self, types: Mapping[str, pa.DataType], verbatim: Collection[str] = ()) -> Iterator[Part]:
        """All rows in order, a part at a time, of the columns named in ``types``, if need be read as those."""

    def place(self, row: int) -> str:
        """Where a row, counted from 0, stands, for messages."""


@contextlib.contextmanager
def reading(path: Path, what: str, keys: str = "data") -> Iterator[None]:
    """Words what keeps a file from being read.

    Args:
        path: of the file.
        what: it should be.
        keys: where the keys are that say how it is read.

    Raises:
        UserError: the file and the reason.
    """
    try:
        yield
    except UserError:
        raise
    except UnicodeError as error:
        hint = f"save it as UTF-8, or set {keys}.encoding (latin-1, utf-16, …)"
        raise UserError(f"{path}: cannot be read as a {what}: its text is in another encoding; {hint}") from error
    except (pa.ArrowException, OSError, LookupError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        first = " ".join(reason.split()).split(". ")[0]
        raise UserError(f"{path}: cannot be read as a {what}: {first}") from error


class Spool:
    """Rows on their way to a temporary file, which is gone with the process."""

    def __init__(self, file: IO[bytes], schema: pa.Schema) -> None:
        self._file = file
        # Parts of a file may have other dictionaries, of which Arrow's format takes one.
        types = [kind.value_type if pa.types.is_dictionary(kind) else kind for kind in schema.types]
        self._schema = pa.schema(list(zip(schema.names, types, strict=True)))
        self._writer = pa.ipc.new_file(file, self._schema)
        self._mapped: Numbers | None = None

    def write(self, batch: pa.RecordBatch) -> None:
        """Takes in the next rows."""
        self._writer.write_batch(batch.cast(self._schema))

    def end(self) -> None:
        """Takes in no more."""
        self._writer.close()
        self._file.flush()
        self._mapped = np.memmap(self._file, np.uint8, "r")

    def table(self) -> pa.Table:
        """All rows, mapped; after `end`."""
        return pa.ipc.open_file(pa.BufferReader(pa.py_buffer(self._mapped))).read_all()


@contextlib.contextmanager
def spooled(schema: pa.Schema) -> Iterator[Spool]:
    """Gives what takes rows in; afterwards it has them as a table.

    Raises:
        UserError: the disk of temporary files is full.
    """
    with temporary_file() as file:
        spool = Spool(file, schema)
        yield spool
        spool.end()


def on_disk(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> pa.Table:
    """A table whose rows lie in a temporary file, and not in memory.

    Raises:
        UserError: the disk of temporary files is full.
    """
    with spooled(schema) as spool:
        for batch in batches:
            spool.write(batch)
    return spool.table()


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


# pa.array, pa.scalar and to_numpy import pandas where that is installed, which takes longer than 100,000 predictions.


def text_array(texts: Sequence[str]) -> pa.Array:
    """Texts as Arrow's, (texts,)."""
    encoded = [text.encode() for text in texts]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return pa.LargeStringArray.from_buffers(len(encoded), pa.py_buffer(ends), pa.py_buffer(b"".join(encoded)))


def number_array(numbers: Numbers, missing: Numbers | None = None) -> pa.Array:
    """Numbers, or true and false, as Arrow's, (numbers,), in the same memory.

    Args:
        numbers: (numbers,), contiguous.
        missing: (numbers,), which of them are not there; None: all are.
    """
    known = None if missing is None else pa.py_buffer(np.packbits(~missing, bitorder="little"))
    if not numbers.dtype.isnative:
        numbers = numbers.astype(numbers.dtype.newbyteorder("="))
    if numbers.dtype.kind == "b":
        bits = pa.py_buffer(np.packbits(numbers, bitorder="little"))
        return pa.Array.from_buffers(pa.bool_(), len(numbers), [known, bits])
    kind = pa.from_numpy_dtype(numbers.dtype)
    return pa.Array.from_buffers(kind, len(numbers), [known, pa.py_buffer(numbers)])


def as_numpy(values: Any) -> Numbers:
    """Numbers, or true and false, of which none is missing, as NumPy's; in the same memory where that is one piece."""
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if pa.types.is_boolean(array.type):
        return np.from_dlpack(array.cast(pa.uint8())).view(np.bool_)
    return np.from_dlpack(array)


def listed(names: Sequence[str], at_most: int = 20) -> str:
    """Names for a message, the first of them; in quotes where they have commas or spaces."""
    shown = [f"'{name}'" if re.search(r"[,\s]", name) else name for name in names[:at_most]]
    return ", ".join(shown) + (f", … ({len(names)})" if len(names) > at_most else "")
