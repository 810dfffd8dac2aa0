"""Files of predictions: rows come in parts and go out at once. Imports no torch."""

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv
import pyarrow.parquet
from numpy.lib import format as npy

from crossent.data.arrow import is_text, spooled


class Output(Protocol):
    """A file under way."""

    def write(self, rows: pa.RecordBatch) -> None:
        """Takes in the next rows."""


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
            with path.open("wb") as file, arrow_csv.CSVWriter(file, schema, write_options=_CSV) as writer:
                yield writer
        case ".parquet":
            texts = [field.name for field in schema if is_text(field.type)]  # numbers are hardly ever the same twice
            with pyarrow.parquet.ParquetWriter(path, schema, use_dictionary=texts) as writer:
                yield writer
        case _:
            with _archive(path, schema) as writer:
                yield writer


_CSV = arrow_csv.WriteOptions(batch_size=65_536, quoting_style="needed")


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
    """Writes a column as an array, (rows,); texts as NumPy's, all as wide as the widest."""
    if is_text(values.type):
        kind = np.dtype(f"U{max(1, pc.max(pc.utf8_length(values)).as_py() or 0)}")
    else:
        kind = values[:0].to_numpy(zero_copy_only=False).dtype
    npy.write_array_header_2_0(
        member, {"descr": npy.dtype_to_descr(kind), "fortran_order": False, "shape": (len(values),)}
    )
    for chunk in values.chunks:
        array = chunk.fill_null("") if is_text(values.type) else chunk
        member.write(np.ascontiguousarray(array.to_numpy(zero_copy_only=False).astype(kind)).tobytes())
