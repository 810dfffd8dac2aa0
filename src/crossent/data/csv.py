"""CSV files, read by Arrow."""

import codecs
import csv
import io
import itertools
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv

from crossent.data.ahead import in_order
from crossent.data.arrow import FILE_BYTES, MisfitError, Part, as_numpy, is_number, on_disk, reading, text_array
from crossent.errors import UserError

# Of a large file, from which the types of its columns are found out, and which is in memory at a time.
_BLOCK_BYTES = 16 * 2**20
# Of a file whose columns are to be known, from which their types are found out.
_FIRST_BYTES = 2**20
# Of a file that goes through memory part by part.
_CHUNK_BYTES = 8 * 2**20
_BLANK = 1000  # bytes by which it shows that a part is not blank
# What a row may take at most, when all else has failed.
_PATIENT_BYTES = 256 * 2**20
# How many times its own size a compressed file may have in it.
_COMPRESSED = 5
# Arrow's own marks of a missing value, and two more that are usual.
_MISSING = [*arrow_csv.ConvertOptions().null_values, "None", "?"]
# What looks like a number and would come out another: 007, or more digits than one holds.
_NO_NUMBER = r"^\s*[+-]?(0\d|\d{19})"
# As what a column of a large file is read further on, where a value does not fit what the first of them were.
_WIDER = {"null": pa.float64(), "int64": pa.float64()}


class CsvFile:
    """A text file with a row a line and its columns' names in the first.

    Args:
        path: of the file; compressed where its name says so (.gz, .bz2, .zst).
        delimiter: between columns, one character, or ``tab``.
        decimal: between a number and its fraction, one character.
        encoding: of the text, as Python names it.
        header: whether the first line has the names; otherwise they are f0, f1, …
        keys: where the keys are that say so, for messages.
    """

    def __init__(
        self,
        path: Path,
        *,
        delimiter: str = ",",
        decimal: str = ".",
        encoding: str = "utf8",
        header: bool = True,
        keys: str = "data",
    ) -> None:
        self.path = path
        self._delimiter = "\t" if delimiter in ("tab", r"\t") else delimiter
        self._decimal = decimal
        self._encoding = "utf8" if codecs.lookup(encoding).name == "utf-8" else encoding  # Arrow's name for its own
        self._header = header
        self._keys = keys
        self._names: list[str] = []  # once they have been seen

    def read(self, types: Mapping[str, pa.DataType]) -> pa.Table:
        """All rows. Those of a large file stay on disk, as Arrow's own format, mapped.

        Args:
            types: of columns that are to be read as what they were in another file.

        Raises:
            UserError: a file that is none, or a row with more or fewer columns than the first.
        """
        with reading(self.path, "CSV file", self._keys):
            try:
                table = self._read(types, patient=False)
            except pa.ArrowInvalid:
                try:
                    table = self._read(types, patient=True)
                except pa.ArrowInvalid as error:
                    raise self._explained(error) from error
            names = table.column_names
        if self._header and names and all(_is_number(name) for name in names):
            shown = ", ".join(names[:3])
            raise UserError(
                f"{self.path}: line 1: numbers where the columns' names should be ({shown}, …); if that is a row, set "
                "data.header=false"
            )
        return table

    def _options(
        self, types: Mapping[str, pa.DataType], *, patient: bool
    ) -> tuple[arrow_csv.ReadOptions, arrow_csv.ParseOptions, arrow_csv.ConvertOptions]:
        """How to read; patiently, many times slower, a quoted text may go over several lines and a row be long."""
        convert = arrow_csv.ConvertOptions(
            column_types=dict(types), strings_can_be_null=True, decimal_point=self._decimal, null_values=_MISSING
        )
        read = arrow_csv.ReadOptions(autogenerate_column_names=not self._header, encoding=self._encoding)
        parse = arrow_csv.ParseOptions(delimiter=self._delimiter, newlines_in_values=patient)
        if patient:
            read.block_size = _PATIENT_BYTES
        return read, parse, convert

    def _read(self, types: Mapping[str, pa.DataType], *, patient: bool) -> pa.Table:
        if self.path.stat().st_size * (1 if self.path.suffix == ".csv" else _COMPRESSED) <= FILE_BYTES:
            return arrow_csv.read_csv(self.path, *self._options(types, patient=patient))
        if patient:
            with arrow_csv.open_csv(self.path, *self._options(types, patient=True)) as blocks:
                return on_disk(blocks.schema, blocks)
        schema = self._seen(types, _BLOCK_BYTES)
        if len(set(schema.names)) < len(schema.names):
            return schema.empty_table()  # which is refused for its names
        kinds = {field.name: field.type for field in schema}
        while True:
            try:
                parts = self._in_chunks(schema.names, kinds, texts_can_be_null=True)
                return on_disk(pa.schema(list(kinds.items())), (b for part in parts for b in part.rows.to_batches()))
            except pa.ArrowInvalid as error:
                name = _misfit(error, schema.names)
                if name is None or name in types or kinds[name] == pa.string():
                    raise
                kinds[name] = _WIDER.get(str(kinds[name]), pa.string())

    def _seen(self, types: Mapping[str, pa.DataType], size: int, *, patient: bool = False) -> pa.Schema:
        """The columns, of the types that their values in the first bytes have, unless they are given."""
        read, parse, convert = self._options(types, patient=patient)
        if not patient:
            read.block_size = size
        with arrow_csv.open_csv(self.path, read, parse, convert) as blocks:
            _ = blocks.schema.names  # which is when they are decoded
            return blocks.schema

    def schema(self, keep: Collection[str] = ()) -> pa.Schema:
        """The columns, of the types that their first values have.

        Args:
            keep: names of columns that are texts unless they come out as they went in: 007 is one.

        Raises:
            UserError: a file that is none.
        """
        with reading(self.path, "CSV file", self._keys):
            try:
                schema = self._seen({}, _FIRST_BYTES)
            except pa.ArrowInvalid:
                try:
                    schema = self._seen({}, _FIRST_BYTES, patient=True)
                except pa.ArrowInvalid as error:
                    raise self._explained(error) from error
            numbers = [name for name in keep if name in schema.names and is_number(schema.field(name).type)]
            if numbers:
                read, parse, convert = self._options(dict.fromkeys(numbers, pa.string()), patient=False)
                convert.include_columns = numbers
                with arrow_csv.open_csv(self.path, read, parse, convert) as blocks:
                    for name, values in zip(numbers, next(iter(blocks), ()), strict=False):
                        if pc.any(pc.match_substring_regex(values, _NO_NUMBER)).as_py():
                            schema = schema.set(schema.get_field_index(name), pa.field(name, pa.string()))
            self._names = schema.names
            return schema

    def parts(self, types: Mapping[str, pa.DataType], verbatim: Collection[str] = ()) -> Iterator[Part]:
        """All rows in order, a part at a time, of some columns.

        Args:
            types: of these columns, all of which the file has.
            verbatim: those among them whose texts stay as they are, also where they would mean a missing value.

        Raises:
            UserError: a row with more or fewer columns than the first.
            MisfitError: a value that does not have its column's type.
        """
        names, rows = self._names or self.schema().names, 0
        texts = [name for name, kind in types.items() if kind == pa.string() and name not in verbatim]
        with reading(self.path, "CSV file", self._keys):
            try:
                for part in self._in_chunks(names, types):
                    rows += len(part.rows)
                    yield part._replace(rows=_without_marks(part.rows, texts))
                return
            except pa.ArrowInvalid as error:
                self._raise_if_misfit(error, names)
            read, parse, convert = self._options(types, patient=True)
            convert.include_columns = list(types)
            convert.strings_can_be_null = False
            try:
                with arrow_csv.open_csv(self.path, read, parse, convert) as blocks:
                    for block in blocks:  # those that went well the first time are not handed out again
                        again = min(rows, len(block))
                        rows -= again
                        yield Part(_without_marks(pa.Table.from_batches([block.slice(again)]), texts), None)
            except pa.ArrowInvalid as error:
                self._raise_if_misfit(error, names)
                raise self._explained(error) from error

    def _in_chunks(
        self, names: list[str], types: Mapping[str, pa.DataType], *, texts_can_be_null: bool = False
    ) -> Iterator[Part]:
        """Parts that several threads read at a time; Arrow's own reader of parts has one."""
        size = self.path.stat().st_size if self.path.suffix == ".csv" else None
        first, parse, convert = self._options(types, patient=False)
        convert.include_columns = list(types)
        convert.strings_can_be_null = texts_can_be_null
        first.encoding = "utf8"
        following = arrow_csv.ReadOptions(column_names=names)
        for read in (first, following):
            read.use_threads, read.block_size = False, 2**30  # a chunk in one go, so that its texts may have many lines

        def table(chunk: tuple[int, memoryview]) -> tuple[pa.Table, int]:
            index, text = chunk
            read = following if index else first
            return arrow_csv.read_csv(pa.BufferReader(pa.py_buffer(text)), read, parse, convert), len(text)

        done = 0
        for rows, taken in in_order(table, enumerate(self._chunks())):
            done += taken
            yield Part(rows, None if size is None else done / size)

    def _chunks(self) -> Iterator[memoryview]:
        """The text, UTF-8, cut where rows end."""
        with pa.input_stream(self.path, compression="detect") as stream:
            if self._encoding != "utf8":
                stream = pa.transcoding_input_stream(stream, self._encoding, "utf8")
            left, newline, taken = b"", b"", 1
            while taken:
                block = bytearray(len(left) + _CHUNK_BYTES)
                block[: len(left)] = left
                taken = stream.readinto(memoryview(block)[len(left) :])
                del block[len(left) + taken :]
                newline = newline or (b"\n" if b"\n" in block else b"\r")
                end = _end_of_rows(block, newline) if taken else len(block)
                if not end and len(block) > _PATIENT_BYTES:
                    raise pa.ArrowInvalid("CSV parse error: a row without an end")
                left = bytes(block[end:])
                if end and not (block[:_BLANK].isspace() and block[:end].isspace()):
                    yield memoryview(block)[:end]

    def _raise_if_misfit(self, error: pa.ArrowInvalid, names: list[str]) -> None:
        if "invalid UTF8" in str(error):
            raise UnicodeError from error
        name = _misfit(error, names)
        value = re.search(r"invalid value '(.*)'", str(error), re.DOTALL)
        if name is None:
            return
        column, found = names.index(name), "" if value is None else value[1]
        line = next((line for line, record in self._records() if record[column : column + 1] == [found]), 0)
        raise MisfitError(name, found, f"{self.path}: line {line}") from error

    def place(self, row: int) -> str:
        """Where a row, counted from 0, stands: its line."""
        lines = (line for line, _ in self._records())
        return f"{self.path}: line {next(itertools.islice(lines, row + self._header, None), 0)}"

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """Every record that is not empty, with the line that it begins in, counted from 1."""
        csv.field_size_limit(2**31 - 1)
        encoding = "utf-8-sig" if self._encoding == "utf8" else self._encoding
        with pa.input_stream(self.path, compression="detect") as stream:
            text = io.TextIOWrapper(stream, encoding=encoding, errors="replace", newline="")
            reader = csv.reader(text, delimiter=self._delimiter)
            begin = 1
            for record in reader:
                if record:
                    yield begin, record
                begin = reader.line_num + 1

    def _explained(self, error: pa.ArrowInvalid) -> UserError:
        """Arrow's complaint, with the line to look at."""
        found = str(error)
        if "invalid UTF8" in found:
            raise UnicodeError from error
        if "Empty CSV file" in found:
            return UserError(f"{self.path}: the file is empty")
        if "CSV parse error" in found:
            columns = 0
            for line, record in self._records():
                columns = columns or len(record)
                if len(record) != columns:
                    found = f"{len(record)} columns, but {columns} in the first line"
                    return UserError(f"{self.path}: line {line}: {found}")
        return UserError(f"{self.path}: {' '.join(found.split())}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _misfit(error: pa.ArrowInvalid, names: list[str]) -> str | None:
    """The column with a value of another type, if that is what is wrong."""
    found = re.search(r"In CSV column #(\d+): .*conversion error", str(error))
    return None if found is None else names[int(found[1])]


def _end_of_rows(block: bytearray, newline: bytes) -> int:
    """Where the last whole row of a block ends, which begins with one; 0 where none does."""
    end = block.rfind(newline) + 1
    if b'"' not in block:
        return end
    quotes = block.count(b'"', 0, end)
    while end and quotes % 2:  # that newline stands within a text
        before = block.rfind(newline, 0, end - 1) + 1
        quotes -= block.count(b'"', before, end)
        end = before
    return end


def _without_marks(rows: pa.Table, texts: Collection[str]) -> pa.Table:
    """The same rows; texts that mark a missing value are missing."""
    for name in texts:
        values = rows[name].combine_chunks()
        marks = pc.is_in(values, text_array(_MISSING).cast(pa.string()))
        if as_numpy(marks).any():
            values = pc.replace_with_mask(values, marks, pa.nulls(int(as_numpy(marks).sum()), pa.string()))
            rows = rows.set_column(rows.schema.get_field_index(name), name, values)
    return rows
