"""What the losses have to be: their formulas on all logits at once, in double precision, by plain autograd.

Nothing here comes from the package but the classes that are under test and, for a loss without a formula of its own
below, its method ``cost``. So a loss that is added to ``crossent.losses.LOSSES`` is tested before anyone writes a test.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crossent import losses
from crossent.custom import make
from crossent.errors import UserError
from crossent.losses import LogitLoss, Loss, RowLoss, Statistics, products
from crossent.losses.base import Backend

#: Cost of each row, (rows,), from logits, (rows, outputs), targets, (rows,), and class weights, (classes,).
Formula = Callable[[Tensor, Tensor, Tensor], Tensor]


class Problem(NamedTuple):
    """Everything a loss is given."""

    features: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor
    frequencies: Tensor
    class_weight: Tensor | None = None
    sample_weight: Tensor | None = None
    ignore_index: int = -100
    z_loss: float = 0.0

    def to(self, dtype: torch.dtype) -> "Problem":
        """With features, weight and bias in another precision."""
        bias = None if self.bias is None else self.bias.to(dtype)
        return self._replace(features=self.features.to(dtype), weight=self.weight.to(dtype), bias=bias)


class Outcome(NamedTuple):
    """The mean cost, its denominator, and the gradients of the mean."""

    mean: Tensor
    denominator: Tensor
    features: Tensor
    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Case:
    """A loss under test.

    Attributes:
        name: tells the tests apart.
        make: makes the loss from the frequencies of the classes, (classes,).
        formula: what it has to be; None: what its own method ``cost`` says.
        tau: how much of the logarithm of the frequencies is added to the logits first.
        symmetric: the cost depends on differences of logits alone, and on all classes but the target alike.
    """

    name: str
    make: Callable[[Tensor], Loss]
    formula: Formula | None
    tau: float = 0.0
    symmetric: bool = True

    @property
    def loss(self) -> Loss:
        """An instance for looking at what is true of all."""
        return self.make(torch.ones(2))

    def classes(self, wanted: int) -> int:
        """As many classes as wanted, or two where it takes no more."""
        try:
            self.loss.outputs(wanted)
        except UserError:
            return 2
        return wanted

    def configured(self, problem: Problem, backend: Backend = "auto") -> Loss:
        """The loss with the options of a problem."""
        return self.make(problem.frequencies).configure(
            class_weight=problem.class_weight,
            ignore_index=problem.ignore_index,
            z_loss=problem.z_loss,
            backend=backend,
        )

    def random(
        self, classes: int = 7, rows: int = 13, columns: int = 5, *, seed: int = 0, scale: float = 1.0
    ) -> Problem:
        """A problem without options, of so many classes or two, whose logits grow with the scale."""
        classes = self.classes(classes)
        outputs = self.loss.outputs(classes)
        draw = torch.Generator().manual_seed(seed)
        return Problem(
            features=torch.randn(rows, columns, generator=draw).double(),
            weight=torch.randn(outputs, columns, generator=draw).double() * scale,
            bias=torch.randn(outputs, generator=draw).double() * scale,
            targets=torch.randint(classes, (rows,), generator=draw),
            frequencies=torch.randint(1, 50, (classes,), generator=draw).double(),
        )

    def with_class_weight(self, problem: Problem) -> Problem:
        """With weights of the classes from 1/2 to 2."""
        classes = len(problem.frequencies)
        return problem._replace(class_weight=torch.linspace(0.5, 2, classes, dtype=torch.float64).flip(0))

    def with_sample_weight(self, problem: Problem) -> Problem:
        """With weights of the rows, some of them 0, that every precision can hold."""
        return problem._replace(sample_weight=torch.arange(len(problem.targets)).remainder(4) / 2.0)

    def with_ignored_rows(self, problem: Problem) -> Problem:
        """With every fifth row ignored."""
        ignored = torch.arange(len(problem.targets)) % 5 == 1
        return problem._replace(targets=problem.targets.where(~ignored, problem.ignore_index))

    def with_z_loss(self, problem: Problem) -> Problem:
        """With a term for the normaliser, if the loss has one."""
        return problem._replace(z_loss=0.05) if self.loss.has_softmax else problem

    def with_all(self, problem: Problem) -> Problem:
        """With all of these."""
        return self.with_z_loss(self.with_ignored_rows(self.with_sample_weight(self.with_class_weight(problem))))


def outcome(loss: Loss, problem: Problem) -> Outcome:
    """What the package makes of a problem."""
    features, weight, bias = _leaves(problem)
    cost = loss(features, weight, bias, problem.targets, problem.sample_weight)
    return _outcome(cost.mean, torch.as_tensor(cost.weight), features, weight, bias)


def expected(case: Case, problem: Problem, dtype: torch.dtype = torch.float64) -> Outcome:
    """What the formula makes of a problem.

    In a narrower precision this is what anyone would write without much thought, statistics in float32 at least.
    """
    features, weight, bias = _leaves(problem.to(dtype))
    exact = torch.promote_types(dtype, torch.float32)
    kept = problem.targets != problem.ignore_index
    targets = problem.targets[kept]
    formula, offset = case.formula, bias
    if formula is None:
        loss = case.configured(problem)
        formula = own_formula(loss)
        added = loss.added(weight) if isinstance(loss, RowLoss) else None
        offset = bias if added is None else added if bias is None else added + bias

    logits = F.linear(features[kept], weight, offset).to(exact)
    if case.tau:
        logits = logits + case.tau * (problem.frequencies / problem.frequencies.sum()).log().to(exact)
    class_weight = torch.ones_like(problem.frequencies) if problem.class_weight is None else problem.class_weight
    class_weight = class_weight.to(exact)
    costs = formula(logits, targets, class_weight)
    if problem.z_loss:
        costs = costs + problem.z_loss * class_weight[targets] * logits.logsumexp(1).square()
    weights = class_weight[targets]
    if problem.sample_weight is not None:
        sample_weight = problem.sample_weight[kept].to(exact)
        costs, weights = costs * sample_weight, weights * sample_weight
    return _outcome(costs.sum() / weights.sum(), weights.sum(), features, weight, bias)


def pairs(found: Outcome, reference: Outcome) -> list[tuple[str, Tensor, Tensor]]:
    """Name, what was found and what it should be, of all there is to compare."""
    return [
        (name, ours.double(), theirs.double())
        for name, ours, theirs in zip(Outcome._fields, found, reference, strict=True)
        if ours is not None and theirs is not None
    ]


def _leaves(problem: Problem) -> tuple[Tensor, Tensor, Tensor | None]:
    features, weight = (each.detach().clone().requires_grad_() for each in (problem.features, problem.weight))
    return features, weight, None if problem.bias is None else problem.bias.detach().clone().requires_grad_()


def _outcome(mean: Tensor, denominator: Tensor, features: Tensor, weight: Tensor, bias: Tensor | None) -> Outcome:
    inputs = [features, weight] if bias is None else [features, weight, bias]
    by_features, by_weight, *by_bias = torch.autograd.grad(mean, inputs)
    return Outcome(mean.detach(), denominator, by_features, by_weight, by_bias[0] if by_bias else None)


@contextmanager
def slices(classes: int, dtype: torch.dtype, rows: int = 5, block: int = 2) -> Iterator[None]:
    """The backend ``chunked`` takes slices of so few rows, and does them in blocks of even fewer."""
    row = classes * max(dtype.itemsize, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "slice_rows", lambda weight, itemsize: rows)
        patch.setattr(products, "_BLOCK_BYTES", block * row)
        patch.setattr(products.Products, "class_parts", lambda self: products._parts(self.classes, block))
        patch.setattr(torch, "get_num_threads", lambda: 1)  # blocks grow with the threads
        yield


# -- the formulas -------------------------------------------------------------------------------------------


def _of_target(values: Tensor, targets: Tensor) -> Tensor:
    return values[torch.arange(len(targets)), targets]


def _nll(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.logsumexp(1) - _of_target(logits, targets)


def _probability(logits: Tensor, targets: Tensor) -> Tensor:
    return _of_target(logits.softmax(1), targets)


def _weighted(cost: Callable[[Tensor, Tensor], Tensor]) -> Formula:
    return lambda logits, targets, class_weight: class_weight[targets] * cost(logits, targets)


def one_hot() -> Formula:
    def cost(logits: Tensor, targets: Tensor) -> Tensor:
        return -(F.one_hot(targets, logits.shape[1]) * logits.softmax(1).log()).sum(1)

    return _weighted(cost)


def cross_entropy(label_smoothing: float = 0.0) -> Formula:
    def formula(logits: Tensor, targets: Tensor, class_weight: Tensor) -> Tensor:
        spread = logits.logsumexp(1) - (class_weight * logits).sum(1) / class_weight.sum()
        nll = class_weight[targets] * _nll(logits, targets)
        return (1 - label_smoothing) * nll + label_smoothing * class_weight.mean() * spread

    return formula


def binary(pos_weight: float = 1.0) -> Formula:
    def cost(logits: Tensor, targets: Tensor) -> Tensor:
        difference = logits[:, 0]
        return (F.softplus(difference) - targets * difference) * logits.new_tensor([1.0, pos_weight])[targets]

    return _weighted(cost)


def focal(gamma: float = 2.0) -> Formula:
    return _weighted(lambda logits, targets: (1 - _probability(logits, targets)) ** gamma * _nll(logits, targets))


def poly1(epsilon: float = 1.0) -> Formula:
    return _weighted(lambda logits, targets: _nll(logits, targets) + epsilon * (1 - _probability(logits, targets)))


def generalized_cross_entropy(q: float = 0.7) -> Formula:
    return _weighted(lambda logits, targets: (1 - _probability(logits, targets) ** q) / q)


def symmetric_cross_entropy(alpha: float = 0.1, beta: float = 1.0, A: float = -4.0) -> Formula:  # noqa: N803
    def cost(logits: Tensor, targets: Tensor) -> Tensor:
        return alpha * _nll(logits, targets) - beta * A * (1 - _probability(logits, targets))

    return _weighted(cost)


def brier() -> Formula:
    def cost(logits: Tensor, targets: Tensor) -> Tensor:
        return 1 - 2 * _probability(logits, targets) + logits.softmax(1).square().sum(1)

    return _weighted(cost)


def hinge(margin: float = 1.0, p: int = 1) -> Formula:
    def cost(logits: Tensor, targets: Tensor) -> Tensor:
        short = (margin - _of_target(logits, targets).unsqueeze(1) + logits).clamp(min=0) ** p
        others = 1 - F.one_hot(targets, logits.shape[1])
        return (short * others).sum(1) / logits.shape[1]

    return _weighted(cost)


def own_formula(loss: Loss) -> Formula:
    """What a loss says itself, given all logits, or statistics that are computed without any care."""
    if isinstance(loss, LogitLoss):
        return _weighted(loss.cost)
    if not isinstance(loss, RowLoss):
        raise TypeError(f"{type(loss).__name__}: neither a RowLoss nor a LogitLoss; write its formula here")

    def formula(logits: Tensor, targets: Tensor, class_weight: Tensor) -> Tensor:
        logarithms = logits.log_softmax(1)
        row = Statistics(
            nll=-_of_target(logarithms, targets),
            mean_nll=-(class_weight * logarithms).mean(1),
            squared_probabilities=logarithms.exp().square().sum(1),
            logsumexp=logits.logsumexp(1),
        )
        spread = loss.spread(row)
        cost = class_weight[targets] * loss.cost(row)
        return cost if spread is None else cost + spread

    return formula


# -- the cases ----------------------------------------------------------------------------------------------

_VARIANTS: dict[type[Loss], tuple[Callable[..., Formula], list[dict[str, float]]]] = {
    losses.OneHot: (one_hot, [{}]),
    losses.NegativeLogLikelihood: (cross_entropy, [{}]),
    losses.CrossEntropy: (cross_entropy, [{}, {"label_smoothing": 0.1}, {"label_smoothing": 1.0}]),
    losses.Binary: (binary, [{}, {"pos_weight": 3.0}]),
    losses.Focal: (focal, [{}, {"gamma": 0.5}, {"gamma": 0.0}]),
    losses.Poly1: (poly1, [{}, {"epsilon": -1.0}]),
    losses.GeneralizedCrossEntropy: (generalized_cross_entropy, [{}, {"q": 1.0}]),
    losses.SymmetricCrossEntropy: (symmetric_cross_entropy, [{}, {"alpha": 1.0, "beta": 0.5, "A": -2.0}]),
    losses.Brier: (brier, [{}]),
    losses.LogitAdjusted: (cross_entropy, [{}, {"tau": 0.5}]),
    losses.Hinge: (hinge, [{}, {"margin": 2.0, "p": 2}]),
}


def cases(custom: Sequence[str] = ()) -> list[Case]:
    """Every loss that is registered, with several parameters where its formula is above.

    Args:
        custom: classes of the user's own, ``package.module.Class``, which need no arguments.
    """
    registered = [case for kind in losses.LOSSES.values() for case in _cases(kind)]
    return registered + [_without_formula(path, lambda _, path=path: make("loss", path, {}, Loss)) for path in custom]  # type: ignore[misc]


def _cases(kind: type[Loss]) -> list[Case]:
    takes_frequencies = "frequencies" in inspect.signature(kind).parameters

    build: Callable[..., Loss] = kind

    def made(frequencies: Tensor, **arguments: float) -> Loss:
        return build(frequencies=frequencies, **arguments) if takes_frequencies else build(**arguments)

    if kind not in _VARIANTS:
        return [_without_formula(kind.__name__, made)]
    return [_variant(kind, made, arguments) for arguments in _VARIANTS[kind][1]]


def _variant(kind: type[Loss], made: Callable[..., Loss], arguments: dict[str, float]) -> Case:
    parameters = dict(arguments)
    tau = parameters.pop("tau", 1.0) if kind is losses.LogitAdjusted else 0.0
    listed = ",".join(f"{key}={value:g}" for key, value in arguments.items())
    return Case(
        f"{kind.__name__}({listed})",
        lambda frequencies: made(frequencies, **arguments),
        _VARIANTS[kind][0](**parameters),
        tau,
        symmetric=kind is not losses.Binary,
    )


def _without_formula(name: str, made: Callable[[Tensor], Loss]) -> Case:
    loss = made(torch.ones(2))
    return Case(
        name,
        made,
        None,
        symmetric=isinstance(loss, RowLoss) and "logsumexp" not in loss.reading(torch.empty(0)).statistics,
    )
