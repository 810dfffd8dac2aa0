"""Decides which columns of a file become features, and what its classes are."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from crossent.checking import did_you_mean
from crossent.data.arrow import TableFile, as_texts, is_number, is_text, listed
from crossent.data.table import Column
from crossent.errors import UserError

# A column with more different numbers than this and some texts is one of numbers with mistakes in it.
_MANY_NUMBERS = 20


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
            f"data.{key}={name}: no such column in {file.path}{did_you_mean(name, names)} Columns: {listed(names)}"
        )
    return name


def _column(values: pa.ChunkedArray, name: str, file: TableFile, max_categories: int) -> Column:
    kind = values.type
    where = f"{file.path}: column '{name}'"
    leave_out = "leave it out with data.features=[…]"
    if pa.types.is_null(kind):
        raise UserError(f"{where}: has no value at all; {leave_out}")
    if is_number(kind):
        return Column(name)
    if not is_text(kind):
        dates = pa.types.is_temporal(kind)
        raise UserError(f"{where}: holds {'dates or times' if dates else 'values'} of the type {kind}; {leave_out}")
    texts = _different(values)
    numbers = pc.match_substring_regex(texts, r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$")
    numeric = pc.sum(numbers).as_py() or 0
    if numeric > _MANY_NUMBERS and numeric > len(texts) / 2 and numeric < len(texts):
        odd = texts.filter(pc.invert(numbers))[0].as_py()
        row = pc.index(as_texts(values), odd).as_py()
        raise UserError(f"{file.place(row)}, column '{name}': '{odd}' among numbers; mend it, or {leave_out}")
    if len(texts) > max_categories:
        raise UserError(
            f"{where}: {len(texts):,} different texts, each of which would be a feature; {leave_out}, or raise "
            f"data.max_categories={max_categories}"
        )
    return Column(name, tuple(sorted(texts.to_pylist())))


def _different(values: pa.ChunkedArray) -> pa.Array:
    """The different texts of a column."""
    unique = pc.unique(values)
    return as_texts(unique.dictionary_decode() if pa.types.is_dictionary(unique.type) else unique).drop_null()


def _classes(values: pa.ChunkedArray, name: str, file: TableFile, ignored: int) -> tuple[tuple[str, ...], bool]:
    """The names of the classes, and whether they are whole numbers."""
    kind = values.type
    if pa.types.is_null(kind):
        raise UserError(f"{file.path}: column '{name}': has no value at all, but is to have the classes (data.target)")
    if is_text(kind):
        return tuple(sorted(_different(values).to_pylist())), False
    if pa.types.is_boolean(kind):
        return tuple(text for text in ("false", "true") if pc.any(pc.equal(values, text == "true")).as_py()), False
    if not is_number(kind):
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
