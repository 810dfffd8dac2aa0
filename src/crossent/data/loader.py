"""Batches of rows that are in memory."""

from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor

from crossent.data.table import Table


class Batch:
    """Some rows.

    Lightning moves a batch whole, since it has the method `to`. Being neither a tensor nor a collection, it is left
    alone by Lightning's conversion to the run's precision, which would round the weights: 16 bits hold three digits.

    Attributes:
        features: (rows, columns).
        targets: (rows,).
        weights: (rows,), where the rows have some.
    """

    def __init__(self, features: Tensor, targets: Tensor, weights: Tensor | None = None) -> None:
        self.features = features
        self.targets = targets
        self.weights = weights

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """The same rows on a device."""
        return type(self)(
            self.features.to(device, non_blocking=non_blocking),
            self.targets.to(device, non_blocking=non_blocking),
            None if self.weights is None else self.weights.to(device, non_blocking=non_blocking),
        )


class BatchLoader:
    """Serves a table batch by batch, in order; no row is touched by Python.

    Args:
        table: the rows.
        batch_size: rows a batch, at most all of them; the last batch may be smaller.
    """

    def __init__(self, table: Table, batch_size: int) -> None:
        self._table = table
        self._batch_size = min(batch_size, len(table))

    def __len__(self) -> int:
        """Batches that hold all rows."""
        return -(-len(self._table) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """All batches."""
        for index in range(len(self)):
            yield self._batch(index)

    def _batch(self, index: int, order: Tensor | None = None) -> Batch:
        """The batch at an index, of the rows as they are or in another order."""
        rows: Any = slice(index * self._batch_size, (index + 1) * self._batch_size)
        if order is not None:
            rows = order[rows]
        weights = self._table.weights
        return Batch(self._table.features[rows], self._table.targets[rows], None if weights is None else weights[rows])


class TrainLoader(BatchLoader):
    """Serves a table for training: a stream of epochs, each in an order of its own, that can go on anywhere.

    The order of an epoch follows from seed and epoch alone, and the place in the stream is one number, so that the
    same batch comes at the same place however often the stream was left. In particular it does not depend on where
    Lightning sees an epoch end when it resumes.

    Args:
        table: the rows.
        batch_size: rows a batch, at most all of them; the last batch of an epoch may be smaller.
        shuffle: a new order every epoch. Where one batch has all rows, their order does not matter and stays.
        seed: of the orders.
        limit: Lightning's ``limit_train_batches``, after which it calls an epoch done: a count, or a fraction of the
            batches; None: all.
    """

    def __init__(
        self, table: Table, batch_size: int, *, shuffle: bool, seed: int, limit: int | float | None = None
    ) -> None:
        super().__init__(table, batch_size)
        self._shuffle = shuffle and self._batch_size < len(table)
        self._seed = seed
        # As Lightning reckons; `len` stays that of all rows, since Lightning applies the limit to it.
        allowed = int(limit * len(self)) if isinstance(limit, float) else limit
        self._batches_an_epoch = len(self) if allowed is None else max(1, min(allowed, len(self)))
        self._served = 0  # batches, since the stream began

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the epoch under way that are left, or those of the next one."""
        epoch, begun = divmod(self._served, self._batches_an_epoch)
        order = self._order(epoch)
        for index in range(begun, self._batches_an_epoch):
            self._served += 1  # before the yield: a state taken while a batch is in use counts that batch
            yield self._batch(index, order)

    def _order(self, epoch: int) -> Tensor | None:
        if not self._shuffle:
            return None
        generator = torch.Generator().manual_seed(self._seed * 2**31 + epoch)
        return torch.randperm(len(self._table), generator=generator)

    def state_dict(self) -> dict[str, int]:
        """The place in the stream."""
        return {"served": self._served}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on at a place in the stream."""
        self._served = state["served"]
