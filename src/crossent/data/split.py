"""Stratified splits: every class is shared out in the same proportion."""

from typing import NamedTuple

import torch
from torch import Tensor

from crossent.data.table import Table
from crossent.errors import UserError


class Split(NamedTuple):
    """Row indices, (n,) each, in ascending order."""

    train: Tensor
    val: Tensor
    test: Tensor


def rows_of_parts(table: Table, val: float, test: float, seed: int) -> Split:
    """Splits the rows that have a class and are not set apart already; those without one stay for training.

    Args:
        table: the rows.
        val: fraction of the rows, from 0 on, for validation.
        test: likewise for testing; together below 1.
        seed: of the draw.

    Raises:
        UserError: a class of a single row, or a fraction that holds no row or leaves a class none to train on.
    """
    train_rows, val_rows, _ = table.parts or (len(table), 0, 0)
    targets = table.targets[:train_rows]
    labelled = (targets >= 0) & (targets < len(table.classes))
    rows, rest = labelled.nonzero().squeeze(1), (~labelled).nonzero().squeeze(1)
    split = stratified(targets[rows], table.classes, val, test, seed)
    train = torch.cat([rows[split.train], rest]).sort().values
    end = train_rows + val_rows
    own_val, own_test = torch.arange(train_rows, end), torch.arange(end, len(table))
    return Split(train, torch.cat([rows[split.val], own_val]), torch.cat([rows[split.test], own_test]))


def stratified(targets: Tensor, classes: tuple[str, ...], val: float, test: float, seed: int) -> Split:
    """Draws the rows of val and test, class by class.

    Each takes its fraction of all rows, rounded; what the classes' own fractions leave over goes to the classes that
    rounding down cut most. Every class keeps a row to train on.

    Args:
        targets: (rows,), the class of each row.
        classes: their names, for messages.
        val: fraction of the rows, from 0 on.
        test: likewise; together below 1.
        seed: of the draw.

    Raises:
        UserError: a class of a single row, or a fraction that holds no row or leaves a class none to train on.
    """
    if val == 0 and test == 0:
        nothing = torch.empty(0, dtype=torch.int64)
        return Split(torch.arange(len(targets)), nothing, nothing)
    counts = torch.bincount(targets, minlength=len(classes))
    if counts.min() < 2:
        few = int((counts < 2).nonzero()[0])
        count = int(counts[few])
        raise UserError(
            f"data: class '{classes[few]}' has {count} row{'s' * (count != 1)}, too few to split; "
            "leave it out, or set data.val_fraction=0 and data.test_fraction=0"
        )
    generator = torch.Generator().manual_seed(seed)
    test_counts = _share(counts, test, counts - 1, "data.test_fraction", generator)
    val_counts = _share(counts, val, counts - 1 - test_counts, "data.val_fraction", generator)
    # Rows in a random order, then class by class: the first of each class are its test rows, the next its val rows.
    drawn = torch.randperm(len(targets), generator=generator)
    by_class = drawn[targets[drawn].argsort(stable=True)]
    place = torch.arange(len(targets)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    test_ends = test_counts.repeat_interleave(counts)
    val_ends = test_ends + val_counts.repeat_interleave(counts)
    in_test, in_train = place < test_ends, place >= val_ends
    parts = (by_class[in_train], by_class[~in_test & ~in_train], by_class[in_test])
    return Split(*(part.sort().values for part in parts))


def _share(counts: Tensor, fraction: float, available: Tensor, key: str, generator: torch.Generator) -> Tensor:
    """How many rows of each class the fraction takes, (classes,)."""
    wanted = round(int(counts.sum()) * fraction)
    if fraction > 0 and wanted == 0:
        raise UserError(f"{key}={fraction:g}: of {int(counts.sum())} rows that is none")
    exact = counts * fraction
    taken = torch.minimum(exact.floor().long(), available)
    drawn = torch.randperm(len(counts), generator=generator)  # or the first classes would win every draw
    most_cut = drawn[torch.argsort((exact - taken)[drawn], descending=True, stable=True)]
    able = most_cut[taken[most_cut] < available[most_cut]]
    taken[able[: wanted - int(taken.sum())]] += 1
    if int(taken.sum()) < wanted:
        raise UserError(
            f"{key}={fraction:g}: {wanted} of {int(counts.sum())} rows would leave a class none to train on"
        )
    return taken
