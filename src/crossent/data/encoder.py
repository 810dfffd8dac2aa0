"""Turns columns of a file into features, targets and weights."""

import logging
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crossent.data.arrow import TableFile, as_texts, is_number, is_text, listed
from crossent.data.classes import find_classes
from crossent.data.facts import LARGEST_WEIGHT, MISSING_REMEDIES
from crossent.data.layout import Layout, check_rows, check_weight
from crossent.data.storage import Numbers
from crossent.errors import UserError

log = logging.getLogger(__name__)

_ROWS = 65_536  # that are turned at a time
_MISSING = f"missing (empty, NA, NaN, null, None and ? are); {MISSING_REMEDIES}"
_EXACT = 2**24  # up to which float32 holds all whole numbers


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
        self._whole_numbers = np.array(
            [int(name) for name in layout.classes if layout.labels == "whole numbers"], np.int64
        )
        self._categories = {
            column.name: pa.array(column.categories, pa.large_string())
            for column in layout.columns
            if column.categories is not None
        }
        self._rounded: set[str] = set()

    def check_columns(self, table: pa.Table, file: TableFile, first: str) -> None:
        """Refuses a further file that lacks a column or has others.

        Args:
            table: its rows.
            file: it, for messages.
            first: what the layout is of, for messages.

        Raises:
            UserError: the column.
        """
        check_rows(table, file)
        layout, names = self._layout, set(table.column_names)
        needed = dict.fromkeys([column.name for column in layout.columns] + [layout.target])
        if layout.weight is not None:
            needed[layout.weight] = None
        for name in needed:
            if name not in names:
                raise UserError(f"{file.path}: no column '{name}', which {first} has")
        for name in table.column_names if layout.all_columns else ():
            if name not in needed:
                raise UserError(
                    f"{file.path}: column '{name}', which {first} does not have; data.features=[…] chooses columns"
                )
        if layout.weight is not None:
            check_weight(table, file, layout.weight)
        expected = {column.name: "numbers" if column.categories is None else "texts" for column in layout.columns}
        for name, what in {**expected, layout.target: layout.labels}.items():
            kind = table.schema.field(name).type
            if pa.types.is_null(kind) and name != layout.target:
                continue
            fits = {"texts": is_text, "booleans": pa.types.is_boolean}.get(what, is_number)
            # Texts among whole numbers get a line of their own, since they are no class.
            if not fits(kind) and not (what == "whole numbers" and is_text(kind)):
                raise UserError(f"{file.path}: column '{name}': holds the type {kind}, but {what} in {first}")

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
                weights = out.weights[part]
                gaps = self._numbers(rows[layout.weight], layout.weight, weights, file, start)
                self._note_gaps(gaps, layout.weight, out.whole[part], file, start, fillable=False)
                unfit = ~((weights >= 0) & (weights <= LARGEST_WEIGHT)) & ~gaps
                if unfit.any():
                    row = int(unfit.argmax())
                    raise UserError(
                        f"{file.place(start + row)}, column '{layout.weight}': weight {weights[row]:g}, expected a "
                        f"number >= 0 and <= {LARGEST_WEIGHT:g}"
                    )
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
            said = _MISSING if fillable else "missing; data.missing=drop leaves the row out"
            raise UserError(f"{file.place(start + row)}, column '{column}': {said}")
        whole &= ~gaps

    def _numbers(self, values: pa.ChunkedArray, name: str, out: Numbers, file: TableFile, start: int) -> Numbers:
        """Writes numbers, (rows,), and returns which of them are missing."""
        kind = values.type
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
        # By their values, since a column of whole numbers may have come as one of others.
        if (
            name not in self._rounded
            and exact.dtype.kind in "iuf"
            and np.abs(out).max(initial=0, where=~gaps) >= _EXACT
        ):
            rounded = (out.astype(np.float64) != exact) & (exact == np.floor(exact)) & ~gaps
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
        codes = pc.index_in(as_texts(values), self._categories[name]).fill_null(-1).to_numpy()
        out[:] = 0
        known = (codes >= 0).nonzero()[0]
        out[known, codes[known]] = 1
        out[gaps] = np.nan
        return gaps, int(((codes < 0) & ~gaps).sum())

    def _targets(self, values: pa.ChunkedArray, out: Numbers, whole: Numbers, file: TableFile, start: int) -> None:
        layout = self._layout
        gaps: Numbers = values.is_null(nan_is_null=True).to_numpy()
        if layout.labels == "whole numbers" and not is_text(values.type):
            if pa.types.is_integer(values.type):  # not by way of float64, which does not hold them all
                numbers = values.fill_null(0).to_numpy()
            else:
                numbers = np.where(gaps, 0, values.cast(pa.float64()).to_numpy(zero_copy_only=False))
            whole_numbers = np.abs(numbers) < 2**63
            labels = np.where(whole_numbers, numbers, 0).astype(np.int64)
            codes, unknown = find_classes(self._whole_numbers, labels, self._ignored)
            unknown = (unknown | ~whole_numbers | (labels != numbers)) & ~gaps
        else:
            codes = pc.index_in(as_texts(values), self._classes).fill_null(-1).to_numpy().astype(np.int64)
            unknown = (codes < 0) & ~gaps
        self._note_gaps(gaps, layout.target, whole, file, start, fillable=False)
        if unknown.any():
            row = int(unknown.argmax())
            raise UserError(
                f"{file.place(start + row)}, column '{layout.target}': class '{values[row].as_py()}' is not among the "
                f"training rows, which have: {listed(layout.classes)}"
            )
        out[:] = codes
