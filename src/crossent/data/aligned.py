"""Labelled rows as the features and classes of a trained model."""

import logging
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from crossent import config
from crossent.data.arrow import listed
from crossent.data.facts import DataFacts
from crossent.data.mapped import Mapped
from crossent.data.sources import source
from crossent.data.split import rows_of_parts
from crossent.data.survey import check_all_finite, check_shapes, checksum
from crossent.data.table import Table
from crossent.errors import UserError

log = logging.getLogger(__name__)


class Chosen(NamedTuple):
    """Rows to evaluate on.

    Attributes:
        table: they, their features as they are in the data.
        split: what they are called: train, val or test.
        described: what they are, in words.
    """

    table: Table
    split: str
    described: str


def load(chosen: config.AnyData, facts: DataFacts, split: str, *, own: bool, seed: int, ignored: int) -> Chosen:
    """Reads the rows of a split.

    Args:
        chosen: where they are.
        facts: of the data that the model was trained on.
        split: train, val, test, all, or auto: of the run's own rows test, or val if there are none, or train; of other
            rows those set apart for testing, or all.
        own: whether they are the rows that the model was trained on, split as they were then.
        seed: of the split.
        ignored: the target of rows that count for nothing.

    Raises:
        UserError: rows that do not fit the model, or a split that has none.
    """
    table = source(chosen, ignored, facts).load()
    check_shapes(table, ignored)
    table = _aligned(table, facts, by_place=isinstance(chosen, config.ArraysData))
    if split == "auto" and not own and not chosen.test_fraction and not getattr(chosen, "test_path", None):
        split = "all"
    if split == "all":
        return Chosen(_checked(table, facts), "test", "all, with those that the run was trained on" if own else "all")
    if own and facts.checksum and checksum(table) != facts.checksum:
        raise UserError(
            f"split={split}: the data is no longer what the run was trained on, so nobody knows which rows it has "
            "seen; split=all evaluates all of them"
        )
    parts = rows_of_parts(table, chosen.val_share, chosen.test_fraction, seed)._asdict()
    if split == "auto":
        split = next(name for name in ("test", "val", "train") if len(parts[name]))
    if not len(parts[split]):
        there = ", ".join(name for name, rows in parts.items() if len(rows))
        raise UserError(f"split={split}: there are no such rows; there are: {there}, all")
    return Chosen(_checked(table.take(parts[split]), facts), split, f"the {split} rows")


def _checked(table: Table, facts: DataFacts) -> Table:
    check_all_finite(table, missing_allowed=facts.fill is not None)
    return table


def _aligned(table: Table, facts: DataFacts, *, by_place: bool) -> Table:
    """The same rows, with the columns and the classes that the model has, in its order."""
    columns, features = len(table.columns), table.features
    if by_place:
        texts = next((column.name for column in facts.read_from if column.categories is not None), None)
        if texts is not None:
            raise UserError(f"data=arrays: has no texts, and the run was trained on texts in column '{texts}'")
        if columns != len(facts.columns):
            raise UserError(f"{table.origin}: {columns} columns; the run was trained on {len(facts.columns)}")
        if facts.read_from:
            log.warning("%s: has no names of columns; they are taken for: %s", table.origin, listed(facts.columns))
    elif table.columns != facts.columns:
        if set(table.columns) != set(facts.columns):
            missing = next((name for name in facts.columns if name not in table.columns), None)
            found = f"has no feature '{missing}'" if missing else "has more features"
            raise UserError(f"{table.origin}: {found}; the run was trained on {listed(facts.columns, 5)}")
        if isinstance(features, Mapped):
            raise UserError(f"{table.origin}: its columns are in another order; data.in_memory=true can change that")
        features = features[:, [table.columns.index(name) for name in facts.columns]]
    return replace(
        table, features=features, targets=_as_trained(table, facts), classes=facts.classes, columns=facts.columns
    )


def _as_trained(table: Table, facts: DataFacts) -> Tensor:
    """The targets as the model's classes."""
    if table.classes == facts.classes:
        return table.targets
    known = {name: index for index, name in enumerate(facts.classes)}
    codes = torch.tensor([known.get(name, -1) for name in table.classes])
    named = (table.targets >= 0) & (table.targets < len(codes))
    targets = torch.where(named, codes[table.targets.clamp(0, len(codes) - 1)], table.targets)
    unseen = (named & (targets < 0)).nonzero()
    if len(unseen):
        row = int(unseen[0])
        name = table.classes[int(table.targets[row])]
        raise UserError(
            f"{table.place(row)}: class '{name}' is not among the training rows, which have: {listed(facts.classes)}"
        )
    return targets
