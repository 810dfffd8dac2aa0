"""Ranks as threads of one process, which have different classes of the same rows."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from crossent.class_shard import ClassShard

T = TypeVar("T")


class Messages:
    """What so many ranks send one another.

    Attributes:
        sent: the shapes of one rank's messages, by the operation.
    """

    def __init__(self, ranks: int) -> None:
        self.sent: list[tuple[str, tuple[int, ...]]] = []
        self._met = threading.Barrier(ranks, timeout=20)
        self._here: list[Tensor] = [torch.empty(0)] * ranks

    def put_together(self, rank: int, name: str, numbers: Tensor) -> None:
        """Has all ranks' numbers put together by ``largest`` or ``total``, in place."""
        if rank == 0:
            self.sent.append((name, tuple(numbers.shape)))
        self._here[rank] = numbers
        self._met.wait()
        everything = torch.stack([each.detach() for each in self._here])
        together = everything.amax(0) if name == "largest" else everything.sum(0)
        self._met.wait()
        numbers.copy_(together)

    def way(self, rank: int) -> "Exchange":
        """One rank's to the others."""
        return Exchange(rank, self)

    def fail(self) -> None:
        """Has nobody wait any more."""
        self._met.abort()


class Exchange:
    """One rank's way to the others."""

    def __init__(self, rank: int, messages: Messages) -> None:
        self._rank, self._messages = rank, messages

    def largest(self, numbers: Tensor) -> None:
        self._messages.put_together(self._rank, "largest", numbers)

    def total(self, numbers: Tensor) -> None:
        self._messages.put_together(self._rank, "total", numbers)


def on_ranks(ranks: int, classes: int, work: Callable[[ClassShard], T]) -> tuple[list[T], Messages]:
    """What each of so many ranks makes of its share of the classes, and what was sent."""
    messages = Messages(ranks)

    def here(rank: int) -> T:
        try:
            return work(ClassShard.share(classes, rank, ranks, messages.way(rank)))
        except BaseException:
            messages.fail()
            raise

    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(here, range(ranks))), messages
