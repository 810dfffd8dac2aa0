"""Batches of rows that are in memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from crossent.data.table import Table


@dataclass  # not frozen: Lightning converts the precision of a batch in place
class Batch:
    """Some rows: features, (rows, columns), and targets, (rows,)."""

    features: Tensor
    targets: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """The same rows on a device. Having this method, a batch is moved whole by Lightning, without a search."""
        return type(self)(
            self.features.to(device, non_blocking=non_blocking), self.targets.to(device, non_blocking=non_blocking)
        )


class BatchLoader:
    """Serves a table batch by batch, each one slice of a permutation; no row is touched by Python.

    It goes on where its state says, also in the middle of an epoch. An epoch's permutation follows from seed and
    epoch alone, so the state is two numbers.

    Args:
        table: the rows.
        batch_size: rows a batch, at most all of them; the last batch of an epoch may be smaller.
        shuffle: a new order every epoch. Where one batch has all rows, their order does not matter and stays.
        seed: of the permutations.
    """

    def __init__(self, table: Table, batch_size: int, *, shuffle: bool, seed: int) -> None:
        self._table = table
        self._batch_size = min(batch_size, len(table))
        self._shuffle = shuffle and self._batch_size < len(table)
        self._seed = seed
        self._epoch = 0
        self._consumed = 0  # batches of this epoch that were handed out
        self._goes_on = False  # in the middle of an epoch, after load_state_dict

    def __len__(self) -> int:
        """Batches an epoch."""
        return -(-len(self._table) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the next epoch; after `load_state_dict` those left of the one under way."""
        if self._consumed and not self._goes_on:
            self._epoch, self._consumed = self._epoch + 1, 0
        self._goes_on = False
        order = self._order()
        while self._consumed < len(self):
            start = self._consumed * self._batch_size
            self._consumed += 1  # before the yield: a state taken while a batch is in use counts that batch
            stop = start + self._batch_size
            if order is None:
                yield Batch(self._table.features[start:stop], self._table.targets[start:stop])
            else:
                rows = order[start:stop]
                yield Batch(self._table.features[rows], self._table.targets[rows])

    def _order(self) -> Tensor | None:
        if not self._shuffle:
            return None
        generator = torch.Generator().manual_seed(self._seed * 2**31 + self._epoch)
        return torch.randperm(len(self._table), generator=generator)

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands."""
        return {"epoch": self._epoch, "consumed": self._consumed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where a state was taken; after the last batch of an epoch that is the next epoch's first."""
        self._epoch, self._consumed = state["epoch"], state["consumed"]
        self._goes_on = self._consumed < len(self)
