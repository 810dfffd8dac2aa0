"""Turns columns of a file into features, targets and weights."""

import logging
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crossent.data.arrow import TableFile, as_texts, is_number, is_text, listed
from crossent.data.classes import class_values, find_classes
from crossent.data.facts import LARGEST_WEIGHT, MISSING_REMEDIES
from crossent.data.features import FeatureEncoder, Place
from crossent.data.layout import Layout, check_names, check_rows, check_weight
from crossent.data.storage import Numbers
from crossent.errors import UserError

log = logging.getLogger(__name__)

_ROWS = 65_536  # that are turned at a time
_MISSING = f"missing (empty, NA, NaN, null, None and ? are); {MISSING_REMEDIES}"


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
        self._whole_numbers = class_values(layout.classes if layout.labels == "whole numbers" else (), "whole numbers")
        self._features = FeatureEncoder(layout.columns)

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
        layout = self._layout
        needed = [column.name for column in layout.columns] + [layout.target]
        check_names(
            table.column_names,
            file.path,
            needed if layout.weight is None else [*needed, layout.weight],
            known=(),
            first=first,
            surplus="data.features=[…] chooses columns" if layout.all_columns else None,
        )
        if layout.weight is not None:
            check_weight(table, file, layout.weight)
        self._features.check(table.schema, file.path, first, table, file.place)
        kind, what = table.schema.field(layout.target).type, layout.labels
        fits = {"texts": is_text, "booleans": pa.types.is_boolean}.get(what, is_number)
        # Texts among whole numbers get a line of their own, since they are no class.
        if not fits(kind) and not (what == "whole numbers" and is_text(kind)):
            raise UserError(f"{file.path}: column '{layout.target}': holds the type {kind}, but {what} in {first}")

    def encode(self, table: pa.Table, file: TableFile, out: Encoded) -> None:
        """Fills in all rows of a file.

        Args:
            table: its rows.
            file: it, for messages.
            out: room for as many rows.

        Raises:
            UserError: a value that is missing or does not fit, with line and column.
        """
        layout, seen_before = self._layout, self._features.unseen
        for start in range(0, len(table), _ROWS):
            part = slice(start, min(start + _ROWS, len(table)))
            rows = table.slice(part.start, part.stop - part.start)

            def place(row: int, start: int = start) -> str:
                return file.place(start + row)

            whole = out.whole[part]
            for name, gaps in self._features.encode(rows, out.features[part], place).items():
                self._note_gaps(gaps, name, whole, place)
            self._targets(rows[layout.target], out.targets[part], whole, place)
            if layout.weight is not None and out.weights is not None:
                self._weights(rows[layout.weight], layout.weight, out.weights[part], whole, place)
        if unseen := self._features.unseen - seen_before:
            log.warning(
                "%s: %d values of text columns were not among the training rows; all their features are 0",
                file.path,
                unseen,
            )

    def _weights(self, values: pa.ChunkedArray, name: str, out: Numbers, whole: Numbers, place: Place) -> None:
        gaps = self._features.numbers(values, name, out, place)
        unfit = ~((out >= 0) & (out <= LARGEST_WEIGHT))
        if gaps is not None:
            self._note_gaps(gaps, name, whole, place, fillable=False)
            unfit &= ~gaps
        if unfit.any():
            row = int(unfit.argmax())
            raise UserError(
                f"{place(row)}, column '{name}': weight {out[row]:g}, expected a number >= 0 and <= {LARGEST_WEIGHT:g}"
            )

    def _note_gaps(self, gaps: Numbers, column: str, whole: Numbers, place: Place, *, fillable: bool = True) -> None:
        if self._missing == "error" or (self._missing == "mean" and not fillable):
            said = _MISSING if fillable else "missing; data.missing=drop leaves the row out"
            raise UserError(f"{place(int(gaps.argmax()))}, column '{column}': {said}")
        whole &= ~gaps

    def _targets(self, values: pa.ChunkedArray, out: Numbers, whole: Numbers, place: Place) -> None:
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
        if gaps.any():
            self._note_gaps(gaps, layout.target, whole, place, fillable=False)
        unknown &= whole  # a row that is dropped may have any class
        if unknown.any():
            row = int(unknown.argmax())
            raise UserError(
                f"{place(row)}, column '{layout.target}': class '{values[row].as_py()}' is not among the "
                f"training rows, which have: {listed(layout.classes)}"
            )
        out[:] = codes
