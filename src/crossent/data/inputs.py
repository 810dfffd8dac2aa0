"""Files of new rows, as features of a trained model. Imports no torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from crossent.checking import did_you_mean
from crossent.data.arrow import MisfitError, TableFile, is_text, listed, number_array, text_array
from crossent.data.facts import Column, DataFacts
from crossent.data.features import FeatureEncoder
from crossent.data.given import check_finite, check_nameless
from crossent.data.layout import check_names
from crossent.data.numpy_files import open_features
from crossent.data.storage import Numbers
from crossent.errors import UserError

_ROWS = 65_536  # of arrays, that are read at a time


@dataclass(frozen=True)
class NewRows:
    """Some rows of an input that follow one another.

    Attributes:
        features: (rows, features), float32; NaN where one is missing.
        missing: (rows,), whether any is that cannot be filled in, or None where none is.
        kept: the columns to be carried over, (rows,) each.
        done: what share of the input has been read with them, from 0 to 1; None: nobody knows.
    """

    features: Numbers
    missing: Numbers | None
    kept: list[pa.ChunkedArray]
    done: float | None


class Input(Protocol):
    """A file of new rows.

    Attributes:
        kept: the columns to be carried over, as they are read.
    """

    kept: pa.Schema

    def rows(self) -> Iterator[NewRows]:
        """All rows in order, some at a time."""

    def widen(self, column: str) -> bool:
        """Reads a carried-over column as texts from now on; whether that is anything new."""

    @property
    def unseen(self) -> int:
        """Texts so far that training did not have."""


@dataclass(frozen=True)
class Wanted:
    """What is to be done with an input.

    Attributes:
        facts: of the data that the model was trained on.
        keep: the names of the columns to be carried over.
        known: other columns that training knew, and that may be there.
        surplus_allowed: whether other columns than those may be there.
        missing_allowed: whether values may be missing that cannot be filled in.
        verbatim: whether columns are carried over as the texts that they are, where the input has texts.
    """

    facts: DataFacts
    keep: Sequence[str]
    known: Sequence[str | None] = ()
    surplus_allowed: bool = False
    missing_allowed: bool = False
    verbatim: bool = False


class TableInput:
    """A file with named columns.

    Args:
        file: it.
        wanted: of it.
        texts: whether the file has texts alone, which are read as what they look like.

    Raises:
        UserError: a column that is missing, or one too many.
    """

    def __init__(self, file: TableFile, wanted: Wanted, *, texts: bool) -> None:
        self._file = file
        self._wanted = wanted
        facts = wanted.facts
        self._columns = facts.read_from or tuple(Column(name) for name in facts.columns)
        schema = file.schema(wanted.keep)
        check_names(
            schema.names,
            file.path,
            [column.name for column in self._columns],
            known=[*wanted.keep, *wanted.known],
            first="the run's training data",
            surplus=None if wanted.surplus_allowed else "keep=[{name}] carries it over, surplus=ignore leaves it out",
        )
        for name in wanted.keep:
            if name not in schema.names:
                near = did_you_mean(name, schema.names)
                raise UserError(f"keep={name}: no such column in {file.path}{near} Columns: {listed(schema.names)}")
        kinds = {name: schema.field(name).type for name in schema.names}
        if texts:
            kinds |= {name: pa.string() for name in wanted.keep if wanted.verbatim or pa.types.is_null(kinds[name])}
            kinds |= {column.name: _text_type(column, kinds[column.name]) for column in self._columns}
        self._types = {name: kinds[name] for name in dict.fromkeys([*[c.name for c in self._columns], *wanted.keep])}
        self._encoder = FeatureEncoder(self._columns)
        if not texts:
            self._encoder.check(schema, file.path, "the run's training data")
        features = {column.name for column in self._columns}
        self._only_kept = [name for name in wanted.keep if name not in features]
        self.kept = self._kept_schema()

    def _kept_schema(self) -> pa.Schema:
        return pa.schema([(name, _written_type(self._types[name])) for name in self._wanted.keep])

    @property
    def unseen(self) -> int:
        """Texts so far that training did not have."""
        return self._encoder.unseen

    def widen(self, column: str) -> bool:
        """Reads a carried-over column as texts from now on; whether that is anything new."""
        if column not in self._only_kept or self._types[column] == pa.string():
            return False
        self._types[column] = pa.string()
        self.kept = self._kept_schema()
        return True

    def rows(self) -> Iterator[NewRows]:
        """All rows in order, some at a time.

        Raises:
            UserError: a value that does not fit, with its place and column.
            MisfitError: one of a column that is carried over, which `widen` helps.
        """
        self._encoder.unseen, start = 0, 0
        parts = self._file.parts(self._types, self._only_kept)
        while True:
            try:
                part = next(parts, None)
            except MisfitError as misfit:
                if misfit.column in self._only_kept:
                    raise
                expected = "true or false" if pa.types.is_boolean(self._types[misfit.column]) else "a number"
                raise UserError(
                    f"{misfit.place}, column '{misfit.column}': '{misfit.value}', expected {expected}, as in the run's "
                    "training data"
                ) from misfit
            if part is None:
                return
            yield self._encoded(part.rows, start, part.done)
            start += len(part.rows)

    def _encoded(self, rows: pa.Table, start: int, done: float | None) -> NewRows:
        facts = self._wanted.facts
        features = np.empty((len(facts.columns), len(rows)), np.float32).T  # a column's numbers side by side

        def place(row: int) -> str:
            return self._file.place(start + row)

        missing = None
        for name, gaps in self._encoder.encode(rows, features, place).items():
            if facts.fill is not None:
                continue
            if not self._wanted.missing_allowed:
                raise UserError(
                    f"{place(int(gaps.argmax()))}, column '{name}': missing; missing=empty leaves such a row's "
                    "prediction empty, and a run with data.missing=mean fills such values in"
                )
            missing = gaps if missing is None else missing | gaps
        return NewRows(features, missing, [rows[field.name].cast(field.type) for field in self.kept], done)


def _written_type(kind: pa.DataType) -> pa.DataType:
    """As what a carried-over column is handed out: one of texts as such, however they are stored."""
    return pa.large_string() if is_text(kind) and kind != pa.string() else kind


def _text_type(column: Column, seems: pa.DataType) -> pa.DataType:
    """As what a column of a text file is read: what it was in training."""
    if column.categories is not None:
        return pa.string()
    return seems if pa.types.is_boolean(seems) else pa.float64()


class ArrayInput:
    """One of NumPy's files: features without names, and in an archive further arrays beside them.

    Args:
        path: of the .npy, or the .npz.
        wanted: of it.

    Raises:
        UserError: a file that is none of NumPy's, or arrays that do not fit.
    """

    unseen = 0

    def __init__(self, path: Path, wanted: Wanted) -> None:
        facts = wanted.facts
        self._path = path
        self._wanted = wanted
        self._features, self._kept = open_features(path, wanted.keep)
        check_nameless(str(path), self._features.shape[1], facts)
        self.kept = pa.schema([(name, _as_arrow(array[:0]).type) for name, array in self._kept.items()])

    def widen(self, column: str) -> bool:
        """Nothing is read as what it is not."""
        return False

    def rows(self) -> Iterator[NewRows]:
        """All rows in order, some at a time.

        Raises:
            UserError: a feature that is no finite number.
        """
        facts, count = self._wanted.facts, len(self._features)
        step = max(1, min(_ROWS, 2**22 // len(facts.columns)))
        for start in range(0, count, step):
            part = slice(start, min(start + step, count))
            with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused as such
                features = np.asarray(self._features[part]).astype(np.float32)

            def place(row: int, start: int = start) -> str:
                return f"{self._path}: row {start + row}"

            missing: Numbers | None = None
            if facts.fill is None and self._wanted.missing_allowed:
                missing = np.asarray(np.isnan(features).any(axis=1))
            check_finite(features, facts, place, missing_allowed=facts.fill is not None or missing is not None)
            kept = [pa.chunked_array([_as_arrow(array[part])]) for array in self._kept.values()]
            yield NewRows(features, missing, kept, part.stop / count)


def _as_arrow(array: Numbers) -> pa.Array:
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8", "replace")
    return text_array(array.tolist()) if array.dtype.kind == "U" else number_array(np.ascontiguousarray(array))
