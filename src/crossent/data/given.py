"""Features that are given in memory: an array, or a table of somebody else's. Imports no torch."""

import json
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from crossent.data.arrow import listed
from crossent.data.facts import Column, DataFacts
from crossent.data.features import FeatureEncoder, Place
from crossent.data.layout import check_names
from crossent.data.storage import Numbers
from crossent.errors import UserError

log = logging.getLogger(__name__)


def as_features(given: Any, facts: DataFacts, known: Sequence[str | None]) -> Numbers:
    """What is given as the features that a model was trained on, (rows, features), float32.

    Args:
        given: (rows, features), or a table with named columns: what has Arrow's ``__arrow_c_stream__``, as tables of
            pandas, Polars and Arrow do.
        facts: of the data that the model was trained on.
        known: columns beside those of features that a table may have.

    Raises:
        UserError: a column that is missing, a number of columns other than in training, or a value that does not fit.
    """
    try:
        table = pa.table(given) if hasattr(given, "__arrow_c_stream__") else None
        array = None if table is not None else np.asarray(given)
    except (pa.ArrowException, ValueError, TypeError, RuntimeError) as error:  # as it comes from whoever made it
        raise UserError(f"features: neither a table nor an array of numbers: {' '.join(str(error).split())}") from error
    if table is not None:
        return _from_table(_without_index(table), facts, known)
    assert array is not None
    if array.ndim != 2 or array.dtype.kind not in "fiub":
        raise UserError(
            f"features are {array.dtype} of the shape {array.shape}; expected numbers, (rows, features), or a table "
            "with named columns"
        )
    if array.shape[1] != len(facts.columns):
        raise UserError(f"features have {array.shape[1]} columns; the run was trained on {len(facts.columns)}")
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused as such
        features = array.astype(np.float32, copy=False)
    check_finite(features, facts, lambda row: f"features: row {row}", missing_allowed=facts.fill is not None)
    return features


def check_finite(features: Numbers, facts: DataFacts, place: Place, *, missing_allowed: bool) -> None:
    """Refuses features that are no finite number.

    Args:
        features: (rows, features), float32.
        facts: of the data that the model was trained on.
        place: says where a row, counted from 0, is from.
        missing_allowed: whether NaN, a missing value, is none of the mistakes.

    Raises:
        UserError: the row and the column.
    """
    # A sum is finite where its terms are, but for overflow, and needs no memory.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(features.sum()):
            return
    broken = np.isinf(features) if missing_allowed else ~np.isfinite(features)
    if broken.any():
        row, column = (int(each[0]) for each in broken.nonzero())
        found = f"{features[row, column]:g}, expected a finite number"
        if np.isnan(features[row, column]):
            found = "missing; in training nothing was"
        raise UserError(f"{place(row)}, column '{facts.columns[column]}': {found}")


def check_nameless(path: str, columns: int, facts: DataFacts) -> None:
    """Looks at whether an array, whose columns have no names, can be what a model was trained on.

    Args:
        path: of its file, for messages.
        columns: how many it has.
        facts: of the data that the model was trained on.

    Raises:
        UserError: it has another number of columns, or would need texts.
    """
    texts = next((column.name for column in facts.read_from if column.categories is not None), None)
    if texts is not None:
        raise UserError(
            f"{path}: has no names of columns, and the run was trained on texts in column '{texts}'; give a CSV or "
            "Parquet file"
        )
    if columns != len(facts.columns):
        raise UserError(f"{path}: {columns} columns; the run was trained on {len(facts.columns)}")
    if facts.read_from:
        log.warning("%s: has no names of columns; they are taken for: %s", path, listed(facts.columns))


def _without_index(table: pa.Table) -> pa.Table:
    """The same columns but for the index that pandas hands along."""
    stored = json.loads((table.schema.metadata or {}).get(b"pandas", b"{}"))
    index = [name for name in stored.get("index_columns", ()) if name in table.column_names]
    return table.drop_columns(index)


def _from_table(table: pa.Table, facts: DataFacts, known: Sequence[str | None]) -> Numbers:
    columns = facts.read_from or tuple(Column(name) for name in facts.columns)
    first = "the run's training data"
    needed = [column.name for column in columns]
    surplus = "leave it out" if facts.all_columns else None
    check_names(table.column_names, "features", needed, known=known, first=first, surplus=surplus)
    encoder = FeatureEncoder(columns)
    encoder.check(table.schema, "features", first)
    features = np.empty((len(facts.columns), len(table)), np.float32).T  # a column's numbers side by side

    def place(row: int) -> str:
        return f"features: row {row}"

    for name, gaps in encoder.encode(table, features, place).items():
        if facts.fill is None:
            raise UserError(f"{place(int(gaps.argmax()))}, column '{name}': missing; in training nothing was")
    if encoder.unseen:
        log.warning(
            "features: %d values of text columns were not among the training rows; all their features are 0",
            encoder.unseen,
        )
    return features
