"""Says why the cost of a step, or its gradient, is no number."""

import math

import torch
from torch import Tensor

from crossent.data.loader import Batch, evaluation_rows
from crossent.errors import UserError
from crossent.head import Head
from crossent.losses import Loss
from crossent.losses.written_out import OneHot
from crossent.processes import together

_UNBOUNDED = 1e6  # logits that no sensible weights give


class DivergedError(UserError):
    """The cost of a step, its gradient or its weights are NaN or infinite; no checkpoint has such weights."""


def grown(name: str, step: int, lr: float | None) -> DivergedError:
    """Of weights that are not finite after a step."""
    return DivergedError(f"{name} is not finite after step {step}: it has grown without bound; {_holding(lr)}")


@torch.no_grad()
def diverged(what: str, place: str, head: Head, loss: Loss, batch: Batch, lr: float | None) -> DivergedError:
    """Looks at the batch of a step for the reason, or, where that is split, every rank at its part of it.

    Args:
        what: is NaN or infinite, with its value.
        place: of the step: which one, and which batch.
        head: as the step found it.
        loss: whose cost it is.
        batch: of the step, the last one if gradients were accumulated.
        lr: the learning rate, where it is known.
    """
    largest, spread = _logits(head, batch)
    said = f"{what} at {place}; the largest logit there is {largest:.4g}"
    limit = math.log(torch.finfo(head.weight.dtype).max)
    if isinstance(loss, OneHot) and limit <= spread < math.inf:
        return DivergedError(
            f"{said}, {spread:.4g} above the smallest of its row: loss=one_hot takes the logarithm of a softmax that "
            f"underflows from a gap of {limit:.2f} on; loss=cross_entropy is the same cost and does not"
        )
    if not largest < _UNBOUNDED:
        return DivergedError(f"{said}: the weights have grown without bound; {_holding(lr)}")
    return DivergedError(
        f"{said}, which is not large: the loss ({type(loss).__name__}) itself has no value or no slope there; if it is "
        f"your own, look at what it does with such logits, or try {_slower(lr)}"
    )


def _slower(lr: float | None) -> str:
    return "a lower optimizer.lr" if lr is None else f"an optimizer.lr below {lr:g}"


def _holding(lr: float | None) -> str:
    return f"{_slower(lr)}, data.standardize=true or trainer.gradient_clip_val=1 keeps them small"


def _logits(head: Head, batch: Batch) -> tuple[float, float]:
    """The largest logit by size, and the largest gap between two of a row."""
    features = batch.features.to(head.weight.dtype)
    largest, spread = 0.0, 0.0
    for rows in features.split(evaluation_rows(head.shard.classes, features.shape[1])) if len(features) else ():
        logits = head(rows)
        largest = _larger(largest, logits.abs().max())
        spread = _larger(spread, (logits.amax(dim=1) - logits.amin(dim=1)).max())
    largest, spread = together.largest(largest, spread)
    return largest, spread


def _larger(one: float, other: Tensor) -> float:
    """The larger one; what is no number is larger than all numbers."""
    value = float(other)
    return value if math.isnan(value) or value > one else one
