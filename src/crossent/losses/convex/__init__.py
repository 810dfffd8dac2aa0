"""What a solver has to know of the convex losses: `costs` turns a loss into `ConvexCosts`."""

import torch
from torch import Tensor

from crossent.losses.base import Loss
from crossent.losses.binary import Binary
from crossent.losses.convex.base import ConvexCosts
from crossent.losses.convex.hinge import HingeCosts, SquaredHingeCosts
from crossent.losses.convex.softmax import LogisticCosts, SoftmaxCosts, Weights
from crossent.losses.hinge import Hinge
from crossent.losses.row_losses import RowLoss
from crossent.losses.rows import Rows
from crossent.losses.statistics import UNREAD, Statistics
from crossent.losses.written_out import NegativeLogLikelihood, OneHot

__all__ = ["ConvexCosts", "NotConvexError", "costs"]

# Where a formula is tried; in double precision, a linear one has the same slope everywhere.
_PROBES = (0.25, 1.0, 4.0)


class NotConvexError(ValueError):
    """A loss is not convex in the weights; the message goes on from the loss's name."""


def costs(loss: Loss, targets: Tensor, sample_weight: Tensor | None, outputs: int) -> ConvexCosts:
    """The costs of rows by a convex loss.

    Args:
        loss: says how the cost of a row follows from its outputs.
        targets: (rows,), int64, of rows that count: none is ignored.
        sample_weight: (rows,), above 0; None: all rows weigh the same.
        outputs: of the head.

    Raises:
        NotConvexError: the loss is not convex in the weights, or a solver cannot tell.
    """
    classes = loss.classes(outputs)
    by_class = None if loss.class_weight is None else loss.class_weight.like(targets.new_empty(0, dtype=torch.float64))
    by_row = None if sample_weight is None else sample_weight.to(torch.float64)
    rows = Rows(
        targets.new_empty(len(targets), 0, dtype=torch.float64),
        targets,
        by_row,
        None if by_class is None else by_class[targets],
    )
    total, ones = float(rows.total), torch.ones(len(targets), dtype=torch.float64, device=targets.device)
    weights = ones if rows.weight is None else rows.weight
    uniform = torch.full((classes,), 1 / classes, dtype=torch.float64, device=targets.device)
    share = uniform if by_class is None else by_class / classes
    if loss.z_loss:
        raise NotConvexError(f"with z_loss={loss.z_loss:g}, logsumexp² is not convex in the weights; leave z_loss at 0")
    if isinstance(loss, Binary):
        positive = targets == 1
        return LogisticCosts(targets, torch.where(positive, weights * loss.pos_weight, weights), total)
    if isinstance(loss, Hinge):
        kind = HingeCosts if loss.p == 1 else SquaredHingeCosts
        return kind(targets, weights, loss.margin, classes, total)
    if isinstance(loss, OneHot | NegativeLogLikelihood):  # the same function of the logits, however it is written
        return SoftmaxCosts(targets, Weights(weights), share, None, classes, total)
    if isinstance(loss, RowLoss) and type(loss).mean is RowLoss.mean and not loss.learns:
        added = loss.added(uniform)
        return SoftmaxCosts(targets, _linear(loss, rows, weights), share, added, classes, total)
    raise NotConvexError("it is not known to be convex in the weights")


def _linear(loss: RowLoss, rows: Rows, weights: Tensor) -> Weights:
    """What each row's statistics count, where the cost is linear in them: then it is as convex as they are.

    Raises:
        NotConvexError: it is not linear in them, or falls where they rise.
    """
    reads, is_nll = loss.reading(rows.features)
    if is_nll:
        return Weights(weights)
    found = []
    for value in _PROBES:
        row = rows.features.new_full((len(rows.targets),), value)
        statistics = Statistics(*(row.clone() if name in reads else UNREAD for name in Statistics._fields))
        found.append(loss.differentiated(statistics, rows))
    (first, slopes), *others = found
    if slopes.squared_probabilities is not None or slopes.logsumexp is not None:
        raise NotConvexError("it is not convex in the weights")
    nothing = torch.zeros_like(first)
    nll, mean = (nothing if slope is None else slope for slope in (slopes.nll, slopes.mean_nll))
    for value, (costs, _) in zip(_PROBES[1:], others, strict=True):
        if not torch.allclose(costs, first + (nll + mean) * (value - _PROBES[0]), rtol=1e-9, atol=1e-12):
            raise NotConvexError("it is not convex in the weights")
    if bool((nll < 0).any()) or bool((mean < 0).any()):
        raise NotConvexError("it is not convex in the weights")
    constant = first - (nll + mean) * _PROBES[0]
    is_there = bool((constant.abs() > 1e-12).any())
    return Weights(nll, None if slopes.mean_nll is None else mean, constant if is_there else None)
