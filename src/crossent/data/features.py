"""Turns columns of a file into features. Imports no torch."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crossent.data.arrow import as_numpy, as_texts, is_number, is_text, text_array
from crossent.data.facts import Column
from crossent.data.storage import Numbers
from crossent.errors import UserError

log = logging.getLogger(__name__)

#: What a text is that could be a number.
NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"
_EXACT = 2**24  # up to which float32 holds all whole numbers

Place = Callable[[int], str]
Values = Any  # an Array of Arrow's or a ChunkedArray, which have no types


class FeatureEncoder:
    """Numbers stay what they are, and a text becomes a 1 in the feature of that text.

    Args:
        columns: of the file, in the order of the features.

    Attributes:
        unseen: texts so far that are none of their column's; all its features are 0 there.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns
        self._categories = {
            column.name: text_array(column.categories) for column in columns if column.categories is not None
        }
        self._rounded: set[str] = set()
        self.unseen = 0

    def check(
        self, kinds: pa.Schema, path: object, first: str, rows: pa.Table | None = None, place: Place | None = None
    ) -> None:
        """Refuses columns of another kind than they had.

        Args:
            kinds: of the columns, all of which are there.
            path: of the file, for messages.
            first: where they had their kind, for messages.
            rows: all of them, among which the value to blame is looked for; None: they have not been read.
            place: says where a row, counted from 0, is from.

        Raises:
            UserError: the column.
        """
        for column in self._columns:
            kind = kinds.field(column.name).type
            fits = is_number if column.categories is None else is_text
            if fits(kind) or pa.types.is_null(kind):
                continue
            if rows is not None and place is not None and is_text(kind):
                values = as_texts(rows[column.name])
                odd = pc.index(pc.match_substring_regex(values, NUMBER), pa.scalar(False)).as_py()
                found = f"'{values[odd].as_py()}'" if odd >= 0 else "texts"
                raise UserError(
                    f"{place(max(odd, 0))}, column '{column.name}': {found}, expected a number, as in {first}"
                )
            what = "numbers" if column.categories is None else "texts"
            raise UserError(f"{path}: column '{column.name}': holds the type {kind}, but {what} in {first}")

    def encode(self, rows: pa.Table | pa.RecordBatch, out: Numbers, place: Place) -> dict[str, Numbers]:
        """Writes the features of some rows.

        Args:
            rows: with all columns.
            out: (rows, features), float32; NaN is written where a value is missing.
            place: says where a row, counted from 0, is from, for messages.

        Returns:
            For each column that misses any, which rows miss it, (rows,).

        Raises:
            UserError: a number that is infinite, with its place and column.
        """
        missing, begin = {}, 0
        for column in self._columns:
            width, values = len(column.features), rows[column.name]
            if column.categories is None:
                gaps = self.numbers(values, column.name, out[:, begin], place)
            else:
                gaps = self._one_hot(values, column.name, out[:, begin : begin + width])
            if gaps is not None:
                missing[column.name] = gaps
            begin += width
        return missing

    def numbers(self, values: Values, name: str, out: Numbers, place: Place) -> Numbers | None:
        """Writes numbers, (rows,), float32, and returns which are missing, (rows,), or None where none is.

        Raises:
            UserError: one that is infinite, with its place.
        """
        kind = values.type
        if pa.types.is_boolean(kind):
            values = values.cast(pa.uint8())
        if pa.types.is_decimal(kind) or pa.types.is_null(kind):
            values = values.cast(pa.float64())
        if values.null_count:
            exact = np.full(len(values), np.nan)
            exact[as_numpy(values.is_valid())] = as_numpy(values.drop_null()) if values.null_count < len(values) else ()
        else:
            exact = as_numpy(values)
        with np.errstate(over="ignore"):  # a number beyond float32 is infinite, and refused below
            out[:] = exact
        lowest, highest = out.min(initial=np.inf), out.max(initial=-np.inf)  # NaN where there is one
        gaps = None
        if np.isnan(highest):
            gaps = np.isnan(out)
            whole = out[~gaps]
            lowest, highest = whole.min(initial=np.inf), whole.max(initial=-np.inf)
        if not len(out) or (gaps is not None and gaps.all()):
            return gaps
        if np.isinf(lowest) or np.isinf(highest):
            row = int(np.isinf(out).argmax())
            limit = "" if np.isinf(exact[row]) else " that float32 can hold"
            raise UserError(f"{place(row)}, column '{name}': {exact[row]:g}, expected a finite number{limit}")
        if max(-lowest, highest) >= _EXACT:
            self._warn_of_rounding(exact, name, out, place)
        return gaps

    def _warn_of_rounding(self, exact: Numbers, name: str, out: Numbers, place: Place) -> None:
        """Names a whole number that float32 does not hold; once a column."""
        # By their values, since a column of whole numbers may have come as one of others.
        if name in self._rounded or exact.dtype.kind not in "iuf":
            return
        rounded = (out.astype(np.float64) != exact) & (exact == np.floor(exact))
        if rounded.any():
            self._rounded.add(name)
            row = int(rounded.argmax())
            log.warning(
                "%s, column '%s': %d has more digits than float32 holds, so it is rounded, and so may be others; "
                "if it is no quantity but a name, leave it out with data.features=[…]",
                place(row),
                name,
                int(exact[row]),
            )

    def _one_hot(self, values: Values, name: str, out: Numbers) -> Numbers | None:
        """Writes a 1 where a row's text is, (rows, categories); returns which are missing, or None where none is."""
        codes = pc.index_in(as_texts(values), self._categories[name])
        out[:] = 0
        known = as_numpy(codes.is_valid()).nonzero()[0]
        out[known, as_numpy(codes.drop_null())] = 1
        self.unseen += len(values) - len(known)
        if not values.null_count:
            return None
        gaps: Numbers = as_numpy(values.is_null())
        self.unseen -= int(gaps.sum())
        out[gaps] = np.nan
        return gaps
