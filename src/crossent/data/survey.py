"""A look at all rows before they are trained on: whether they can be, and what standardisation needs of them."""

import torch
from torch import Tensor

from crossent.data.standardization import Moments, Standardization
from crossent.data.storage import slices
from crossent.data.table import Table
from crossent.errors import UserError


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
    if len(table) == 0:
        raise UserError("data: there are no rows")
    if len(table.classes) < 2:
        one = f": every row is '{table.classes[0]}'" if table.classes else ""
        raise UserError(f"{table.origin}: {len(table.classes)} class; telling apart needs 2 or more{one}")
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
    unfit = torch.nonzero(~((weights >= 0) & (weights <= 1e30)))  # their sum has to fit float32
    if len(unfit):
        row = int(unfit[0])
        raise UserError(f"{table.origin}: row {row}: weight {float(weights[row])}, expected a number >= 0 and <= 1e30")


def survey(table: Table, train: Tensor, *, standardize: bool, fills: bool) -> Standardization:
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
    for part in slices(table.features):
        features = table.features[part]
        _check_finite(table, features, part.start, missing_allowed=fills)
        if standardize or fills:
            moments.add(features if counts is None else features[counts[part]])
    fill = moments.means() if fills else None
    if not standardize:
        return Standardization.identity(len(table.columns), fill)
    return Standardization(*moments.mean_and_scale(), fill)


def _check_finite(table: Table, features: Tensor, first: int, *, missing_allowed: bool) -> None:
    # A sum is finite where its terms are, but for overflow, and needs no memory.
    if torch.isfinite(features.sum()):
        return
    broken = torch.isinf(features) if missing_allowed else ~torch.isfinite(features)
    places = torch.nonzero(broken)
    if not len(places):
        return
    row, column = (int(index) for index in places[0])
    hint = ""
    if torch.isnan(features[row, column]) and table.origin != "data":
        hint = "; data.missing=mean fills in the mean of the training rows, data.missing=drop leaves the row out"
    raise UserError(
        f"{table.origin}: row {first + row}, column '{table.columns[column]}': {float(features[row, column])}, "
        f"expected a finite number{hint}"
    )
