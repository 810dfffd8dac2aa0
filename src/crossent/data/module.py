"""The LightningDataModule: a source's rows, split, standardised and served in batches."""

from dataclasses import replace
from typing import Any

import lightning.pytorch as lightning
import torch

from crossent import config
from crossent.custom import make
from crossent.data.bundled import Bundled
from crossent.data.loader import BatchLoader, TrainLoader
from crossent.data.split import Split, stratified
from crossent.data.table import DataFacts, Source, Standardization, Table
from crossent.data.toy import Toy
from crossent.errors import UserError

_EVALUATION_LOGITS = 4_000_000  # a batch, which bounds its memory; larger batches are no faster


class DataModule(lightning.LightningDataModule):
    """Splits a source's rows, standardises them by the training rows, and serves them.

    Args:
        source: where the rows come from.
        batch_size: rows a training step, or None for all of them.
        val_fraction: rows for validation, as a fraction of all.
        test_fraction: likewise for testing.
        standardize: whether features are brought to mean 0 and standard deviation 1 of the training rows.
        shuffle: whether every epoch has its own order.
        seed: of split and order.
        limit: batches after which Lightning calls an epoch done; see `TrainLoader`.
        ignore_index: the target of rows that count for nothing.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int | None = None,
        val_fraction: float = 0.0,
        test_fraction: float = 0.0,
        standardize: bool = False,
        shuffle: bool = True,
        seed: int = 0,
        limit: int | float | None = None,
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        self._source = source
        self._batch_size = batch_size
        self._fractions = (val_fraction, test_fraction)
        self._standardize = standardize
        self._shuffle = shuffle
        self._seed = seed
        self._limit = limit
        self._ignored = ignore_index
        self._tables: dict[str, Table] = {}

    def setup(self, stage: str | None = None) -> None:
        """Reads, splits and standardises the rows; once, however often it is called.

        Raises:
            UserError: rows that cannot be trained on.
        """
        if self._tables:
            return
        table = _checked(self._source.load(), self._ignored)
        val, test = self._fractions
        split = self._split(table, val, test)
        train = table.take(split.train)
        columns = len(table.columns)
        standardization = Standardization.of(train.features) if self._standardize else Standardization.identity(columns)
        if self._standardize:
            table = replace(table, features=standardization(table.features))
        counted = train.targets[train.targets != self._ignored]
        counts = torch.bincount(counted, minlength=len(table.classes)).tolist()
        self._facts = DataFacts(table.classes, table.columns, tuple(counts), standardization)
        self._tables = {name: table.take(rows) for name, rows in zip(Split._fields, split, strict=True)}
        self._train_loader = TrainLoader(
            self._tables["train"], self.batch_rows, shuffle=self._shuffle, seed=self._seed, limit=self._limit
        )

    def _split(self, table: Table, val: float, test: float) -> Split:
        """Splits the rows that have a class; the others stay among the training rows."""
        labelled = (table.targets >= 0) & (table.targets < len(table.classes))
        rows, rest = labelled.nonzero().squeeze(1), (~labelled).nonzero().squeeze(1)
        split = stratified(table.targets[rows], table.classes, val, test, self._seed)
        return Split(torch.cat([rows[split.train], rest]).sort().values, rows[split.val], rows[split.test])

    @property
    def facts(self) -> DataFacts:
        """What a model has to know of the data; after `setup`."""
        return self._facts

    def rows(self, split: str) -> int:
        """Rows of ``train``, ``val`` or ``test``; after `setup`."""
        return len(self._tables[split])

    @property
    def batch_rows(self) -> int:
        """Rows of a full training batch; after `setup`."""
        return min(self._batch_size or self.rows("train"), self.rows("train"))

    def train_dataloader(self) -> TrainLoader:
        """Shuffled batches of the training rows; the same loader at each call, since it knows where it stands."""
        return self._train_loader

    def state_dict(self) -> dict[str, Any]:
        """Where the training loader stands. Lightning saves that too, but does not always load it."""
        return {"train": self._train_loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where a state was taken; after `setup`."""
        self._train_loader.load_state_dict(state_dict["train"])

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """The validation rows in order; nothing where there is no such split."""
        return self._evaluation("val")

    def test_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """The test rows in order; nothing where there is no such split."""
        return self._evaluation("test")

    def _evaluation(self, split: str) -> BatchLoader | list[BatchLoader]:
        table = self._tables[split]
        rows = max(1, _EVALUATION_LOGITS // len(table.classes))
        return BatchLoader(table, rows) if len(table) else []


def build(chosen: config.TrainConfig) -> DataModule:
    """Makes the data module that the configuration asks for.

    Raises:
        UserError: a class of the user's own that cannot be made.
    """
    rows = chosen.data
    return DataModule(
        _source(rows),
        batch_size=None if rows.batch_size == "full" else rows.batch_size,
        val_fraction=rows.val_fraction,
        test_fraction=rows.test_fraction,
        standardize=rows.standardize,
        shuffle=not chosen.trainer.overfit_batches,  # the same batches again and again
        seed=chosen.seed,
        limit=chosen.trainer.overfit_batches or chosen.trainer.limit_train_batches,
        ignore_index=chosen.loss.ignore_index,
    )


def _source(chosen: config.AnyData) -> Source:
    match chosen:
        case config.ToyData():
            return Toy()
        case config.IrisData():
            return Bundled("iris")
        case config.WineData():
            return Bundled("wine")
        case config.DigitsData():
            return Bundled("digits")
        case config.BreastCancerData():
            return Bundled("breast_cancer")
        case config.CustomData():
            return make("data", chosen.class_path, chosen.arguments, Source)


def _checked(table: Table, ignored: int) -> Table:
    """Refuses rows of a source of the user's own that cannot be trained on; ours are right."""
    if not isinstance(table, Table):
        raise UserError(f"data: load() has to return a crossent.data.Table, not a {type(table).__name__}")
    features, targets = table.features, table.targets
    if features.ndim != 2 or targets.shape != features.shape[:1]:
        raise UserError(
            f"data: features have the shape {tuple(features.shape)} and targets {tuple(targets.shape)}; "
            "expected (rows, columns) and (rows,)"
        )
    if len(table.columns) != features.shape[1]:
        raise UserError(f"data: {features.shape[1]} columns, but {len(table.columns)} names for them")
    if len(table) == 0:
        raise UserError("data: there are no rows")
    if len(table.classes) < 2:
        raise UserError(f"data: {len(table.classes)} class; telling apart needs 2 or more")
    outside = torch.nonzero(((targets < 0) | (targets >= len(table.classes))) & (targets != ignored))
    if len(outside):
        row = int(outside[0])
        raise UserError(
            f"data: row {row}: target {int(targets[row])}, expected 0 to {len(table.classes) - 1}, "
            f"or {ignored} (loss.ignore_index) for a row that is to count for nothing"
        )
    if table.weights is not None:
        if not isinstance(table.weights, torch.Tensor):
            raise UserError(f"data: weights are a {type(table.weights).__name__}, expected a tensor, (rows,)")
        if table.weights.shape != targets.shape:
            raise UserError(f"data: weights have the shape {tuple(table.weights.shape)}, not {tuple(targets.shape)}")
        unfit = torch.nonzero(~((table.weights >= 0) & (table.weights <= 1e30)))  # their sum has to fit float32
        if len(unfit):
            row = int(unfit[0])
            raise UserError(f"data: row {row}: weight {float(table.weights[row])}, expected a number >= 0 and <= 1e30")
    broken = torch.nonzero(~torch.isfinite(features))
    if len(broken):
        row, column = (int(index) for index in broken[0])
        found = float(features[row, column])
        raise UserError(f"data: row {row}, column '{table.columns[column]}': {found}, expected a finite number")
    return table
