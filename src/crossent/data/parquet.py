"""Parquet files, read by Arrow."""

import itertools
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from crossent.data.ahead import in_order
from crossent.data.arrow import FILE_BYTES, Part, on_disk, reading

_ROWS = 65_536  # that are read at a time


class ParquetFile:
    """A Parquet file.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, types: Mapping[str, pa.DataType]) -> pa.Table:
        """All rows. Those of a large file stay on disk, as Arrow's own format, mapped.

        Args:
            types: have been stored with the file, so these are not needed.

        Raises:
            UserError: a file that is none, or not whole.
        """
        with reading(self.path, "Parquet file"), pyarrow.parquet.ParquetFile(self.path) as file:
            groups = (file.metadata.row_group(index) for index in range(file.metadata.num_row_groups))
            if sum(group.total_byte_size for group in groups) <= FILE_BYTES:
                return file.read()
            return on_disk(file.schema_arrow, file.iter_batches())

    def schema(self, keep: Collection[str] = ()) -> pa.Schema:
        """The columns.

        Args:
            keep: nothing changes for them.

        Raises:
            UserError: a file that is none, or not whole.
        """
        with reading(self.path, "Parquet file"), pyarrow.parquet.ParquetFile(self.path) as file:
            return file.schema_arrow

    def parts(self, types: Mapping[str, pa.DataType], verbatim: Collection[str] = ()) -> Iterator[Part]:
        """All rows in order, a part at a time, of some columns.

        Args:
            types: of these columns; they have been stored with the file.
            verbatim: nothing changes for them.

        Raises:
            UserError: a file that is none, or not whole.
        """
        with (
            reading(self.path, "Parquet file"),
            # Mapped and not read ahead, so that a row group however large does not come into memory whole.
            pyarrow.parquet.ParquetFile(self.path, memory_map=True, pre_buffer=False) as file,
        ):
            rows, batches = 0, file.iter_batches(_ROWS, columns=list(types))
            for batch in in_order(lambda _: next(batches, None), itertools.count(), threads=1):
                if batch is None:
                    return
                rows += len(batch)
                yield Part(pa.Table.from_batches([batch]), rows / file.metadata.num_rows)

    def place(self, row: int) -> str:
        """Where a row, counted from 0, stands."""
        return f"{self.path}: row {row}"
