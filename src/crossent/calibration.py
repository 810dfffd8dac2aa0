"""Temperature scaling: one number that makes probabilities mean what they say, and changes no prediction.

Guo et al., On Calibration of Modern Neural Networks, 2017, section 4.2.
"""

import copy
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from crossent import checkpoint_io
from crossent.checkpoints import KEY
from crossent.class_shard import ClassShard
from crossent.data.loader import Batch
from crossent.head import Head
from crossent.metrics import CALIBRATED, Evaluation
from crossent.processes import together

log = logging.getLogger(__name__)

_PASSES = 50
_EXACT = 1e-9  # relative change of the temperature at which it has been found


class Logits(NamedTuple):
    """Logits of some rows.

    Attributes:
        logits: (rows, classes); of the classes that are here, where others are elsewhere.
        targets: (rows,), int64, or the index of rows that count for nothing.
        weights: (rows,), or None: every row counts once.
    """

    logits: Tensor
    targets: Tensor
    weights: Tensor | None


def calibrate(
    paths: Sequence[Path],
    head: Head,
    batches: Iterable[Batch],
    ignored: int,
    group: ProcessGroup | None = None,
) -> tuple[int, dict[str, float]]:
    """Fits the temperature of each checkpoint's weights, and stores it there; None where the rows do not tell one.

    Where there are several ranks, the first of them alone writes the checkpoints.

    Args:
        paths: of the checkpoints of a run.
        head: of the run, whatever its weights.
        batches: of validation rows; gone through several times.
        ignored: the target of rows that count for nothing.
        group: the ranks that have other rows; None: all ranks.

    Returns:
        The steps of the first checkpoint, and the metrics of its calibrated probabilities, ``<metric>_calibrated``;
        none where there is no temperature.
    """
    found: dict[int, tuple[float | None, dict[str, float]]] = {}  # by steps, after which the weights are the same
    for path in paths:
        steps, weights = _weights(path, head)
        if steps not in found:
            found[steps] = _calibrated(weights, head, batches, ignored, group, path.name)
        if together.is_first():
            stored = torch.load(path, map_location="cpu", weights_only=True)
            stored[KEY]["temperature"] = found[steps][0]
            checkpoint_io.save(stored, path)
    return next(((steps, metrics) for steps, (_, metrics) in found.items()), (0, {}))


def _weights(path: Path, head: Head) -> tuple[int, dict[str, Tensor]]:
    """The steps that a checkpoint's weights have had, and those of them that are the head's: of all classes.

    Where these are split, each rank reads its part when it is asked for; else the first rank tells all.
    """
    if head.sharded:
        return _of_head(checkpoint_io.CheckpointFiles(is_split=True).load_checkpoint(path))
    return together.from_first(lambda: _of_head(torch.load(path, map_location="cpu", weights_only=True, mmap=True)))


def _of_head(stored: dict[str, Any]) -> tuple[int, dict[str, Tensor]]:
    weights = {key: each for key, each in stored["state_dict"].items() if key.startswith("head.")}
    return int(stored["global_step"]), weights


def _calibrated(
    state: Mapping[str, Tensor],
    head: Head,
    batches: Iterable[Batch],
    ignored: int,
    group: ProcessGroup | None,
    name: str,
) -> tuple[float | None, dict[str, float]]:
    """The temperature of some weights, and the metrics with it."""
    head = copy.deepcopy(head)
    head.load_state_dict(head.own_part({key[5:]: each for key, each in state.items() if key.startswith("head.")}))
    head.to(torch.promote_types(head.weight.dtype, torch.float32))

    @torch.no_grad()
    def logits() -> Iterable[Logits]:
        for batch in batches:
            head.to(batch.features.device)
            yield Logits(head(batch.features.to(head.weight.dtype)), batch.targets, batch.weights)

    temperature = fit_temperature(logits, ignored, head.shard, group)
    if temperature is None:
        return None, {}
    evaluation = Evaluation(head.shard.of, ignored, shard=head.shard, group=group)
    evaluation.temperature = temperature
    for each in logits():
        evaluation.update(None, *each)
    metrics = evaluation.metrics()
    changes = ", ".join(f"{key} {metrics[key]:.6f} -> {metrics[f'{key}_calibrated']:.6f}" for key in ("nll", "ece"))
    log.info("%s: temperature %.4f; on the val rows %s", name, temperature, changes)
    return temperature, {f"{key}_calibrated": metrics[f"{key}_calibrated"] for key in CALIBRATED}


def fit_temperature(
    logits: Callable[[], Iterable[Logits]],
    ignored: int,
    shard: ClassShard | None = None,
    group: ProcessGroup | None = None,
) -> float | None:
    """The temperature T with which softmax(logits / T) has the least negative log-likelihood.

    That is convex in 1 / T, so Newton's steps, held between bounds that close in, find the one minimum there is.

    Args:
        logits: gives those of all rows, once at each call.
        ignored: the target of rows that count for nothing.
        shard: the classes whose logits are here, where others are elsewhere.
        group: the ranks that have other rows; None: all ranks.

    Returns:
        T > 0; or None, with a warning, where no temperature is best: every row is right, so that less is always
        better, or the logits tell less than chance, so that more is.
    """
    inverse, lowest, highest = 1.0, 0.0, float("inf")
    for step in range(_PASSES):
        slope, curvature, at_zero, all_right = _derivatives(logits, ignored, inverse, shard, group)
        if not math.isfinite(slope):
            log.warning("the val rows do not tell a temperature, since logits are not finite; it stays 1")
            return None
        if step == 0 and (all_right or at_zero >= 0):
            why = "the logits tell no more than chance there" if at_zero >= 0 else "every row of them is right"
            log.warning("the val rows do not tell a temperature, since %s; it stays 1", why)
            return None
        if slope > 0:
            highest = inverse
        else:
            lowest = inverse
        following = inverse - slope / curvature if curvature > 0 else float("inf")
        if not lowest < following < highest:
            following = 2 * inverse if highest == float("inf") else (lowest + highest) / 2
        if abs(following - inverse) <= _EXACT * inverse:
            return 1 / following
        inverse = following
    return 1 / inverse


class _Derivatives(NamedTuple):
    """Of the mean negative log-likelihood by 1 / T.

    Attributes:
        slope: the first one.
        curvature: the second one.
        at_zero: the first one where 1 / T is 0.
        all_right: whether every row's largest logit is the target's.
    """

    slope: float
    curvature: float
    at_zero: float
    all_right: bool


def _derivatives(
    logits: Callable[[], Iterable[Logits]],
    ignored: int,
    inverse: float,
    shard: ClassShard | None,
    group: ProcessGroup | None,
) -> _Derivatives:
    sums, all_right = torch.zeros(4, dtype=torch.float64), True
    for each in logits():
        # On the CPU, since an Apple GPU has no double precision.
        given, targets, weights = (None if part is None else part.cpu() for part in each)
        assert given is not None
        assert targets is not None
        counts = targets != ignored
        if weights is not None:
            counts &= weights > 0
        rows, targets = given[counts].double(), targets[counts]
        here = shard or ClassShard.whole(rows.shape[1])
        if not len(rows):
            continue  # nor do ranks with the same rows say anything
        weight = torch.ones(len(rows), dtype=torch.float64, device=rows.device)
        if weights is not None:
            weight = weights[counts].double()
        known = torch.stack([rows.amax(dim=1), here.logit_of(targets, rows, elsewhere=-torch.inf)])
        here.exchange.largest(known)
        largest, logit = known
        rows, logit = rows - largest.unsqueeze(1), logit - largest
        all_right &= bool((logit == 0).all())
        exponentials = (rows * inverse).exp()
        moments = torch.stack([exponentials.sum(1), (exponentials * rows).sum(1), rows.sum(1)])
        here.exchange.total(moments)
        mean = moments[1] / moments[0]
        variance = (exponentials * (rows - mean.unsqueeze(1)).square()).sum(dim=1)
        here.exchange.total(variance)
        terms = [mean - logit, variance / moments[0], moments[2] / here.of - logit, torch.ones_like(logit)]
        sums += torch.stack(terms) @ weight
    sums, all_right = together.total(sums, group), not together.any_of(not all_right)[0]
    if shard is not None and not shard.is_whole:  # on other hardware another rank may have rounded otherwise
        sums = together.from_first(lambda: sums)
    slope, curvature, at_zero = (sums[:3] / sums[3].clamp(min=1e-300)).tolist()
    return _Derivatives(slope, curvature, at_zero, all_right)
