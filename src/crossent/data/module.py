"""The LightningDataModule: a source's rows, split, standardised and served in batches."""

import logging
from typing import Any, TypeVar

import lightning.pytorch as lightning
import torch

from crossent.data.facts import DataFacts
from crossent.data.loader import BatchLoader, TrainLoader, WholeLoader, evaluation_rows
from crossent.data.mapped import Mapped
from crossent.data.split import Split, rows_of_parts
from crossent.data.storage import IN_MEMORY_BYTES
from crossent.data.survey import check_shapes, survey
from crossent.data.table import Source, Table
from crossent.errors import UserError

log = logging.getLogger(__name__)

_FEW_ROWS = 20  # with which anything may be meant

Loader = TypeVar("Loader", bound=BatchLoader)


class DataModule(lightning.LightningDataModule):
    """Splits a source's rows, standardises them by the training rows, and serves them.

    Args:
        source: where the rows come from.
        batch_size: rows a training step, or None for all of them.
        val_fraction: rows for validation, as a fraction of those that the source has not set apart.
        test_fraction: likewise for testing.
        standardize: whether features are brought to mean 0 and standard deviation 1 of the training rows.
        shuffle: whether every epoch has its own order.
        seed: of split and order.
        limit: batches after which Lightning calls an epoch done; see `TrainLoader`.
        ignore_index: the target of rows that count for nothing.
        whole: whether a training batch is all rows as they are, which its user goes through part by part.
        fills: whether a missing value, NaN, is filled in with its column's mean over the training rows.
    """

    def __init__(
        self,
        source: Source,
        *,
        whole: bool = False,
        batch_size: int | None = None,
        val_fraction: float = 0.0,
        test_fraction: float = 0.0,
        standardize: bool = False,
        shuffle: bool = True,
        seed: int = 0,
        limit: int | float | None = None,
        ignore_index: int = -100,
        fills: bool = False,
    ) -> None:
        super().__init__()
        self._source = source
        self._whole = whole
        self._batch_size = batch_size
        self._fractions = (val_fraction, test_fraction)
        self._standardize = standardize
        self._shuffle = shuffle
        self._seed = seed
        self._limit = limit
        self._ignored = ignore_index
        self._fills = fills
        self._tables: dict[str, Table] = {}

    def setup(self, stage: str | None = None) -> None:
        """Reads, splits and standardises the rows; once, however often it is called.

        Raises:
            UserError: rows that cannot be trained on.
        """
        if self._tables:
            return
        table = self._source.load()
        check_shapes(table, self._ignored)
        split = rows_of_parts(table, *self._fractions, self._seed)
        standardization, checksum = survey(table, split.train, standardize=self._standardize, fills=self._fills)
        parts = {name: table.take(rows) for name, rows in zip(Split._fields, split, strict=True)}
        self._best_accuracy = table.best_accuracy
        counted = parts["train"].targets[parts["train"].targets != self._ignored]
        counts = torch.bincount(counted, minlength=len(table.classes)).tolist()
        self._facts = DataFacts(
            table.classes,
            table.columns,
            tuple(counts),
            standardization.mean.numpy(),
            standardization.scale.numpy(),
            None if standardization.fill is None else standardization.fill.numpy(),
            table.labels,
            table.read_from,
            table.all_columns,
            table.target,
            checksum,
        )
        copied = len(parts["train"]) < len(table)  # otherwise the memory is the source's own
        del table  # or its features would stay in memory beside those of the parts
        for name in Split._fields:
            self._tables[name] = parts.pop(name).standardized(standardization, in_place=copied)
        kind = WholeLoader if self._whole else TrainLoader
        self._train_loader = kind(
            self._tables["train"], self.batch_rows, shuffle=self._shuffle, seed=self._seed, limit=self._limit
        )
        self._check_sizes()

    def _check_sizes(self) -> None:
        """Refuses what memory has no room for, and wonders about what is not usual."""
        train, classes, columns = self._tables["train"], len(self._facts.classes), len(self._facts.columns)
        if not self._whole and isinstance(train.features, Mapped) and self.batch_rows * columns * 4 > IN_MEMORY_BYTES:
            chosen = "full" if self._batch_size is None else self._batch_size
            raise UserError(
                f"data.batch_size={chosen}: so many rows with {columns} features do not stay in memory; use fewer, "
                "data.batch_size=1024 for one"
            )
        for name in ("val", "test"):
            if len(self._tables[name]) and not self._counts(self._tables[name]):
                raise UserError(f"data: no {name} row counts: all of them are ignored or have the weight 0")
        if classes > len(train) or (2 * classes > len(train) > _FEW_ROWS):
            log.warning(
                "%d classes for %d training rows: is the target (data.target) what you want to tell apart?",
                classes,
                len(train),
            )

    def _counts(self, table: Table) -> bool:
        """Whether any row counts for something."""
        counts = table.targets != self._ignored
        return bool((counts if table.weights is None else counts & (table.weights > 0)).any())

    @property
    def facts(self) -> DataFacts:
        """What a model has to know of the data; after `setup`."""
        return self._facts

    @property
    def is_set_up(self) -> bool:
        """Whether the rows have been read."""
        return bool(self._tables)

    @property
    def bytes_in_memory(self) -> int:
        """Of all features that are not left on disk; after `setup`."""
        found = [table.features for table in self._tables.values()]
        return sum(features.nbytes for features in found if not isinstance(features, Mapped))

    @property
    def best_accuracy(self) -> float | None:
        """The highest accuracy that is possible on the source's rows, where that is known; after `setup`."""
        return self._best_accuracy

    def rows(self, split: str) -> int:
        """Rows of ``train``, ``val`` or ``test``; after `setup`."""
        return len(self._tables[split])

    def first_rows(self, split: str, most: int) -> Table:
        """Some rows of a split as they are trained on, in order; after `setup`."""
        return self._tables[split].take(torch.arange(min(most, self.rows(split))))

    @property
    def batch_rows(self) -> int:
        """Rows of a full training batch; after `setup`."""
        return min(self._batch_size or self.rows("train"), self.rows("train"))

    def train_dataloader(self) -> TrainLoader:
        """Shuffled batches of the training rows; the same loader at each call, since it knows where it stands."""
        return self._placed(self._train_loader)

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
        classes = -(-len(table.classes) // self._class_shards)  # of any rank, at most
        rows = evaluation_rows(classes, len(table.columns))
        return self._placed(BatchLoader(table, rows)) if len(table) else []

    @property
    def _share(self) -> tuple[int, int]:
        """This rank among those that share the rows, and how many they are."""
        share = None if self.trainer is None else self.trainer.distributed_sampler_kwargs
        return (0, 1) if share is None else (share["rank"], share["num_replicas"])

    @property
    def _class_shards(self) -> int:
        """How many ranks share out the classes of the same rows."""
        return 1 if self.trainer is None else self.trainer.world_size // self._share[1]

    def _placed(self, loader: Loader) -> Loader:
        """A loader that serves this rank's rows, from the device that works on them."""
        if self.trainer is not None:
            loader.share(*self._share)
            loader.place(self.trainer.strategy.root_device)
        return loader
