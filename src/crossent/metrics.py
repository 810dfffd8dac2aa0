"""What evaluation adds up: in memory that depends on the number of classes and bins, and not on that of rows.

torchmetrics has the same metrics, but up to 1.9 its calibration error keeps every row, its class-wise counts go through
a table of classes × classes, and none of them takes weights. Its base class, which keeps and resets sums, is used.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torchmetrics import Metric

from crossent.class_shard import ClassShard
from crossent.judging import judge
from crossent.losses.base import Cost
from crossent.processes import together

#: Of confidence, all equally wide.
BINS = 15
#: Up to so many classes, it is added up what the rows of each were taken for.
FEW_CLASSES = 30
#: The metrics that a temperature changes.
CALIBRATED = ("nll", "brier", "ece")
_TOP = 5


class WeightedMean(Metric):
    """Σ weight · value / Σ weight, over all batches and ranks, or those of a group; NaN shows.

    torchmetrics has a MeanMetric, but up to 1.9 it either leaves NaN out or, with ``nan_strategy="disable"``, takes
    every weight for 1.
    """

    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(self, group: ProcessGroup | None = None) -> None:
        super().__init__(sync_on_compute=False)  # which would have every rank keep what all others have
        self._group = group
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, values: Tensor, weights: Tensor) -> None:
        """Takes in values and their weights, of one shape."""
        values, weights = (each.to(wide(each)) for each in (values, weights))
        # Not in place: a run in 16 bits makes the states so, too, which are too narrow for sums.
        self.total = self.total + (values * weights).sum()
        self.weight = self.weight + weights.sum()

    def compute(self) -> Tensor:
        """The mean, a scalar; 0 where nothing has a weight. All ranks have to call this."""
        total, weight = together.total(torch.stack([self.total, self.weight]), self._group)
        mean: Tensor = total / _nonzero(weight)
        return mean


class PerClass(NamedTuple):
    """Weights of rows by class, (classes,) each: their number, where every row counts once.

    Attributes:
        support: of the class.
        predicted: taken for the class.
        hits: both.
    """

    support: Tensor
    predicted: Tensor
    hits: Tensor

    @property
    def precision(self) -> Tensor:
        """Hits / predicted, (classes,); 0 where nothing was taken for the class."""
        return self.hits / _nonzero(self.predicted)

    @property
    def recall(self) -> Tensor:
        """Hits / support, (classes,); 0 where no row is of the class."""
        return self.hits / _nonzero(self.support)

    @property
    def f1(self) -> Tensor:
        """The harmonic mean of precision and recall, (classes,); 0 where neither is above 0."""
        return 2 * self.hits / _nonzero(self.support + self.predicted)

    @property
    def most_mistaken(self) -> Tensor:
        """The classes, (classes,), those with the most mistakes first: rows taken for another, and others' for them."""
        return (self.support + self.predicted - 2 * self.hits).argsort(descending=True, stable=True)


class Reliability(NamedTuple):
    """Rows by how sure the prediction is, in bins of (0, 1/15], (1/15, 2/15], …; (bins,) each.

    Attributes:
        weight: of the rows in the bin.
        confidence: the mean of their highest probabilities; 0 where there are none.
        accuracy: the share of them that is right; 0 where there are none.
    """

    weight: Tensor
    confidence: Tensor
    accuracy: Tensor

    @property
    def error(self) -> Tensor:
        """The expected calibration error, a scalar: Σ weight · |accuracy − confidence| / Σ weight.

        Guo et al., On Calibration of Modern Neural Networks, 2017, equation 3.
        """
        return (self.weight * (self.accuracy - self.confidence).abs()).sum() / _nonzero(self.weight.sum())


_STATES = ("sums", "by_class", "bins", "pairs")


class Scores(Metric):
    """What logits tell of how good a classifier is, over all batches and ranks.

    - ``accuracy``: the share of rows whose largest logit is the target's.
    - ``top5_accuracy``: the share whose target is among the five largest; 1 for five classes and fewer.
    - ``balanced_accuracy``: the mean of the classes' recalls; classes without a row are left out.
    - ``macro_f1``: the mean of the classes' F1; classes without a row that nothing was taken for are left out.
    - ``nll``: the mean of −log p of the target.
    - ``brier``: the mean of Σ (p − one-hot)², from 0 to 2, over all classes (Brier, 1950).
    - ``ece``: the expected calibration error in 15 bins.

    Equal logits rank in the order of the classes. Every mean goes by the rows' weights.

    Args:
        classes: how many.
        shard: those whose logits are here, where others are elsewhere.
        group: the ranks that have other rows; None: all ranks.
    """

    full_state_update = False
    sums: Tensor  # of accuracy, top5_accuracy, nll, brier and the weights
    by_class: Tensor  # (3, classes), as PerClass has them
    bins: Tensor  # (3, bins), sums of what Reliability has
    pairs: Tensor  # (classes, classes), weights of rows by class and prediction; none where the classes are not few

    def __init__(self, classes: int, shard: ClassShard | None = None, group: ProcessGroup | None = None) -> None:
        super().__init__(sync_on_compute=False)
        self._shard = shard or ClassShard.whole(classes)
        self._group = group
        # float32, since an Apple GPU has nothing wider; other devices widen it when the first batch comes.
        self.add_state("sums", torch.zeros(5), dist_reduce_fx="sum")
        self.add_state("by_class", torch.zeros(3, classes), dist_reduce_fx="sum")
        self.add_state("bins", torch.zeros(3, BINS), dist_reduce_fx="sum")
        few = classes if classes <= FEW_CLASSES else 0
        self.add_state("pairs", torch.zeros(few, few), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> None:
        """Takes in rows.

        Args:
            logits: (rows, classes); of the classes that are here.
            targets: (rows,), int64, from 0 to classes - 1.
            weights: (rows,), or None: every row counts once.
        """
        precision = wide(logits)
        for name in _STATES:
            setattr(self, name, getattr(self, name).to(precision))
        if not len(targets):
            return  # nor do ranks with the same rows say anything
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        weights = torch.ones_like(targets, dtype=precision) if weights is None else weights.to(precision)
        predicted, ahead, nll, confidence, brier = judge(logits, targets, self._shard)
        right = predicted == targets
        rows = torch.stack([each.to(precision) for each in (right, ahead < _TOP, nll, brier, torch.ones_like(weights))])
        self.sums += rows @ weights
        hits = weights * right
        for place, (index, weight) in enumerate(((targets, weights), (predicted, weights), (targets, hits))):
            self.by_class[place].index_add_(0, index, weight)
        if len(self.pairs):
            self.pairs.view(-1).index_add_(0, targets * len(self.pairs) + predicted, weights)
        bins = (confidence * BINS).ceil().long().sub_(1).clamp_(0, BINS - 1)
        for place, weight in enumerate((weights, weights * confidence, hits)):
            self.bins[place].index_add_(0, bins, weight)

    def compute(self) -> dict[str, Tensor]:
        """Every metric by its name, a scalar each. All ranks have to call this."""
        return self.of_all_ranks().of_these_rows()

    def of_these_rows(self) -> dict[str, Tensor]:
        """Every metric by its name, a scalar each, of the rows that this one has taken in."""
        accuracy, top, nll, brier = (self.sums[:4] / _nonzero(self.sums[4])).unbind()
        classes = self.per_class
        present, met = classes.support > 0, classes.support + classes.predicted > 0
        return {
            "accuracy": accuracy,
            "top5_accuracy": top,
            "balanced_accuracy": classes.recall.sum() / _nonzero(present.sum()),
            "macro_f1": classes.f1.sum() / _nonzero(met.sum()),
            "nll": nll,
            "brier": brier,
            "ece": self.reliability.error,
        }

    def of_all_ranks(self) -> "Scores":
        """What all ranks have taken in; all of them have to call this."""
        scores = Scores(self._shard.of)
        for name in _STATES:
            setattr(scores, name, together.total(getattr(self, name), self._group))
        return scores

    @property
    def per_class(self) -> PerClass:
        """What is known of each class."""
        return PerClass(*self.by_class.unbind())

    @property
    def reliability(self) -> Reliability:
        """How right the predictions are for how sure they are."""
        weight, confidence, hits = self.bins.unbind()
        return Reliability(weight, confidence / _nonzero(weight), hits / _nonzero(weight))


class Evaluation(nn.Module):
    """All that is recorded of a split: the cost, and what the logits tell.

    Args:
        classes: how many.
        ignore_index: the target of rows that count for nothing.
        shard: the classes whose logits are here, where others are elsewhere.
        group: the ranks that have other rows; None: all ranks.

    Attributes:
        temperature: by which logits are divided to calibrate them; None: they are not.
        scores: of the logits as they are.
        calibrated: of the logits so divided, where there is a temperature.
        seen: what pictures of the rows show that the metrics were last asked of.
    """

    def __init__(
        self,
        classes: int,
        ignore_index: int,
        *,
        shard: ClassShard | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.temperature: float | None = None
        self.scores = Scores(classes, shard, group)
        self.calibrated = Scores(classes, shard, group)
        self.seen: tuple[Tensor, Reliability] | None = None  # `Scores.pairs`, and the reliability
        self._costs = WeightedMean(group)
        self._ignored = ignore_index

    def update(self, cost: Cost | None, logits: Tensor, targets: Tensor, weights: Tensor | None) -> None:
        """Takes in rows.

        Args:
            cost: of the rows; None: nobody wants to know.
            logits: (rows, classes), before they are calibrated; of the classes that are here.
            targets: (rows,), from 0 to classes - 1, or ``ignore_index``.
            weights: (rows,), or None: every row counts once.
        """
        if cost is not None:
            # The type is named, since the usual one has 16 bits in a run of that precision.
            weight = torch.as_tensor(cost.weight, dtype=cost.mean.dtype, device=cost.mean.device)
            self._costs.update(cost.mean, weight)
        counts = targets != self._ignored
        if not counts.all():
            logits, targets = logits[counts], targets[counts]
            weights = None if weights is None else weights[counts]
        self.scores.update(logits, targets, weights)
        if self.temperature is not None:
            self.calibrated.update(logits / self.temperature, targets, weights)

    def metrics(self) -> dict[str, float]:
        """Every metric by its name, of all ranks, which have to call this.

        What a temperature changes, where there is one, is there as ``<metric>_calibrated``, too.
        """
        scores = self.scores.of_all_ranks()
        self.seen = scores.pairs, scores.reliability
        metrics = scores.of_these_rows()
        if self._costs.update_called:
            metrics = {"cost": self._costs.compute(), **metrics}
        if self.temperature is not None:
            after = self.calibrated.compute()
            metrics |= {f"{name}_calibrated": after[name] for name in CALIBRATED}
        return {name: float(value) for name, value in metrics.items()}

    def reset(self) -> None:
        """Forgets all rows."""
        for each in (self._costs, self.scores, self.calibrated):
            each.reset()


def wide(tensor: Tensor) -> torch.dtype:
    """What sums are held in: double precision, but for an Apple GPU, which has none."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _nonzero(divisor: Tensor) -> Tensor:
    return divisor.where(divisor != 0, 1)
