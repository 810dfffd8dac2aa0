"""Decides which columns of a file become features, and what its classes are."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc

from crossent.checking import did_you_mean
from crossent.data.arrow import TableFile, as_texts, is_number, is_text, listed
from crossent.data.facts import Column, DataFacts, Labels
from crossent.data.features import NUMBER
from crossent.errors import UserError

log = logging.getLogger(__name__)

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
        labels: what the classes are.
        all_columns: whether these are all columns of the file, since none were chosen.
    """

    columns: tuple[Column, ...]
    target: str
    weight: str | None
    classes: tuple[str, ...]
    labels: Labels
    all_columns: bool

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the features."""
        return tuple(name for column in self.columns for name in column.features)

    @classmethod
    def of(cls, facts: DataFacts, *, target: str, weight: str | None, all_columns: bool) -> Self:
        """That of the file which a model was trained on, or one that would have made its features.

        Args:
            facts: what the model knows of that file.
            target: the name of the column with the classes.
            weight: the name of the one with the weights of the rows; None: there is none.
            all_columns: whether a file is to have no others.
        """
        columns = facts.read_from or tuple(Column(name) for name in facts.columns)
        return cls(columns, target, weight, facts.classes, facts.labels, all_columns)

    def types(self) -> dict[str, pa.DataType]:
        """As what another file's columns are to be read, where a file does not say."""
        texts = [column.name for column in self.columns if column.categories is not None]
        labels = {"texts": pa.string(), "booleans": pa.bool_()}.get(self.labels)
        return dict.fromkeys(texts, pa.string()) | ({} if labels is None else {self.target: labels})


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
    check_rows(table, file)
    label = _known("target", target if target is not None else names[-1], names, file)
    if weight is not None:
        _known("weight", weight, names, file)
        check_weight(table, file, weight)
    taken = {label: "data.target", weight: "data.weight"}
    for name in features or ():
        _known("features", name, names, file)
        if name in taken:
            raise UserError(f"data.features: '{name}' is {taken[name]} already")
        taken[name] = "among them"
    chosen = [name for name in names if name not in taken] if features is None else list(features)
    if not chosen:
        other = next((each for each in (";", "\t", "|", ",") if each in label), None)
        hint = "" if other is None else f"; is data.delimiter {'tab' if other == chr(9) else other!r}?"
        raise UserError(f"{file.path}: no column is left for features beside '{label}'{hint}")
    if "" in chosen:
        log.warning(
            "%s: a column has no name, as the index that pandas writes; data.features=[…] leaves it out", file.path
        )
    columns = tuple(_column(table[name], name, file, max_categories) for name in chosen)
    classes, labels = _classes(table[label], label, file, ignored)
    return Layout(columns, label, weight, classes, labels, features is None)


def check_rows(table: pa.Table, file: TableFile) -> None:
    """Refuses a file without rows, or with two columns of one name.

    Raises:
        UserError: which it is.
    """
    _check_unique(table.column_names, file.path)
    if not len(table):
        raise UserError(f"{file.path}: no rows, only the names of {len(table.column_names)} columns")


def check_names(
    names: Sequence[str],
    path: object,
    needed: Sequence[str],
    *,
    known: Sequence[str | None],
    first: str,
    surplus: str | None,
) -> None:
    """Refuses a file that lacks a column, has two of one name, or others than it should.

    Args:
        names: of its columns.
        path: of it, for messages.
        needed: the columns that it has to have.
        known: those that it may have.
        first: where the columns were as they should be, for messages.
        surplus: what to do about others, for messages; None: they may be there.

    Raises:
        UserError: the column.
    """
    _check_unique(names, path)
    for name in needed:
        if name not in names:
            raise UserError(f"{path}: no column '{name}', which {first} has{did_you_mean(name, names).rstrip('.')}")
    allowed = {*needed, *known}
    for name in names:
        if surplus is not None and name not in allowed:
            raise UserError(f"{path}: column '{name}', which {first} does not have; {surplus.format(name=name)}")


def _check_unique(names: Sequence[str], path: object) -> None:
    name, count = Counter(names).most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise UserError(f"{path}: two columns are named '{name}'")


def check_weight(table: pa.Table, file: TableFile, name: str) -> None:
    """Refuses weights that are no numbers.

    Raises:
        UserError: of what type they are.
    """
    kind = table.schema.field(name).type
    if not is_number(kind):
        raise UserError(f"{file.path}: column '{name}': holds the type {kind}; weights are numbers (data.weight)")


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
    if values.null_count == len(values):
        raise UserError(f"{where}: has no value at all; {leave_out}")
    if is_number(kind):
        return Column(name)
    if pa.types.is_binary(kind):
        raise UserError(f"{where}: is not in UTF-8; save the file as that, or set data.encoding (latin-1, utf-16, …)")
    if not is_text(kind):
        dates = pa.types.is_temporal(kind)
        raise UserError(f"{where}: holds {'dates or times' if dates else 'values'} of the type {kind}; {leave_out}")
    texts = _different(values)
    with_commas = pc.sum(pc.match_substring_regex(texts, NUMBER.replace("\\.", ","))).as_py()
    numbers = pc.match_substring_regex(texts, NUMBER)
    numeric = pc.sum(numbers).as_py()
    if with_commas > _MANY_NUMBERS and with_commas > len(texts) / 2:
        raise UserError(f"{where}: numbers with decimal commas; set data.decimal=',' (in quotes), or {leave_out}")
    if numeric > _MANY_NUMBERS and numeric > len(texts) / 2 and numeric < len(texts):
        odd = texts.filter(pc.invert(numbers))[0].as_py()
        row = pc.index(as_texts(values), odd).as_py()
        raise UserError(f"{file.place(row)}, column '{name}': '{odd}' among numbers; mend it, or {leave_out}")
    if len(texts) > max_categories:
        raise UserError(
            f"{where}: {len(texts):,} different texts, each of which would be a feature; {leave_out}, or raise "
            f"data.max_categories={max_categories}"
        )
    if 2 * len(texts) > len(values):
        log.warning(
            "%s: %d different texts in %d rows, each of which becomes a feature; is it a name? %s",
            where,
            len(texts),
            len(values),
            leave_out,
        )
    return Column(name, tuple(sorted(texts.to_pylist())))


def _different(values: pa.ChunkedArray) -> pa.Array:
    """The different texts of a column."""
    unique = pc.unique(values)
    return as_texts(unique.dictionary_decode() if pa.types.is_dictionary(unique.type) else unique).drop_null()


def _classes(values: pa.ChunkedArray, name: str, file: TableFile, ignored: int) -> tuple[tuple[str, ...], Labels]:
    """The names of the classes, and what they are."""
    kind = values.type
    if values.null_count == len(values):
        raise UserError(f"{file.path}: column '{name}': has no value at all, but is to have the classes (data.target)")
    if is_text(kind):
        return tuple(sorted(_different(values).to_pylist())), "texts"
    if pa.types.is_boolean(kind):
        return tuple(text for text in ("false", "true") if pc.any(pc.equal(values, text == "true")).as_py()), "booleans"
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
            "below 2^63 (data.target)"
        )
    return tuple(str(label) for label in sorted({int(label) for label in labels} - {ignored})), "whole numbers"


def _is_whole(number: float) -> bool:
    return abs(number) < 2**63 and int(number) == number
