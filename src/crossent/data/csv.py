"""CSV files, read by Arrow."""

import csv
import io
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as arrow_csv

from crossent.data.arrow import FILE_BYTES, on_disk, reading
from crossent.errors import UserError

# Of a large file, from which the types of its columns are found out, and which is in memory at a time.
_BLOCK_BYTES = 16 * 2**20


class CsvFile:
    """A text file with a row a line and its columns' names in the first.

    Args:
        path: of the file; compressed where its name says so (.gz, .bz2, .zst).
        delimiter: between columns, one character.
        header: whether the first line has the names; otherwise they are f0, f1, …
    """

    def __init__(self, path: Path, *, delimiter: str = ",", header: bool = True) -> None:
        self.path = path
        self._delimiter = delimiter
        self._header = header

    def read(self, types: Mapping[str, pa.DataType]) -> pa.Table:
        """All rows. Those of a large file stay on disk, as Arrow's own format, mapped.

        Args:
            types: of columns that are to be read as what they were in another file.

        Raises:
            UserError: a file that is none, or a row with more or fewer columns than the first.
        """
        with reading(self.path, "CSV file"):
            try:
                table = self._read(types, newlines=False)
            except pa.ArrowInvalid:
                try:  # many times slower, but a quoted text may go over several lines
                    table = self._read(types, newlines=True)
                except pa.ArrowInvalid as error:
                    raise self._explained(error) from error
        if self._header and table.column_names and all(_is_number(name) for name in table.column_names):
            names = ", ".join(table.column_names[:3])
            raise UserError(
                f"{self.path}: line 1: numbers where the columns' names should be ({names}, …); if that is a row, set "
                "data.header=false"
            )
        return table

    def _read(self, types: Mapping[str, pa.DataType], *, newlines: bool) -> pa.Table:
        convert = arrow_csv.ConvertOptions(column_types=dict(types), strings_can_be_null=True)
        read = arrow_csv.ReadOptions(autogenerate_column_names=not self._header)
        parse = arrow_csv.ParseOptions(delimiter=self._delimiter, newlines_in_values=newlines)
        if self.path.stat().st_size <= FILE_BYTES:
            return arrow_csv.read_csv(self.path, read, parse, convert)
        read.block_size = _BLOCK_BYTES
        with arrow_csv.open_csv(self.path, read, parse, convert) as blocks:
            schema = blocks.schema
        # A column that begins with whole numbers may have others further on.
        integers = {field.name: pa.float64() for field in schema if pa.types.is_integer(field.type)}
        convert.column_types = {**integers, **types}
        with arrow_csv.open_csv(self.path, read, parse, convert) as blocks:
            return on_disk(blocks.schema, blocks)

    def place(self, row: int) -> str:
        """Where a row, counted from 0, stands: its line."""
        return f"{self.path}: line {self._line(row)}"

    def _line(self, row: int) -> int:
        lines = (line for line, _ in self._records())
        return next(itertools.islice(lines, row + self._header, None), 0)

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """Every record that is not empty, with the line that it begins in, counted from 1."""
        with pa.input_stream(self.path, compression="detect") as stream:
            text = io.TextIOWrapper(stream, encoding="utf-8", errors="replace", newline="")
            reader = csv.reader(text, delimiter=self._delimiter)
            begin = 1
            for record in reader:
                if record:
                    yield begin, record
                begin = reader.line_num + 1

    def _explained(self, error: pa.ArrowInvalid) -> UserError:
        """Arrow's complaint, with the line to look at."""
        found = str(error)
        if "Empty CSV file" in found:
            return UserError(f"{self.path}: the file is empty")
        if "CSV parse error" in found:
            columns = 0
            for line, record in self._records():
                columns = columns or len(record)
                if len(record) != columns:
                    return UserError(
                        f"{self.path}: line {line}: {len(record)} columns, but {columns} in the first line"
                    )
        return UserError(f"{self.path}: {' '.join(found.split())}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
