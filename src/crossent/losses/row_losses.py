"""The losses that depend on few numbers of each row: a formula each.

A loss added here is ten lines: a class with the formula, its parameters in ``config/losses.py``, its defaults in
``conf/loss/``, and its entry in ``losses/__init__.py``. Gradients, backends, weights and the tests come with it.
"""

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor

from crossent.losses import backends
from crossent.losses.base import Backend, Loss
from crossent.losses.rows import PerClass, Rows
from crossent.losses.statistics import UNREAD, Slopes, Statistics


class Reading(NamedTuple):
    """What a loss reads of a row.

    Attributes:
        statistics: their names.
        is_nll: whether a row's cost is its ``nll`` and nothing else.
    """

    statistics: frozenset[str]
    is_nll: bool


_READING = "_reading"


class RowLoss(Loss):
    """A loss that depends on a row's logits only through their statistics.

    A loss of your own needs one method, a formula for all rows at once, without ``if`` on their numbers::

        class Tsallis(RowLoss):
            def cost(self, row):
                return row.nll + (1 - row.squared_probabilities) / 2
    """

    backends: ClassVar[tuple[Backend, ...]] = ("dense", "chunked")

    @abstractmethod
    def cost(self, row: Statistics) -> Tensor:
        """The cost of each row, (rows,), a formula of its statistics."""

    def spread(self, row: Statistics) -> Tensor | None:
        """What is added to the cost of each row, (rows,), and not multiplied by the weight of its class.

        The place for what all classes share in: ``row.mean_nll`` has the weight of each class in it already.
        """
        return None

    def added(self, like: Tensor) -> Tensor | None:
        """What the loss adds to all rows' logits, beside the bias, (classes,), all of them; None: nothing.

        Args:
            like: on whose device, and in whose precision or a wider one.
        """
        return None

    @property
    def splits(self) -> bool:
        """Whether ranks can compute it together: they can, unless a class of the user's own takes other logits."""
        return type(self).mean is RowLoss.mean

    def mean(self, rows: Rows, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The weighted mean of the rows' costs, a scalar."""
        return backends.mean(self, rows, weight, bias)

    def mean_with_gradients(
        self, rows: Rows, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """The weighted mean of the rows' costs and its gradients, unless a class of the user's own has another mean."""
        return backends.mean_with_gradients(self, rows, weight, bias) if type(self).mean is RowLoss.mean else None

    def mean_of_outputs(self, rows: Rows, weight: Tensor) -> Tensor | None:
        """The weighted mean of the rows' costs, unless a class of the user's own takes other logits than these."""
        return backends.mean_of_outputs(self, rows, weight) if type(self).mean is RowLoss.mean else None

    def cost_of(self, row: Statistics, rows: Rows) -> Tensor:
        """The cost of each row with all that belongs to it, (rows,)."""
        cost = self.cost(row)
        if self.z_loss:
            cost = cost + self.z_loss * row.logsumexp.square()
        if rows.class_weight is not None:
            cost = cost * rows.class_weight
        spread = self.spread(row)
        if spread is not None:
            cost = cost + spread
        return cost if rows.sample_weight is None else cost * rows.sample_weight

    def differentiated(self, row: Statistics, rows: Rows) -> tuple[Tensor, Slopes]:
        """`cost_of` and its derivatives by the statistics, which autograd finds among these few numbers."""
        with torch.enable_grad():
            leaves = [each if each is UNREAD else each.requires_grad_() for each in row]
            costs = self.cost_of(Statistics(*leaves), rows)
            read = [leaf for leaf in leaves if leaf is not UNREAD]
            ones = torch.ones_like(costs)  # one node of autograd's fewer than by way of their sum
            found = iter(torch.autograd.grad(costs, read, ones, allow_unused=True) if costs.requires_grad else ())
        return costs.detach(), Slopes(*(None if leaf is UNREAD else next(found, None) for leaf in leaves))

    def reading(self, logits: Tensor) -> Reading:
        """What the formula reads, found by trying it on a row that takes note; once, until something is changed.

        Args:
            logits: any, for the device on which they are.
        """
        found: Reading | None = self.__dict__.get(_READING)
        if found is None:
            found = self.__dict__[_READING] = self._try_formula(logits.device)
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__.pop(_READING, None)  # an option may decide over what is read
        super().__setattr__(name, value)

    def _try_formula(self, device: torch.device) -> Reading:
        probe = _Probe(device)
        row = cast(Statistics, probe)
        cost = self.cost(row)
        if not isinstance(cost, Tensor) or cost.shape != (1,):
            raise ValueError(f"{type(self).__name__}.cost has to return a cost a row, (rows,)")
        spread = self.spread(row)
        is_nll = cost is probe.read.get("nll") and spread is None and not self.z_loss
        return Reading(frozenset(probe.read) | ({"logsumexp"} if self.z_loss else frozenset()), is_nll)

    def class_share(self, logits: Tensor) -> Tensor | None:
        """The weights of all classes divided by their number, (classes,), where the mean over classes needs them."""
        if self.class_weight is None or "mean_nll" not in self.reading(logits).statistics:
            return None
        return self.class_weight.like(logits) / len(self.class_weight)


class _Probe:
    """A row of statistics that remembers what was read of it."""

    def __init__(self, device: torch.device) -> None:
        self.read: dict[str, Tensor] = {}
        self._device = device

    def __getattr__(self, name: str) -> Tensor:
        if name not in Statistics._fields:
            raise AttributeError(f"a row has no '{name}', only {', '.join(Statistics._fields)}")
        return self.read.setdefault(name, torch.full((1,), 0.5, device=self._device).as_subclass(_Unknown))


class _Unknown(Tensor):
    """A number that nobody may decide by."""

    def __bool__(self) -> bool:
        raise ValueError("a formula cannot decide by a row's numbers, which differ from row to row; use torch.where")


class CrossEntropy(RowLoss):
    """logsumexp(logits) − logit of the target; with smoothing ε, the target's share of 1 is 1 − ε + ε / classes.

    Where class weights meet smoothing, every class counts by its own weight, as PyTorch does it.

    Args:
        label_smoothing: ε, from 0 to 1 (Szegedy et al., Rethinking the Inception Architecture, 2016, section 7).
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def cost(self, row: Statistics) -> Tensor:
        return (1 - self.label_smoothing) * row.nll if self.label_smoothing else row.nll

    def spread(self, row: Statistics) -> Tensor | None:
        return self.label_smoothing * row.mean_nll if self.label_smoothing else None


class LogitAdjusted(CrossEntropy):
    """Cross entropy of logits + τ · log(class frequencies): rare classes get the margin that their rarity takes.

    Predictions use the logits themselves (Menon et al., Long-tail learning via logit adjustment, 2021, equation 10).

    Args:
        frequencies: (classes,), how often each class is among the training rows; proportions suffice.
        tau: τ, 0 or more.
    """

    def __init__(self, frequencies: Tensor, tau: float = 1.0) -> None:
        super().__init__()
        prior = frequencies.double() / frequencies.sum()
        self._log_prior = PerClass(tau * prior.log())

    def added(self, like: Tensor) -> Tensor | None:
        return self._log_prior.like(like)


class Focal(RowLoss):
    """−(1 − p)^γ · log p, p being the target's probability: rows that are right already count less.

    Lin et al., Focal Loss for Dense Object Detection, 2017, equation 4.

    Args:
        gamma: γ, 0 or more; 0 is cross entropy.
    """

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        self.gamma = gamma

    def cost(self, row: Statistics) -> Tensor:
        # Kept from 0, where the derivative of a power below 1 is infinite; the cost is 0 there all the same.
        wrong = (-torch.expm1(-row.nll)).clamp(min=torch.finfo(row.nll.dtype).tiny)
        return wrong**self.gamma * row.nll


class Poly1(RowLoss):
    """−log p + ε · (1 − p): cross entropy with the first coefficient of its series in 1 − p changed.

    Leng et al., PolyLoss, 2022, section 4.2.

    Args:
        epsilon: ε, −1 or more.
    """

    def __init__(self, epsilon: float = 1.0) -> None:
        super().__init__()
        self.epsilon = epsilon

    def cost(self, row: Statistics) -> Tensor:
        return row.nll - self.epsilon * torch.expm1(-row.nll)


class GeneralizedCrossEntropy(RowLoss):
    """(1 − p^q) / q: between cross entropy (q → 0) and mean absolute error (q = 1); robust to wrong labels.

    Zhang and Sabuncu, Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels, 2018,
    equation 6.

    Args:
        q: above 0, up to 1.
    """

    def __init__(self, q: float = 0.7) -> None:
        super().__init__()
        self.q = q

    def cost(self, row: Statistics) -> Tensor:
        return -torch.expm1(-self.q * row.nll) / self.q


class SymmetricCrossEntropy(RowLoss):
    """−α · log p − β · A · (1 − p): cross entropy and, with log 0 taken to be A, that of the labels by the prediction.

    Wang et al., Symmetric Cross Entropy for Robust Learning with Noisy Labels, 2019, equation 7.

    Args:
        alpha: α, 0 or more.
        beta: β, 0 or more.
        A: below 0.
    """

    def __init__(self, alpha: float = 0.1, beta: float = 1.0, A: float = -4.0) -> None:  # noqa: N803  # the paper's
        super().__init__()
        self.alpha, self.beta, self.A = alpha, beta, A

    def cost(self, row: Statistics) -> Tensor:
        return self.alpha * row.nll + self.beta * self.A * torch.expm1(-row.nll)


class Brier(RowLoss):
    """Σ_c (p_c − 1[c = target])² = 1 − 2 p + Σ_c p_c²: the squared error of the probabilities.

    Brier, Verification of forecasts expressed in terms of probability, 1950.
    """

    def cost(self, row: Statistics) -> Tensor:
        return 1 - 2 * torch.exp(-row.nll) + row.squared_probabilities
