"""What a loss is: features, weight, bias and targets in, the mean cost of the rows out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import isnan
from typing import ClassVar, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossent.class_shard import ClassShard
from crossent.losses.rows import PerClass, Rows

#: The target that `torch.nn.functional.cross_entropy` leaves out, too.
IGNORED = -100

Backend = Literal["auto", "dense", "chunked"]


class NeedsAllClassesError(ValueError):
    """A loss was given a part of the classes and cannot do with that."""


class Cost(NamedTuple):
    """The cost of some rows, as mean and weight, from which the mean over more rows can be put together exactly.

    Attributes:
        mean: scalar, Σ weight · cost / Σ weight over the rows; 0 where no row counts.
        weight: Σ weight, the number of the rows where every one counts once.
    """

    mean: Tensor
    weight: Tensor | float


class Loss(nn.Module, ABC):
    """A loss of a softmax classifier, given what the logits are made of rather than the logits themselves.

    So a loss may compute the logits slice by slice, or only those of its own classes, and need never hold all of
    them. A loss that depends on few numbers of each row derives from `RowLoss`, which does that; one that is content
    with plain logits from `LogitLoss`. What every loss can do, ignored rows, weights of rows and classes, is done
    here, once.

    Attributes:
        backends: what the loss can be computed by.
        has_softmax: whether it has a softmax, whose normaliser ``z_loss`` keeps small.
    """

    backends: ClassVar[tuple[Backend, ...]] = ("dense",)
    has_softmax: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.class_weight: PerClass | None = None
        self.ignore_index = IGNORED
        self.z_loss = 0.0
        self.backend: Backend = "auto"
        self.shard: ClassShard | None = None

    def configure(
        self,
        *,
        class_weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORED,
        z_loss: float = 0.0,
        backend: Backend = "auto",
        shard: ClassShard | None = None,
    ) -> Self:
        """Sets what every loss has, and returns the loss.

        Args:
            class_weight: (classes,), a row's cost is multiplied by its class's weight, and so is its share of the
                mean's denominator, as PyTorch does it for class-index targets.
            ignore_index: rows with this target count for nothing.
            z_loss: ζ ≥ 0; ζ · logsumexp(logits)² is added to every row's cost, which keeps logits from drifting
                (Chowdhery et al., PaLM, 2022, section 5).
            backend: ``dense`` holds all logits, ``chunked`` a slice of rows at a time, ``auto`` goes by their number.
            shard: the classes whose weights the loss is given, where other ranks have others; None: all of them.

        Raises:
            ValueError: an option that the loss does not have.
            NeedsAllClassesError: the classes are split, which the loss does not allow.
        """
        if z_loss < 0:
            raise ValueError(f"z_loss={z_loss:g}: expected a number >= 0")
        if z_loss and not self.has_softmax:
            raise ValueError(f"z_loss={z_loss:g}: {type(self).__name__} has no softmax whose normaliser it could hold")
        if backend not in ("auto", *self.backends):
            raise ValueError(f"backend={backend}: {type(self).__name__} needs all logits of a row; use dense")
        if backend == "chunked" and self.learns:
            raise ValueError(f"backend=chunked: {type(self).__name__} has parameters, which only dense can train")
        if shard is not None and not self.splits:
            raise NeedsAllClassesError(f"{type(self).__name__} needs the logits of all classes of a row")
        if shard is not None and self.learns:
            raise NeedsAllClassesError(f"{type(self).__name__} has parameters, which take all classes to train")
        self.class_weight = None if class_weight is None else PerClass(class_weight)
        self.ignore_index = ignore_index
        self.z_loss = z_loss
        self.backend = backend
        self.shard = shard
        return self

    @property
    def splits(self) -> bool:
        """Whether ranks that have some of the classes each can compute it together."""
        return False

    @property
    def learns(self) -> bool:
        """Whether the loss has parameters of its own to train."""
        holds = bool(self._parameters or self._modules)  # to go through what is not there takes longer than this
        return holds and any(parameter.requires_grad for parameter in self.parameters())

    def outputs(self, classes: int) -> int:
        """How many outputs the head has for so many classes: one each, unless the loss says otherwise."""
        return classes

    def classes(self, outputs: int) -> int:
        """How many classes a head with so many outputs tells apart; the reverse of `outputs`."""
        return outputs

    def forward(
        self,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        sample_weight: Tensor | None = None,
    ) -> Cost:
        """The mean cost of the rows.

        Args:
            features: (rows, features).
            weight: (outputs, features); of the classes that are here, where they are split.
            bias: (outputs,), or None.
            targets: (rows,), integers from 0 to classes - 1, or ``ignore_index``.
            sample_weight: (rows,), multiplies a row's cost and its share of the mean's denominator.

        Raises:
            ValueError: one class, targets that are no class, features that are no numbers, or shapes that do not fit.
        """
        rows = self.counting(features, targets, sample_weight, weight)
        if not rows.targets.shape[0]:
            return Cost(F.linear(rows.features, weight, bias).float().sum(), 0.0)  # 0, and so are its gradients
        mean = self.mean(rows, weight, bias)
        if mean.is_cpu and isnan(mean.item()):  # elsewhere a look at the number would hold up the device
            _refuse_nan(features, targets != self.ignore_index)
        return Cost(mean, rows.total)

    def counting(self, features: Tensor, targets: Tensor, sample_weight: Tensor | None, weight: Tensor) -> Rows:
        """The rows that are not ignored, after a look at whether they can be right.

        Args:
            features: (rows, features), or the outputs, (rows, outputs), in their place.
            targets: (rows,), integers from 0 to classes - 1, or ``ignore_index``.
            sample_weight: (rows,), or None.
            weight: (outputs, features).

        Raises:
            ValueError: one class, targets that are no class, or shapes that do not fit.
        """
        classes = self._all_classes(weight)
        if features.ndim != 2 or targets.shape != features.shape[:1]:
            raise ValueError(
                f"features have the shape {tuple(features.shape)} and targets {tuple(targets.shape)}; "
                "expected (rows, features) and (rows,)"
            )
        if classes < 2:
            raise ValueError(f"{classes} class: a loss needs 2 or more to tell apart")
        if sample_weight is not None and sample_weight.shape != targets.shape:
            raise ValueError(f"sample_weight has the shape {tuple(sample_weight.shape)}, not {tuple(targets.shape)}")
        if targets.dtype != torch.int64:
            if targets.is_floating_point() or targets.is_complex():
                raise ValueError(f"targets are {targets.dtype}; expected the index of each row's class")
            targets = targets.long()
        if targets.shape[0]:
            extremes = torch.aminmax(targets)
            lowest, highest = extremes.min.item(), extremes.max.item()
            weighted = sample_weight is not None
            if weighted or lowest < 0 or highest >= classes or lowest <= self.ignore_index <= highest:
                kept = targets != self.ignore_index
                _refuse_outside(targets, kept, classes)
                if sample_weight is not None:
                    kept &= sample_weight != 0  # or an infinite cost would still count for something
                    sample_weight = sample_weight[kept]
                features, targets = features[kept], targets[kept]
        class_weight = None
        if self.class_weight is not None:
            if len(self.class_weight) != classes:
                raise ValueError(f"class_weight has {len(self.class_weight)} numbers for {classes} classes")
            class_weight = self.class_weight.like(features)[targets]
        if sample_weight is not None:
            sample_weight = sample_weight.to(torch.promote_types(features.dtype, torch.float32))
        return Rows(features, targets, sample_weight, class_weight)

    def mean_with_gradients(
        self, rows: Rows, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """The weighted mean of the rows' costs and its gradients by weight and bias, without autograd.

        None where there is no closed form for it, or where that gains nothing; `mean` and autograd find the same.

        Args:
            rows: at least one.
            weight: (outputs, features).
            bias: (outputs,), or None.
        """
        return None

    def with_outputs(
        self,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        sample_weight: Tensor | None = None,
    ) -> tuple[Cost, Tensor]:
        """The mean cost of the rows, and the head's outputs, (rows, outputs), to evaluate with; no gradients.

        Where a loss depends on plain logits, these are computed once, and all of them are held.

        Args:
            features: (rows, features).
            weight: (outputs, features).
            bias: (outputs,), or None.
            targets: (rows,), integers from 0 to classes - 1, or ``ignore_index``.
            sample_weight: (rows,), multiplies a row's cost and its share of the mean's denominator.
        """
        outputs = F.linear(features, weight, bias)
        narrow = torch.is_autocast_enabled(features.device.type) or weight.dtype.itemsize < 4
        if narrow:  # the loss takes care of which part of it is computed in 16 bits
            return self(features, weight, bias, targets, sample_weight), outputs
        with torch.no_grad():
            rows = self.counting(outputs, targets, sample_weight, weight)
            if not rows.targets.shape[0]:
                return Cost(outputs.new_zeros(()), 0.0), outputs
            mean = self.mean_of_outputs(rows, weight)
        if mean is None:
            return self(features, weight, bias, targets, sample_weight), outputs
        return Cost(mean, rows.total), outputs

    def mean_of_outputs(self, rows: Rows, weight: Tensor) -> Tensor | None:
        """The weighted mean of the costs of rows whose ``features`` are the head's outputs already, (rows, outputs).

        None, unless the loss says otherwise: it makes something else of features and weight than their product.

        Args:
            rows: at least one.
            weight: (outputs, features), of which the outputs are.
        """
        return None

    @abstractmethod
    def mean(self, rows: Rows, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The weighted mean of the costs of the rows, at least one, a scalar; `Loss.forward` tells the shapes."""

    def _all_classes(self, weight: Tensor) -> int:
        """How many classes there are, the weight's and those that are elsewhere."""
        if self.shard is None:
            return self.classes(weight.shape[0])
        if weight.shape[0] != self.shard.classes:
            raise ValueError(f"weight is of {weight.shape[0]} classes, and {self.shard.classes} are here")
        return self.shard.of


class LogitLoss(Loss):
    """A loss written as the cost of each row, given all its logits; autograd finds the gradient.

    A loss of your own needs one method::

        class Margin(LogitLoss):
            has_softmax = False  # so that z_loss is refused

            def cost(self, logits, targets):
                return torch.nn.functional.multi_margin_loss(logits, targets, reduction="none")
    """

    def mean(self, rows: Rows, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The weighted mean of the rows' costs; costs of 16-bit logits are computed in float32."""
        return self._mean(rows._replace(features=F.linear(rows.features, weight, bias)))

    def mean_of_outputs(self, rows: Rows, weight: Tensor) -> Tensor | None:
        """The weighted mean of the rows' costs, unless a class of the user's own takes other logits than these."""
        return self._mean(rows) if type(self).mean is LogitLoss.mean else None

    def _mean(self, rows: Rows) -> Tensor:
        """The weighted mean of the rows' costs, from their logits in the place of features."""
        logits = rows.features.to(torch.promote_types(rows.features.dtype, torch.float32))
        costs = self.cost(logits, rows.targets)
        if costs.shape != rows.targets.shape:
            raise ValueError(
                f"{type(self).__name__}.cost has to return a cost a row, {tuple(rows.targets.shape)}, not "
                f"{tuple(costs.shape)}; PyTorch's losses do with reduction='none'"
            )
        costs = costs.masked_fill(logits.isnan().any(dim=1), torch.nan)  # some of PyTorch's losses take NaN for 0
        if self.z_loss:
            costs = costs + self.z_loss * logits.logsumexp(dim=1).square()
        return rows.mean(costs if rows.weight is None else costs * rows.weight)

    @abstractmethod
    def cost(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The cost of each row, (rows,), from its logits, (rows, outputs), and target, (rows,)."""


def _refuse_outside(targets: Tensor, kept: Tensor, classes: int) -> None:
    outside = kept & ((targets < 0) | (targets >= classes))
    if outside.any():
        row = int(outside.nonzero()[0])
        raise ValueError(f"row {row}: target {int(targets[row])}, expected 0 to {classes - 1}")


def _refuse_nan(features: Tensor, counts: Tensor) -> None:
    """Names the row that is to blame for a cost that is no number, if the features are."""
    broken = features.isnan().any(dim=1) & counts
    if broken.any():
        raise ValueError(f"row {int(broken.nonzero()[0])}: NaN in the features")
