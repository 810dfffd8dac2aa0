"""Labelled rows as the features and classes of a trained model."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from crossent import config
from crossent.data.arrow import listed
from crossent.data.facts import DataFacts
from crossent.data.given import check_nameless
from crossent.data.mapped import Mapped
from crossent.data.sources import source
from crossent.data.split import rows_of_parts
from crossent.data.survey import check_all_finite, check_shapes, checksum
from crossent.data.table import Table
from crossent.errors import UserError


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


@dataclass(frozen=True)
class Trained:
    """What is known of the rows that a model was trained on.

    Attributes:
        facts: of them.
        val_fraction: of those that are not set apart, for validation.
        test_fraction: likewise for testing.
        seed: of the split.
    """

    facts: DataFacts
    val_fraction: float
    test_fraction: float
    seed: int


def load(chosen: config.AnyData, trained: Trained, split: str, *, unchanged: bool, ignored: int) -> Chosen:
    """Reads the rows of a split.

    The run's own rows, which their checksum tells wherever they come from, are split as they were in training; of other
    rows only what is typed sets some apart.

    Args:
        chosen: where the rows are.
        trained: what is known of the run's own.
        split: train, val, test, all, or auto: test, or val if there are no such rows, or train.
        unchanged: whether they should be the run's own.
        ignored: the target of rows that count for nothing.

    Raises:
        UserError: rows that do not fit the model, or a split that has none.
    """
    facts = trained.facts
    table = source(chosen, ignored, facts).load()
    check_shapes(table, ignored)
    table = _aligned(table, facts, by_place=isinstance(chosen, config.ArraysData))
    own = checksum(table) == facts.checksum
    if unchanged and not own and split != "all":
        raise UserError(
            f"split={split}: the data is no longer what the run was trained on, so nobody knows which rows it has "
            "seen; split=all evaluates all of them"
        )
    val = trained.val_fraction if own else chosen.val_fraction or 0.0
    test = trained.test_fraction if own else chosen.test_fraction
    if split == "all":
        described = "all, with those that the run was trained on" if own else "all"
        return Chosen(_checked(table, facts), "test", described)
    if not own and not (val or test or table.parts):
        raise UserError(
            f"split={split}: these are not the run's own rows, and nothing splits them; split=all takes all"
        )
    parts = rows_of_parts(table, val, test, trained.seed)._asdict()
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
    features = table.features
    if by_place:
        check_nameless(table.origin, len(table.columns), facts)
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
