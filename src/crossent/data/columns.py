"""Turns columns of a file into features, targets and weights."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crossent.checking import did_you_mean
from crossent.data.arrow import TableFile
from crossent.data.classes import find_classes
from crossent.data.storage import Numbers
from crossent.data.table import Column
from crossent.errors import UserError

log = logging.getLogger(__name__)

_ROWS = 65_536  # that are turned at a time
# A column with more different numbers than this and some texts is one of numbers with mistakes in it.
_MANY_NUMBERS = 20

MISSING = "missing; data.missing=mean fills in the mean of the training rows, data.missing=drop leaves the row out"


@dataclass(frozen=True)
class Layout:
    """Which columns of a file are what.

    Attributes:
        columns: those that features are made of.
        target: the name of the column with the classes.
        weight: the name of the column with the weights of the rows, if there is one.
        classes: the names of the classes, in their order.
        whole_numbers: whether the classes are whole numbers and not texts.
        all_columns: whether these are all columns of the file, since none were chosen.
    """

    columns: tuple[Column, ...]
    target: str
    weight: str | None
    classes: tuple[str, ...]
    whole_numbers: bool
    all_columns: bool

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the features."""
        return tuple(name for column in self.columns for name in column.features)

    def types(self) -> dict[str, pa.DataType]:
        """As what another file's columns are to be read, where a file does not say."""
        texts = [column.name for column in self.columns if column.categories is not None]
        return dict.fromkeys(texts if self.whole_numbers else [*texts, self.target], pa.string())


def find_layout(
    table: pa.Table,
    file: TableFile,
    *,
    target: str | None,
    features: Sequence[str] | None,
    weight: str | None,
    max_categories: int,
    ignored: int,
) -> Layout:
    """Decides over the columns of the training file.

    Args:
        table: its rows.
        file: it, for messages.
        target: the name of the column with the classes; None: the last one.
        features: the names of those with features; None: all others.
        weight: the name of the one with the weights of the rows; None: there is none.
        max_categories: how many different texts a column may have.
        ignored: a whole number that is no class: rows with this target count for nothing.

    Raises:
        UserError: a name that is none of the file's, or a column that cannot be used.
    """
    names = table.column_names
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"{file.path}: two columns are named '{min(twice)}'")
    if not len(table):
        raise UserError(f"{file.path}: no rows, only the names of {len(names)} columns")
    label = _known("target", target if target is not None else names[-1], names, file)
    if weight is not None:
        _known("weight", weight, names, file)
    taken = {label: "data.target", weight: "data.weight"}
    for name in features or ():
        _known("features", name, names, file)
        if name in taken:
            raise UserError(f"data.features: '{name}' is {taken[name]} already")
    chosen = [name for name in names if name not in taken] if features is None else list(features)
    if not chosen:
        raise UserError(f"{file.path}: no column is left for features beside '{label}'")
    columns = tuple(_column(table[name], name, file, max_categories) for name in chosen)
    classes, whole = _classes(table[label], label, file, ignored)
    return Layout(columns, label, weight, classes, whole, features is None)


def _known(key: str, name: str, names: list[str], file: TableFile) -> str:
    if name not in names:
        raise UserError(
            f"data.{key}={name}: no such column in {file.path}{did_you_mean(name, names)} Columns: {_listed(names)}"
        )
    return name


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (f", … ({len(names)})" if len(names) > 20 else "")


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return any(check(kind) for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _is_number(kind: pa.DataType) -> bool:
    checks = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    return any(check(kind) for check in checks)


def _texts(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return values.cast(pa.large_string())


def _column(values: pa.ChunkedArray, name: str, file: TableFile, max_categories: int) -> Column:
    kind = values.type
    where = f"{file.path}: column '{name}'"
    leave_out = "leave it out with data.features=[…]"
    if pa.types.is_null(kind):
        raise UserError(f"{where}: has no value at all; {leave_out}")
    if _is_number(kind):
        return Column(name)
    if not _is_text(kind):
        dates = pa.types.is_temporal(kind)
        raise UserError(f"{where}: holds {'dates or times' if dates else 'values'} of the type {kind}; {leave_out}")
    texts = _texts(pc.unique(values).dictionary_decode() if pa.types.is_dictionary(kind) else pc.unique(values))
    texts = texts.drop_null()
    numbers = pc.match_substring_regex(texts, r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$")
    numeric = pc.sum(numbers).as_py() or 0
    if numeric > _MANY_NUMBERS and numeric > len(texts) / 2 and numeric < len(texts):
        odd = texts.filter(pc.invert(numbers))[0].as_py()
        row = pc.index(_texts(values), odd).as_py()
        raise UserError(f"{file.place(row)}, column '{name}': '{odd}' among numbers; mend it, or {leave_out}")
    if len(texts) > max_categories:
        raise UserError(
            f"{where}: {len(texts):,} different texts, each of which would be a feature; {leave_out}, or raise "
            f"data.max_categories={max_categories}"
        )
    return Column(name, tuple(sorted(texts.to_pylist())))


def _classes(values: pa.ChunkedArray, name: str, file: TableFile, ignored: int) -> tuple[tuple[str, ...], bool]:
    """The names of the classes, and whether they are whole numbers."""
    kind = values.type
    if pa.types.is_null(kind):
        raise UserError(f"{file.path}: column '{name}': has no value at all, but is to have the classes (data.target)")
    if _is_text(kind):
        unique = pc.unique(values)
        found = _texts(unique.dictionary_decode() if pa.types.is_dictionary(kind) else unique).drop_null()
        return tuple(sorted(found.to_pylist())), False
    if pa.types.is_boolean(kind):
        return tuple(text for text in ("false", "true") if pc.any(pc.equal(values, text == "true")).as_py()), False
    if not _is_number(kind):
        raise UserError(
            f"{file.path}: column '{name}': holds the type {kind}; classes are texts or whole numbers (data.target)"
        )
    labels = [label for label in pc.unique(values).drop_null().to_pylist() if label == label]  # NaN is missing
    broken = next((label for label in labels if not _is_whole(label)), None)
    if broken is not None:
        row = pc.index(values, pa.scalar(broken, kind)).as_py()
        raise UserError(
            f"{file.place(row)}, column '{name}': {broken} is no class; classes are texts or whole numbers "
            "(data.target)"
        )
    return tuple(str(label) for label in sorted({int(label) for label in labels} - {ignored})), True


def _is_whole(number: float) -> bool:
    return abs(number) < 2**63 and int(number) == number


@dataclass
class Encoded:
    """What a file's rows have become.

    Attributes:
        features: (rows, features), float32; NaN where a value is missing.
        targets: (rows,), int64.
        weights: (rows,), float32, or None.
        whole: (rows,), whether nothing is missing.
    """

    features: Numbers
    targets: Numbers
    weights: Numbers | None
    whole: Numbers

    def part(self, rows: slice) -> "Encoded":
        """Some of the rows, in the same memory."""
        weights = None if self.weights is None else self.weights[rows]
        return Encoded(self.features[rows], self.targets[rows], weights, self.whole[rows])


class Encoder:
    """Turns the columns of files into numbers, as the layout of the training file has it.

    Args:
        layout: which columns are what.
        missing: whether a missing value is an error.
        ignored: the target of rows that count for nothing.
    """

    def __init__(self, layout: Layout, *, missing: str, ignored: int) -> None:
        self._layout = layout
        self._missing = missing
        self._ignored = ignored
        self._classes = pa.array(layout.classes, pa.large_string())
        self._whole_numbers = np.array([int(name) for name in layout.classes if layout.whole_numbers], np.int64)
        self._categories = {
            column.name: pa.array(column.categories, pa.large_string())
            for column in layout.columns
            if column.categories is not None
        }
        self._rounded: set[str] = set()

    def check_columns(self, table: pa.Table, file: TableFile, first: TableFile) -> None:
        """Refuses a further file that lacks a column or has others.

        Raises:
            UserError: the column.
        """
        layout = self._layout
        needed = [column.name for column in layout.columns] + [layout.target]
        needed += [] if layout.weight is None else [layout.weight]
        for name in needed:
            if name not in table.column_names:
                raise UserError(f"{file.path}: no column '{name}', which {first.path} has")
        for name in table.column_names if layout.all_columns else ():
            if name not in needed:
                raise UserError(
                    f"{file.path}: column '{name}', which {first.path} does not have; data.features=[…] chooses columns"
                )
        for column in layout.columns:
            kind = table.schema.field(column.name).type
            numbers = column.categories is None
            if not pa.types.is_null(kind) and numbers != _is_number(kind):
                raise UserError(
                    f"{file.path}: column '{column.name}': holds {'numbers' if not numbers else f'the type {kind}'}, "
                    f"but {'numbers' if numbers else 'texts'} in {first.path}"
                )

    def encode(self, table: pa.Table, file: TableFile, out: Encoded) -> None:
        """Fills in all rows of a file.

        Args:
            table: its rows.
            file: it, for messages.
            out: room for as many rows.

        Raises:
            UserError: a value that is missing or does not fit, with line and column.
        """
        layout, unseen = self._layout, 0
        for start in range(0, len(table), _ROWS):
            part = slice(start, min(start + _ROWS, len(table)))
            rows = table.slice(part.start, part.stop - part.start)
            place = 0
            for column in layout.columns:
                width = len(column.features)
                room = out.features[part, place : place + width]
                values = rows[column.name]
                if column.categories is None:
                    gaps = self._numbers(values, column.name, room[:, 0], file, start)
                else:
                    gaps, fresh = self._one_hot(values, column.name, room)
                    unseen += fresh
                self._note_gaps(gaps, column.name, out.whole[part], file, start)
                place += width
            self._targets(rows[layout.target], out.targets[part], out.whole[part], file, start)
            if layout.weight is not None and out.weights is not None:
                gaps = self._numbers(rows[layout.weight], layout.weight, out.weights[part], file, start)
                self._note_gaps(gaps, layout.weight, out.whole[part], file, start, fillable=False)
        if unseen:
            log.warning(
                "%s: %d values of text columns were not among the training rows; all their features are 0",
                file.path,
                unseen,
            )

    def _note_gaps(
        self, gaps: Numbers, column: str, whole: Numbers, file: TableFile, start: int, *, fillable: bool = True
    ) -> None:
        if not gaps.any():
            return
        if self._missing == "error" or (self._missing == "mean" and not fillable):
            row = int(gaps.argmax())
            said = MISSING if fillable else "missing; data.missing=drop leaves the row out"
            raise UserError(f"{file.place(start + row)}, column '{column}': {said}")
        whole &= ~gaps

    def _numbers(self, values: pa.ChunkedArray, name: str, out: Numbers, file: TableFile, start: int) -> Numbers:
        """Writes numbers, (rows,), and returns which of them are missing."""
        kind = values.type
        integers = pa.types.is_integer(kind)
        if pa.types.is_boolean(kind):
            values = values.cast(pa.uint8())
        elif pa.types.is_decimal(kind) or pa.types.is_null(kind):
            values = values.cast(pa.float64())
        exact = values.to_numpy(zero_copy_only=False)
        with np.errstate(over="ignore"):  # a number beyond float32 is infinite, and refused below
            out[:] = exact
        gaps: Numbers = np.isnan(out)
        infinite = np.isinf(out)
        if infinite.any():
            row = int(infinite.argmax())
            found = f"{exact[row]:g}"
            limit = "" if np.isinf(exact[row]) else " that float32 can hold"
            raise UserError(f"{file.place(start + row)}, column '{name}': {found}, expected a finite number{limit}")
        if integers and name not in self._rounded:
            rounded = (out.astype(np.float64) != exact) & ~gaps
            if rounded.any():
                self._rounded.add(name)
                row = int(rounded.argmax())
                log.warning(
                    "%s, column '%s': %d has more digits than float32 holds, so it is rounded, and so may be others; "
                    "if it is no quantity but a name, leave it out with data.features=[…]",
                    file.place(start + row),
                    name,
                    int(exact[row]),
                )
        return gaps

    def _one_hot(self, values: pa.ChunkedArray, name: str, out: Numbers) -> tuple[Numbers, int]:
        """Writes a 1 where a row's text is, (rows, categories); returns which are missing, and how many are unknown."""
        gaps: Numbers = values.is_null().to_numpy()
        codes = pc.index_in(_texts(values), self._categories[name]).fill_null(-1).to_numpy()
        out[:] = 0
        known = (codes >= 0).nonzero()[0]
        out[known, codes[known]] = 1
        out[gaps] = np.nan
        return gaps, int(((codes < 0) & ~gaps).sum())

    def _targets(self, values: pa.ChunkedArray, out: Numbers, whole: Numbers, file: TableFile, start: int) -> None:
        layout = self._layout
        if layout.whole_numbers and not _is_text(values.type):
            numbers = values.to_numpy(zero_copy_only=False)
            gaps: Numbers = np.isnan(numbers) if numbers.dtype.kind == "f" else np.zeros(len(numbers), np.bool_)
            labels = np.where(gaps, 0, numbers).astype(np.int64)
            codes, unknown = find_classes(self._whole_numbers, labels, self._ignored)
            unknown = (unknown | (labels != numbers)) & ~gaps
        else:
            gaps = values.is_null().to_numpy()
            codes = pc.index_in(_texts(values), self._classes).fill_null(-1).to_numpy().astype(np.int64)
            unknown = (codes < 0) & ~gaps
        self._note_gaps(gaps, layout.target, whole, file, start, fillable=False)
        if unknown.any():
            row = int(unknown.argmax())
            raise UserError(
                f"{file.place(start + row)}, column '{layout.target}': class '{values[row].as_py()}' is not among the "
                f"training rows, which have: {_listed(layout.classes)}"
            )
        out[:] = codes
