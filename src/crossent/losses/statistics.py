"""The few numbers of a row on which most losses depend, and how a gradient comes back through them.

A cost f of the statistics has this gradient by the logits; p is their softmax, y the target, and u the classes' weights
divided by their number (each 1 / classes where they are not weighted)::

    f_nll · (p − 1_y) + f_mean_nll · (Σu · p − u) + f_squared_probabilities · 2p (p − Σ p²) + f_logsumexp · p
"""

from typing import NamedTuple

import torch
from torch import Tensor

from crossent.class_shard import ClassShard

#: Stands for a statistic that was not taken, since the loss does not read it.
UNREAD = torch.empty(0)


class Statistics(NamedTuple):
    """What a loss may read of each row. All are (rows,), float32 or wider.

    Attributes:
        nll: the target's negative log-likelihood, −log p = logsumexp(logits) − its logit, 0 or more.
        mean_nll: the mean of −log p over all classes, each times its class weight.
        squared_probabilities: Σ p² over all classes, from 1 / classes to 1.
        logsumexp: of the logits.
    """

    nll: Tensor
    mean_nll: Tensor = UNREAD
    squared_probabilities: Tensor = UNREAD
    logsumexp: Tensor = UNREAD

    def at(self, rows: slice) -> "Statistics":
        """Those of some rows."""
        return Statistics(*(each if each is UNREAD else each[rows] for each in self))


class Slopes(NamedTuple):
    """The partial derivatives of a cost by each of the statistics: (rows,), or None for 0."""

    nll: Tensor | None
    mean_nll: Tensor | None = None
    squared_probabilities: Tensor | None = None
    logsumexp: Tensor | None = None

    def at(self, rows: slice) -> "Slopes":
        """Those of some rows."""
        return Slopes(*(None if each is None else each[rows] for each in self))


def take(logits: Tensor, targets: Tensor, dim: int, reads: frozenset[str], class_share: Tensor | None) -> Statistics:
    """Takes the statistics of rows; autograd can go back through it.

    Args:
        logits: (rows, classes), or (classes, rows), float32 or wider.
        targets: (rows,), int64.
        dim: of the classes, 1 or 0.
        reads: the statistics that are wanted.
        class_share: (classes,), the classes' weights divided by their number; None: not weighted.
    """
    # log_softmax takes the largest logit off first, so that no difference of large numbers is taken.
    logarithms = torch.log_softmax(logits, dim)
    nll = -logarithms.gather(dim, targets.unsqueeze(dim)).squeeze(dim)
    mean = squares = logsumexp = UNREAD
    if "mean_nll" in reads:
        mean = -(logarithms.mean(dim) if class_share is None else logarithms.movedim(dim, 1).mv(class_share))
    if "squared_probabilities" in reads:
        squares = torch.linalg.vector_norm(torch.softmax(logits, dim), dim=dim).square()
    if "logsumexp" in reads:
        logsumexp = logits.amax(dim) - logarithms.amax(dim)
    return Statistics(nll, mean, squares, logsumexp)


def take_by_softmax(
    logits: Tensor, targets: Tensor, reads: frozenset[str], class_share: Tensor | None, softmax: Tensor
) -> Statistics:
    """Takes the same statistics with one exponential a logit, by way of the softmax that `go_back` needs anyway.

    Args:
        logits: (rows, classes), float32 or wider; a number taken off all of a row's changes nothing but ``logsumexp``.
        targets: (rows,), int64.
        reads: the statistics that are wanted.
        class_share: (classes,), the classes' weights divided by their number; None: not weighted.
        softmax: (rows, classes), memory for it.
    """
    torch.softmax(logits, 1, out=softmax)
    largest = logits.amax(1)
    # log Σ exp(logit − largest), 0 or more: the largest logit's own probability is the inverse of that sum. To it
    # differences from the largest are added, which are 0 or more as well, so that nothing cancels.
    above = -softmax.amax(1).log()
    nll = above + (largest - logits.gather(1, targets.unsqueeze(1)).squeeze(1))
    mean = squares = logsumexp = UNREAD
    if "mean_nll" in reads and class_share is None:
        mean = above + (largest - logits.mean(1))
    elif "mean_nll" in reads and class_share is not None:
        mean = (above + largest) * class_share.sum() - logits.mv(class_share)
    if "squared_probabilities" in reads:
        squares = torch.linalg.vector_norm(softmax, dim=1).square()
    if "logsumexp" in reads:
        logsumexp = above + largest
    return Statistics(nll, mean, squares, logsumexp)


def go_back(
    out: Tensor,
    softmax: Tensor,
    targets: Tensor,
    statistics: Statistics,
    slopes: Slopes,
    class_share: Tensor | None,
    shard: ClassShard | None = None,
    scale: Tensor | None = None,
    spare: Tensor | None = None,
) -> None:
    """Finds the gradient by logits, (rows, classes); see the module's formula.

    Args:
        out: takes the gradient, (rows, classes).
        softmax: of the logits, (rows, classes).
        targets: (rows,), int64.
        statistics: of the rows.
        slopes: of the cost by the statistics.
        class_share: as for `take`; of all classes.
        shard: the classes that are here, where others are elsewhere.
        scale: (rows,), by which ``softmax`` has to be multiplied to be the softmax; None: it is.
        spare: memory as ``out`` has; needed where that is ``softmax`` itself.
    """
    shard = shard or ClassShard.whole(out.shape[1])
    nll, mean, squares, logsumexp = (None if slope is None else slope.unsqueeze(1) for slope in slopes)
    parts = [each for each in (nll, logsumexp) if each is not None]  # of what p is multiplied by
    if mean is not None:
        parts.append(mean if class_share is None else mean * class_share.sum())
    if squares is not None:
        parts.append(-2 * squares * statistics.squared_probabilities.unsqueeze(1))
    common = sum(parts[1:], parts[0]) if parts else torch.zeros_like(statistics.nll).unsqueeze(1)
    if scale is not None:
        common = common * scale.unsqueeze(1)
    if squares is None:
        torch.mul(softmax, common, out=out)
    else:
        squares = 2 * squares if scale is None else 2 * squares * scale.unsqueeze(1) ** 2
        inner = torch.mul(softmax, squares, out=out if spare is None else spare)
        torch.mul(inner.add_(common), softmax, out=out)
    if mean is not None and class_share is None:
        out -= mean / shard.of
    elif mean is not None and class_share is not None:
        out.addr_(mean.squeeze(1), class_share[shard.part], alpha=-1)
    if nll is not None:
        if not shard.is_whole:
            targets, here = shard.own(targets)
            nll = nll.where(here.unsqueeze(1), 0)
        out.scatter_add_(1, targets.unsqueeze(1), -nll)
