"""What the logits of labelled rows tell: by one that has all of a row, or by ranks that have some each."""

from typing import NamedTuple

import torch
from torch import Tensor

from crossent.class_shard import ClassShard


class Judgement(NamedTuple):
    """What logits tell of rows whose targets are known; (rows,) each.

    Attributes:
        predicted: the class with the largest logit, the first one of several.
        ahead: how many classes rank before the target: their logits are larger, or as large and they come first.
        nll: −log p of the target.
        confidence: p of the class that is predicted.
        brier: Σ (p − one-hot)² over all classes.
    """

    predicted: Tensor
    ahead: Tensor
    nll: Tensor
    confidence: Tensor
    brier: Tensor


def judge(logits: Tensor, targets: Tensor, shard: ClassShard) -> Judgement:
    """Looks at logits; ranks that have different classes of the rows do so together, with messages of a few numbers.

    Args:
        logits: (rows, classes), float32 or wider; of the classes that are here.
        targets: (rows,), int64, from 0 to classes - 1.
        shard: the classes that are here.
    """
    predicted, largest = predict(logits, shard)
    logit = shard.logit_of(targets, logits, elsewhere=-torch.inf)
    shard.exchange.largest(logit)
    beside = (targets - shard.first).unsqueeze(1) > torch.arange(shard.classes, device=logits.device)
    ahead = ((logits > logit.unsqueeze(1)) | ((logits == logit.unsqueeze(1)) & beside)).sum(dim=1)
    exponentials = (logits - largest.unsqueeze(1)).exp_()
    sums = torch.stack([exponentials.sum(dim=1), exponentials.square().sum(dim=1), ahead.to(logits.dtype)])
    shard.exchange.total(sums)
    total, squares, ahead = sums
    # The logarithm is 0 or more, and so is the difference.
    nll = total.log() + (largest - logit)
    brier = 1 - 2 * (-nll).exp() + squares / total.square()
    return Judgement(predicted, ahead, nll, 1 / total, brier)


def predict(logits: Tensor, shard: ClassShard) -> tuple[Tensor, Tensor]:
    """The class with the largest logit of each row, the first one of several, and that logit, (rows,) each.

    Args:
        logits: (rows, classes); of the classes that are here.
        shard: these classes.
    """
    own, place = logits.max(dim=1)
    if shard.is_whole:
        return place.where(~own.isnan(), shard.of - 1), own
    largest = own.clone()
    shard.exchange.largest(largest)
    # The first of all places is the largest of the negative ones. NaN is at none, and counts as the last class.
    predicted = -(place + shard.first).where(own == largest, shard.of - 1)
    shard.exchange.largest(predicted)
    return -predicted, largest
