"""Batches of rows, from memory or from a file that does not fit there."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from crossent.data.ahead import in_order
from crossent.data.mapped import Features, Mapped
from crossent.data.shuffle import Shuffle
from crossent.data.table import Table

# Features of a file that are in memory at a time; while they are served, as many again are read.
_WINDOW_BYTES = 32 * 2**20
# Of a GPU's free memory, what features may take there.
_SHARE_OF_GPU = 0.5
_EVALUATION_NUMBERS = 4_000_000  # logits or features a batch, which bounds its memory; larger ones are no faster


def evaluation_rows(classes: int, columns: int) -> int:
    """Rows of a batch of which all logits are held."""
    return max(1, _EVALUATION_NUMBERS // max(classes, columns))


class Batch:
    """Some rows.

    Lightning moves a batch whole, since it has the method `to`. Being neither a tensor nor a collection, it is left
    alone by Lightning's conversion to the run's precision, which would round the weights: 16 bits hold three digits.

    Attributes:
        features: (rows, columns).
        targets: (rows,).
        weights: (rows,), where the rows have some.
        global_rows: of this batch on all ranks together; a rank may hold none of them.
    """

    def __init__(
        self, features: Tensor, targets: Tensor, weights: Tensor | None = None, global_rows: int | None = None
    ) -> None:
        self.features = features
        self.targets = targets
        self.weights = weights
        self.global_rows = len(targets) if global_rows is None else global_rows

    @classmethod
    def empty(cls, weight: Tensor) -> Self:
        """No rows, of the features that a head's weight, (outputs, features), is for."""
        return cls(weight.new_empty(0, weight.shape[1]), weight.new_empty(0, dtype=torch.int64))

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """The same rows on a device."""
        return type(self)(
            self.features.to(device, non_blocking=non_blocking),
            self.targets.to(device, non_blocking=non_blocking),
            None if self.weights is None else self.weights.to(device, non_blocking=non_blocking),
            self.global_rows,
        )


class AllRows:
    """All of a rank's rows, in the order they are in, for whoever goes through them part by part.

    Attributes:
        features: (rows, columns), in memory or in a file.
        targets: (rows,).
        weights: (rows,), where the rows have some.
        first: the index of the first of them among those of all ranks.
    """

    def __init__(self, features: Features, targets: Tensor, weights: Tensor | None, first: int) -> None:
        self.features = features
        self.targets = targets
        self.weights = weights
        self.first = first

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """The same rows on a device; those of a file stay there."""
        features = self.features
        return type(self)(
            features if isinstance(features, Mapped) else features.to(device, non_blocking=non_blocking),
            self.targets.to(device, non_blocking=non_blocking),
            None if self.weights is None else self.weights.to(device, non_blocking=non_blocking),
            self.first,
        )


class BatchLoader:
    """Serves a table batch by batch, in order; no row is touched by Python.

    Every rank gets its share of each batch: neighbouring rows, as many as the others or one fewer.

    Args:
        table: the rows.
        batch_size: rows a batch on all ranks together, at most all rows; the last batch may be smaller.
        rank: of this process.
        ranks: processes that share the batches.
    """

    def __init__(self, table: Table, batch_size: int, *, rank: int = 0, ranks: int = 1) -> None:
        self._table = table
        self._batch_size = min(batch_size, len(table))
        self._rank = rank
        self._ranks = ranks
        self._order: Shuffle | None = None  # of the rows as they are
        # Batches that a window of a file holds; from memory, each batch is taken when it is its turn.
        self._window = max(1, _WINDOW_BYTES // max(1, 4 * table.features.shape[1] * self._batch_size))

    def __len__(self) -> int:
        """Batches that hold all rows."""
        return -(-len(self._table) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """All batches."""
        return self._batches(0, len(self), 0)

    def share(self, rank: int, ranks: int) -> None:
        """Serves one rank's rows of each batch from now on."""
        self._rank, self._ranks = rank, ranks

    def place(self, device: torch.device) -> None:
        """Keeps the rows where they are worked on, if they fit there; a batch is then one index operation."""
        features = self._table.features
        if isinstance(features, Mapped) or features.device == device or device.type != "cuda":
            return
        free, _ = torch.cuda.mem_get_info(device)
        if features.nbytes > _SHARE_OF_GPU * free:
            return
        weights = None if self._table.weights is None else self._table.weights.to(device)
        self._table = replace(
            self._table, features=features.to(device), targets=self._table.targets.to(device), weights=weights
        )

    def _batches(self, begin: int, end: int, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch with the indices from begin to end."""
        features = self._table.features
        if isinstance(features, Mapped):
            return self._from_file(features, begin, end, epoch)
        return self._from_memory(features, begin, end, epoch)

    def _share(self, index: int) -> slice:
        """This rank's rows of a batch, counted in the order that they are served in."""
        begin, rows = index * self._batch_size, self._rows(index)
        first, last = (rows * rank // self._ranks for rank in (self._rank, self._rank + 1))
        return slice(begin + first, begin + last)

    def _rows(self, index: int) -> int:
        """Rows of a batch on all ranks."""
        return min(self._batch_size, len(self._table) - index * self._batch_size)

    def _from_memory(self, features: Tensor, begin: int, end: int, epoch: int) -> Iterator[Batch]:
        targets, weights = self._table.targets, self._table.weights
        order = None if self._order is None else self._order.indices(epoch, 0, features.device)
        for index in range(begin, end):
            part = self._share(index)
            if order is None:
                drawn = (features[part], targets[part], None if weights is None else weights[part])
            else:
                rows = order[part]
                drawn = (
                    features.index_select(0, rows),
                    targets.index_select(0, rows),
                    None if weights is None else weights.index_select(0, rows),
                )
            yield Batch(*drawn, self._rows(index))

    def _from_file(self, features: Mapped, begin: int, end: int, epoch: int) -> Iterator[Batch]:
        """Window by window; while one is served, a thread reads the next."""
        cpu = torch.device("cpu")

        def read(window: int) -> tuple[Tensor, Tensor, Tensor | None, list[int]]:
            indices = range(max(begin, window * self._window), min(end, (window + 1) * self._window))
            shares = [self._share(index) for index in indices]
            if self._order is None:
                rows = torch.cat([torch.arange(each.start, each.stop) for each in shares])
            else:
                order, first = self._order.indices(epoch, window, cpu), window * self._window * self._batch_size
                rows = torch.cat([order[each.start - first : each.stop - first] for each in shares])
            weights = self._table.weights
            sizes = [each.stop - each.start for each in shares]
            return features.read(rows), self._table.targets[rows], None if weights is None else weights[rows], sizes

        windows = range(begin // self._window, -(-end // self._window))
        index = begin
        for inputs, targets, weights, sizes in in_order(read, windows, threads=1):
            parts = zip(
                inputs.split(sizes),
                targets.split(sizes),
                [None] * len(sizes) if weights is None else weights.split(sizes),
                strict=True,
            )
            for part in parts:
                yield Batch(*part, self._rows(index))
                index += 1


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
        rank: of this process.
        ranks: processes that share the batches.
    """

    def __init__(
        self,
        table: Table,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        limit: int | float | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        super().__init__(table, batch_size, rank=rank, ranks=ranks)
        if shuffle and self._batch_size < len(table):
            window = self._window * self._batch_size if isinstance(table.features, Mapped) else None
            self._order = Shuffle(len(table), window, seed)
        # As Lightning reckons; `len` stays that of all rows, since Lightning applies the limit to it.
        allowed = int(limit * len(self)) if isinstance(limit, float) else limit
        self._batches_an_epoch = len(self) if allowed is None else max(1, min(allowed, len(self)))
        self._served = 0  # batches, since the stream began

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the epoch under way that are left, or those of the next one."""
        epoch, begun = divmod(self._served, self._batches_an_epoch)
        for batch in self._batches(begun, self._batches_an_epoch, epoch):
            self._served += 1  # before the yield: a state taken while a batch is in use counts that batch
            yield batch

    @property
    def is_one_batch(self) -> bool:
        """Whether every epoch is the same batch, of rows that are in memory."""
        return self._batches_an_epoch == 1 and self._order is None and not isinstance(self._table.features, Mapped)

    @property
    def left(self) -> int:
        """Batches of the epoch under way that are still to be served."""
        return -self._served % self._batches_an_epoch

    def repeat(self, epochs: int) -> None:
        """Counts the one batch as served again, once for each of some epochs."""
        self._served += epochs

    def state_dict(self) -> dict[str, int]:
        """The place in the stream."""
        return {"served": self._served}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on at a place in the stream."""
        self._served = state["served"]


class WholeLoader(TrainLoader):
    """Serves all of a rank's rows as one batch, `AllRows`, an epoch."""

    def __iter__(self) -> Iterator[AllRows]:  # type: ignore[override]
        """The one batch of the next epoch."""
        self._served += 1
        part, table = self._share(0), self._table
        features = table.features
        if not isinstance(features, Mapped):
            features = features[part]
        elif self._ranks > 1:
            features = features.take(torch.arange(part.start, part.stop))
        yield AllRows(
            features,
            table.targets[part],
            None if table.weights is None else table.weights[part],
            part.start,
        )
