"""A look at all rows before they are trained on: whether they can be, and what standardisation needs of them."""

import logging
from typing import NamedTuple

import torch
from torch import Tensor

from crossent.data.facts import LARGEST_WEIGHT, MISSING_REMEDIES
from crossent.data.mapped import slices
from crossent.data.standardization import Moments, Standardization
from crossent.data.table import Table
from crossent.errors import UserError

log = logging.getLogger(__name__)

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # of as many bytes
_LARGE_CONSTANT = 100.0
_COARSE = 1e-5  # float32 has seven digits, of which five would be the mean's


def check_shapes(table: Table, ignored: int) -> None:
    """Refuses a table whose parts do not fit together, or whose targets or weights cannot be.

    Args:
        table: of a source; of one of the user's own, anything.
        ignored: the target of rows that count for nothing.

    Raises:
        UserError: what is wrong, with the row.
    """
    if not isinstance(table, Table):
        raise UserError(f"data: load() has to return a crossent.data.Table, not a {type(table).__name__}")
    features, targets = table.features, table.targets
    if len(features.shape) != 2 or targets.shape != features.shape[:1]:
        raise UserError(
            f"data: features have the shape {tuple(features.shape)} and targets {tuple(targets.shape)}; "
            "expected (rows, columns) and (rows,)"
        )
    if len(table.columns) != features.shape[1]:
        raise UserError(f"data: {features.shape[1]} columns, but {len(table.columns)} names for them")
    if not table.columns:
        raise UserError("data: there are no features")
    if len(table) == 0:
        raise UserError("data: there are no rows")
    if len(table.classes) < 2:
        one = f": every row is '{table.classes[0]}'" if table.classes else ""
        raise UserError(f"{table.origin}: {len(table.classes)} class; telling apart needs 2 or more{one}")
    if table.origins and 0 <= ignored < len(table.classes):
        raise UserError(
            f"loss.ignore_index={ignored}: the {len(table.classes)} classes of a file are numbered from 0, so this "
            "would be one of them; use a negative number"
        )
    outside = torch.nonzero(((targets < 0) | (targets >= len(table.classes))) & (targets != ignored))
    if len(outside):
        row = int(outside[0])
        raise UserError(
            f"data: row {row}: target {int(targets[row])}, expected 0 to {len(table.classes) - 1}, "
            f"or {ignored} (loss.ignore_index) for a row that is to count for nothing"
        )
    if table.weights is not None:
        _check_weights(table, table.weights)


def _check_weights(table: Table, weights: Tensor) -> None:
    if not isinstance(weights, torch.Tensor):
        raise UserError(f"data: weights are a {type(weights).__name__}, expected a tensor, (rows,)")
    if weights.shape != table.targets.shape:
        raise UserError(f"data: weights have the shape {tuple(weights.shape)}, not {tuple(table.targets.shape)}")
    unfit = torch.nonzero(~((weights >= 0) & (weights <= LARGEST_WEIGHT)))
    if len(unfit):
        row = int(unfit[0])
        found = float(weights[row])
        raise UserError(f"{table.place(row)}: weight {found}, expected a number >= 0 and <= {LARGEST_WEIGHT:g}")


class Survey(NamedTuple):
    """What a look at all rows has found.

    Attributes:
        standardization: what is to be done to the features.
        checksum: of features, targets and weights.
    """

    standardization: Standardization
    checksum: int


def survey(table: Table, train: Tensor, *, standardize: bool, fills: bool) -> Survey:
    """Goes through all features once, in parts.

    Args:
        table: the rows.
        train: indices of the training rows, (n,), by which to standardise.
        standardize: whether columns are brought to mean 0 and standard deviation 1.
        fills: whether a missing value, NaN, is to be filled in with its column's mean.

    Raises:
        UserError: a feature that is no finite number, with its row and column.
    """
    moments = Moments(table.features.shape[1])
    counts: Tensor | None = None
    if len(train) != len(table):
        counts = torch.zeros(len(table), dtype=torch.bool)
        counts[train] = True
    checksum = _checksum_beside_features(table)
    for part in slices(table.features):
        features = table.features[part]
        checksum += _checksum(features, part.start)
        check_finite(table, features, part.start, missing_allowed=fills)
        moments.add(features if counts is None else features[counts[part]])
    mean, scale = moments.mean_and_scale()
    _warn_of_columns(table, moments.means(), scale, moments.constant())
    fill = moments.means() if fills else None
    standardization = Standardization(mean, scale, fill)
    if not standardize:
        standardization = Standardization.identity(len(table.columns), fill)
    return Survey(standardization, checksum % 2**63)


def checksum(table: Table) -> int:
    """The checksum alone that `survey` finds of all rows."""
    parts = slices(table.features)
    return (
        _checksum_beside_features(table) + sum(_checksum(table.features[part], part.start) for part in parts)
    ) % 2**63


def check_all_finite(table: Table, *, missing_allowed: bool) -> None:
    """Refuses features that are no finite number.

    Args:
        table: the rows.
        missing_allowed: whether NaN, a missing value, is none of the mistakes.

    Raises:
        UserError: the row and the column.
    """
    for part in slices(table.features):
        check_finite(table, table.features[part], part.start, missing_allowed=missing_allowed)


def _checksum_beside_features(table: Table) -> int:
    return _checksum(table.targets, 0) + (0 if table.weights is None else _checksum(table.weights, 1))


def _checksum(values: Tensor, first: int) -> int:
    """A number that changes with any value, and with the order of the rows; cheap, and no proof against intent."""
    bits = values.contiguous().view(_INTEGERS[values.itemsize]).reshape(len(values), -1).sum(1, dtype=torch.int64)
    return int((bits * torch.arange(2 * first + 1, 2 * (first + len(values)) + 1, 2)).sum())  # int64 wraps around


def _warn_of_columns(table: Table, means: Tensor, scale: Tensor, constant: Tensor) -> None:
    """Names columns that would spoil a fit, or from which nothing can be learnt."""
    large = constant & (means.abs() > _LARGE_CONSTANT)
    coarse = ~constant & (scale < means.abs() * _COARSE)
    for columns, what in (
        (large, "is the same in all training rows, and large: it does nothing but slow training down; leave it out"),
        (coarse, "varies so little around its mean that float32 holds few digits of it; take the mean off first"),
    ):
        if columns.any():
            column = int(columns.nonzero()[0])
            others = f" (and {int(columns.sum()) - 1} more)" if columns.sum() > 1 else ""
            log.warning(
                "%s: column '%s'%s, %g, %s", table.origin, table.columns[column], others, float(means[column]), what
            )


def check_finite(table: Table, features: Tensor, first: int, *, missing_allowed: bool) -> None:
    """Refuses features that are no finite number.

    Args:
        table: all rows, for the message.
        features: of some that follow one another, (n, columns).
        first: the index of the first of those.
        missing_allowed: whether NaN, a missing value, is none of the mistakes.

    Raises:
        UserError: the row and the column.
    """
    # A sum is finite where its terms are, but for overflow, and needs no memory.
    if torch.isfinite(features.sum()):
        return
    broken = torch.isinf(features) if missing_allowed else ~torch.isfinite(features)
    places = torch.nonzero(broken)
    if not len(places):
        return
    row, column = (int(index) for index in places[0])
    hint = ""
    if torch.isnan(features[row, column]) and table.origins:
        hint = f"; {MISSING_REMEDIES}"
    raise UserError(
        f"{table.place(first + row)}, column '{table.columns[column]}': {float(features[row, column])}, "
        f"expected a finite number{hint}"
    )
