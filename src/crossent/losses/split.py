"""A row-statistics loss whose classes are split over ranks, each of which has the logits of its own.

Every rank takes the largest of its logits of a row and sums over them, the ranks put these together in two messages, of
the maxima and of the sums, and each goes back to its own weights from what all of them know then. Nothing that is sent
grows with the number of classes: one number a row, and two to four of the sums.

Both passes go through the classes tile by tile, with all rows of the batch, so that weights and their gradient are read
and written once a pass, and the logits of a tile are worked on while they are in the cache.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from crossent.class_shard import ClassShard
from crossent.losses.products import Products
from crossent.losses.rows import Rows
from crossent.losses.statistics import UNREAD, Statistics, go_back

if TYPE_CHECKING:
    from crossent.losses.row_losses import RowLoss


def find(loss: "RowLoss", shard: ClassShard, rows: Rows, products: Products, *, held: bool) -> Tensor:
    """The weighted costs, (rows,); the gradients of their sum are added up in the products.

    Args:
        loss: says how a row's cost follows from its statistics.
        shard: the classes that are here.
        rows: those that count; at least one.
        products: of their features and the weights that are here.
        held: whether all logits stay in memory between the two passes; else those of a tile do, and all are computed
            twice, which takes a third matrix product.
    """
    tiles = products.class_parts()
    sums = _Sums.empty(loss, products.new_empty(products.rows))
    share = loss.class_share(sums.largest)
    kept: list[tuple[Tensor, Tensor]] = []
    for tile in tiles:
        logits = products.logits(classes=tile, anew=held)
        sums.take_in(shard.at(tile), logits, rows.targets, share)
        if held:
            kept.append((logits, sums.largest.clone()))
    statistics, largest, total = sums.put_together(shard, share)
    if not products.is_wanted:
        return loss.cost_of(statistics, rows)
    costs, slopes = loss.differentiated(statistics, rows)
    spare = None  # for a tile, where the gradient takes memory of its own
    for tile in tiles:
        if held:
            exponentials, taken_off = kept.pop(0)
            scale = (taken_off - largest).exp_().div_(total)
        else:
            exponentials = products.logits(classes=tile).sub_(largest.unsqueeze(1)).exp_()
            scale = 1 / total
        if slopes.squared_probabilities is not None and (spare is None or spare.shape != exponentials.shape):
            spare = torch.empty_like(exponentials)
        go_back(exponentials, exponentials, rows.targets, statistics, slopes, share, shard.at(tile), scale, spare)
        products.go_back(exponentials, classes=tile)
    if products.gradients.features is not None:
        shard.exchange.total(products.gradients.features)
    return costs


def take(loss: "RowLoss", shard: ClassShard, logits: Tensor, targets: Tensor) -> Statistics:
    """Takes the statistics of rows, without a way back.

    Args:
        loss: that reads them.
        shard: the classes that are here.
        logits: of these, (rows, classes), float32 or wider.
        targets: (rows,), int64.
    """
    sums = _Sums.empty(loss, logits.new_empty(len(logits)))
    share = loss.class_share(logits)
    sums.take_in(shard, logits.clone(), targets, share)
    return sums.put_together(shard, share)[0]


class _Sums(NamedTuple):
    """What a rank knows of each row.

    Attributes:
        reads: the statistics that the loss reads.
        largest: of the logits, (rows,).
        sums: (2 to 4, rows): Σ exp(logit − largest); the target's logit; and, where the loss reads them, the mean of
            the logits over the classes, and Σ exp(logit − largest)².
    """

    reads: frozenset[str]
    largest: Tensor
    sums: Tensor

    @classmethod
    def empty(cls, loss: "RowLoss", of_rows: Tensor) -> "_Sums":
        """Before any logits, for what a loss reads, like a tensor of (rows,)."""
        reads = loss.reading(of_rows).statistics
        count = 2 + ("mean_nll" in reads) + ("squared_probabilities" in reads)
        # Not −inf: where all logits are that, nothing is to be taken off them.
        return cls(reads, of_rows.fill_(torch.finfo(of_rows.dtype).min), of_rows.new_zeros(count, len(of_rows)))

    def take_in(self, shard: ClassShard, logits: Tensor, targets: Tensor, share: Tensor | None) -> None:
        """Adds what the logits of a shard tell; they turn into exp(logit − largest so far)."""
        reads, largest, sums = self
        sums[1] += shard.logit_of(targets, logits, elsewhere=0)
        if "mean_nll" in reads:
            sums[2] += logits.sum(1) / shard.of if share is None else logits.mv(share[shard.part])
        before = largest.clone()
        torch.maximum(largest, logits.amax(1), out=largest)
        lower = (before - largest).exp_()
        logits.sub_(largest.unsqueeze(1)).exp_()
        sums[0].mul_(lower).add_(logits.sum(1))
        if "squared_probabilities" in reads:
            sums[-1].mul_(lower.square()).add_(torch.linalg.vector_norm(logits, dim=1).square())

    def put_together(self, shard: ClassShard, share: Tensor | None) -> tuple[Statistics, Tensor, Tensor]:
        """The statistics of the rows, their largest logits, and Σ exp(logit − largest), (rows,)."""
        reads = self.reads
        largest = self.largest.clone()
        shard.exchange.largest(largest)
        lower = (self.largest - largest).exp_()
        self.sums[0].mul_(lower)
        if "squared_probabilities" in reads:
            self.sums[-1].mul_(lower.square())
        shard.exchange.total(self.sums)
        total, logit = self.sums[0], self.sums[1]
        # log Σ exp(logit − largest) is 0 or more, and so are the differences from the largest that are added to it.
        above = total.log()
        nll = above + (largest - logit)
        mean = squares = logsumexp = UNREAD
        if "mean_nll" in reads:
            mean = above + (largest - self.sums[2]) if share is None else (above + largest) * share.sum() - self.sums[2]
        if "squared_probabilities" in reads:
            squares = self.sums[-1] / total.square()
        if "logsumexp" in reads:
            logsumexp = above + largest
        return Statistics(nll, mean, squares, logsumexp), largest, total
