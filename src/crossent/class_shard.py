"""The classes that are here, where several ranks have shared them out."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Exchange(Protocol):
    """How ranks that have different classes of the same rows put together what they know of these rows."""

    def largest(self, numbers: Tensor) -> None:
        """Turns numbers, of one shape on every rank, into the largest of all ranks' ones, in place."""

    def total(self, numbers: Tensor) -> None:
        """Turns numbers, of one shape on every rank, into the sums of all ranks' ones, in place."""


class _Alone:
    """Nobody has other classes."""

    def largest(self, numbers: Tensor) -> None:
        """Leaves the numbers as they are."""

    def total(self, numbers: Tensor) -> None:
        """Leaves the numbers as they are."""


@dataclass(frozen=True)
class ClassShard:
    """Neighbouring classes, whose weights and whose logits are here.

    Attributes:
        first: the index of the first of them.
        classes: how many.
        of: how many classes there are in all.
        exchange: with the ranks that have the others.
    """

    first: int
    classes: int
    of: int
    exchange: Exchange

    @classmethod
    def whole(cls, classes: int) -> "ClassShard":
        """All of so many classes."""
        return cls(0, classes, classes, _Alone())

    @classmethod
    def share(cls, classes: int, shard: int, shards: int, exchange: Exchange) -> "ClassShard":
        """One of several shares of the classes, each as large as the others or one smaller."""
        first, last = (classes * index // shards for index in (shard, shard + 1))
        return cls(first, last - first, classes, exchange)

    @property
    def is_whole(self) -> bool:
        """Whether no class is elsewhere."""
        return self.classes == self.of

    @property
    def part(self) -> slice:
        """Where the classes are among all of them."""
        return slice(self.first, self.first + self.classes)

    def at(self, part: slice) -> "ClassShard":
        """Some of the classes that are here."""
        return ClassShard(self.first + part.start, part.stop - part.start, self.of, self.exchange)

    def own(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The place of each target among the classes that are here, (rows,), and whether it is one of them, (rows,).

        A target that is elsewhere gets the place of some class that is here.
        """
        places = targets - self.first
        here = (places >= 0) & (places < self.classes)
        return places.clamp(0, self.classes - 1), here

    def logit_of(self, targets: Tensor, logits: Tensor, elsewhere: float) -> Tensor:
        """The logit of each row's target, (rows,), from those of the classes that are here, (rows, classes)."""
        places, here = self.own(targets)
        logit = logits.gather(1, places.unsqueeze(1)).squeeze(1)
        return logit if self.is_whole else torch.where(here, logit, elsewhere)
