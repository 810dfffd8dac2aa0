"""Files of predictions: rows come in parts and go out at once. Imports no torch."""

import contextlib
import csv
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv
import pyarrow.parquet
from numpy.lib import format as npy

from crossent.data.arrow import is_number, is_text, spooled
from crossent.errors import UserError


class Output(Protocol):
    """A file under way."""

    def write(self, rows: pa.RecordBatch) -> None:
        """Takes in the next rows."""


def check(schema: pa.Schema, kind: str) -> None:
    """Refuses columns that a kind of file cannot have.

    Raises:
        UserError: the column, which can only be one that is carried over.
    """
    for field in schema:
        plain = is_text(field.type) or (is_number(field.type) and not pa.types.is_decimal(field.type))
        dated = pa.types.is_timestamp(field.type) or pa.types.is_date(field.type)
        fits = {
            ".parquet": True,
            ".csv": plain or pa.types.is_decimal(field.type) or pa.types.is_temporal(field.type),
            ".npz": plain or dated,
        }
        if not fits[kind]:
            raise UserError(
                f"keep={field.name}: is of the type {field.type}, which a {kind} file cannot have; .parquet can"
            )


@contextlib.contextmanager
def opened(path: Path, kind: str, schema: pa.Schema) -> Iterator[Output]:
    """Opens a file for predictions, and ends it when all are in.

    Args:
        path: to write to.
        kind: ``.csv``, ``.parquet`` or ``.npz``.
        schema: the columns.
    """
    match kind:
        case ".csv":
            with path.open("wb") as file:
                yield _Csv(file, schema)
        case ".parquet":
            texts = [field.name for field in schema if is_text(field.type)]  # numbers are hardly ever the same twice
            with pyarrow.parquet.ParquetWriter(path, schema, use_dictionary=texts) as writer:
                yield writer
        case _:
            with _archive(path, schema) as writer:
                yield writer


class _Csv:
    """A CSV file in which texts have quotes where they need some; Arrow's own writer gives them to all or none.

    Args:
        file: to write to.
        schema: the columns, whose names go into the first line.
    """

    _PLAIN, _QUOTED = (
        arrow_csv.WriteOptions(include_header=False, batch_size=65_536, quoting_style=style)
        for style in ("none", "needed")
    )

    def __init__(self, file: IO[bytes], schema: pa.Schema) -> None:
        self._file = file
        header = io.StringIO()
        csv.writer(header, lineterminator="\n").writerow(schema.names)
        file.write(header.getvalue().encode())

    def write(self, rows: pa.RecordBatch) -> None:
        """Takes in the next rows."""
        try:
            self._file.write(_as_csv(rows, self._PLAIN))
        except pa.ArrowInvalid:  # a text among them has a comma, a quote or an end of line in it
            self._file.write(_as_csv(rows, self._QUOTED))


def _as_csv(rows: pa.RecordBatch, options: arrow_csv.WriteOptions) -> pa.Buffer:
    written = pa.BufferOutputStream()
    arrow_csv.write_csv(rows, written, options)
    return written.getvalue()


@contextlib.contextmanager
def _archive(path: Path, schema: pa.Schema) -> Iterator[Output]:
    """An .npz with an array a column. Its headers say how many rows there are, so these wait in a temporary file."""
    with spooled(schema) as rows:
        yield rows
    table = rows.table()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name in schema.names:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                _write_array(member, table[name])


def _write_array(member: Any, values: pa.ChunkedArray) -> None:
    """Writes a column as an array, (rows,); texts as NumPy's, all as wide as the widest.

    A missing text is empty. Where a whole number is missing, or true or false, all become floating, and that one NaN.
    """
    if is_text(values.type):
        kind = np.dtype(f"U{max(1, pc.max(pc.utf8_length(values)).as_py() or 0)}")
    elif values.null_count and is_number(values.type):
        values = (values.cast(pa.uint8()) if pa.types.is_boolean(values.type) else values).cast(
            pa.float64(), safe=False
        )
        kind = np.dtype(np.float64)
    else:
        kind = values[:0].to_numpy(zero_copy_only=False).dtype
    npy.write_array_header_2_0(
        member, {"descr": npy.dtype_to_descr(kind), "fortran_order": False, "shape": (len(values),)}
    )
    for chunk in values.chunks:
        array = chunk.fill_null("") if is_text(values.type) else chunk
        member.write(np.ascontiguousarray(array.to_numpy(zero_copy_only=False).astype(kind)).tobytes())
