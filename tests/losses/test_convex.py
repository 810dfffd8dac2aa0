"""What a solver is told of convex losses agrees with the losses themselves."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from crossent.losses import (
    Binary,
    Brier,
    Cost,
    CrossEntropy,
    Focal,
    GeneralizedCrossEntropy,
    Hinge,
    LogitAdjusted,
    LogitLoss,
    Loss,
    NegativeLogLikelihood,
    OneHot,
    Poly1,
    RowLoss,
    Statistics,
    SymmetricCrossEntropy,
)
from crossent.losses.convex import ConvexCosts, NotConvexError, costs
from solvers.problems import RoundedHinge

CLASSES = 4
WEIGHTS = [0.5, 2.0, 1.0, 3.0]
CONVEX: dict[str, Loss] = {
    "cross_entropy": CrossEntropy(),
    "smoothed": CrossEntropy(0.3),
    "weighted": CrossEntropy().configure(class_weight=WEIGHTS),
    "smoothed, weighted": CrossEntropy(0.3).configure(class_weight=WEIGHTS),
    "nll": NegativeLogLikelihood().configure(class_weight=WEIGHTS),
    "one_hot": OneHot(),
    "logit_adjusted": LogitAdjusted(torch.tensor(WEIGHTS), 2.0),
    "focal with gamma 0": Focal(0.0),
    "poly1 with epsilon 0": Poly1(0.0),
    "hinge": Hinge(margin=0.7).configure(class_weight=WEIGHTS),
    "squared hinge": Hinge(margin=0.7, p=2).configure(class_weight=WEIGHTS),
    "binary": Binary(2.5).configure(class_weight=WEIGHTS[:2]),
}
LEARNING: dict[str, Loss] = {
    "focal": Focal(),
    "poly1": Poly1(),
    "generalized": GeneralizedCrossEntropy(),
    "symmetric": SymmetricCrossEntropy(),
    "brier": Brier(),
    "z_loss": CrossEntropy().configure(z_loss=0.1),
}


class Shifted(RowLoss):
    def cost(self, row: Statistics) -> Tensor:
        return 3 * row.nll + 2


class Squared(RowLoss):
    def cost(self, row: Statistics) -> Tensor:
        return row.nll.square()


class Turned(RowLoss):
    def cost(self, row: Statistics) -> Tensor:
        return -row.nll


class Own(LogitLoss):
    def cost(self, logits: Tensor, targets: Tensor) -> Tensor:
        return logits.logsumexp(1)


def rows(loss: Loss, weighted: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Outputs, (rows, outputs), targets, and weights."""
    generator = torch.Generator().manual_seed(0)
    outputs = 1 if isinstance(loss, Binary) else CLASSES
    logits = 2 * torch.randn(30, outputs, generator=generator, dtype=torch.float64)
    targets = torch.randint(loss.classes(outputs), (30,), generator=generator)
    return logits, targets, torch.rand(30, generator=generator, dtype=torch.float64) + 0.1 if weighted else None


def smooth(loss: Loss, found: ConvexCosts) -> Loss:
    """What slopes are of: the same, or the hinge with kinks rounded off."""
    if not isinstance(loss, Hinge) or not found.smoothing:
        return loss
    rounded = RoundedHinge(found.smoothing, loss.margin)
    rounded.class_weight = loss.class_weight
    return rounded


def total(loss: Loss, logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    """The sum of the costs, by the loss itself: features are the outputs, and the weights the identity."""
    cost: Cost = loss(logits, torch.eye(logits.shape[1], dtype=torch.float64), None, targets, weights)
    return cost.mean * cost.weight


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", CONVEX)
def test_costs_slopes_and_bends(name: str, weighted: bool) -> None:
    loss = CONVEX[name]
    logits, targets, weights = rows(loss, weighted)
    found = costs(loss, targets, weights, logits.shape[1])
    state = torch.empty(found.states, 30, dtype=torch.float64)
    outputs, everything = logits.t().clone(), slice(0, 30)
    moved = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    cost, _, raised, _ = found.visit(outputs, everything, state)
    directions = moved.t().clone()
    found.bend(directions, everything, state)

    def by_logits(at: Tensor) -> Tensor:
        return total(smooth(loss, found), at, targets, weights)

    assert found.total == pytest.approx(
        float(loss(logits, torch.eye(logits.shape[1]).double(), None, targets, weights).weight)
    )
    assert float(cost) == pytest.approx(float(total(loss, logits, targets, weights)), rel=1e-12)
    assert float(cost) + raised == pytest.approx(float(by_logits(logits)), rel=1e-12)

    def slopes(at: Tensor) -> Tensor:
        at = at.clone().requires_grad_()
        return torch.autograd.grad(by_logits(at), at)[0]

    torch.testing.assert_close(outputs, slopes(logits).t(), rtol=1e-10, atol=1e-12)
    step = 1e-6  # no margin is so near to being kept
    bent = (slopes(logits + step * moved) - slopes(logits - step * moved)) / (2 * step)
    torch.testing.assert_close(directions, bent.t(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", CONVEX)
def test_hessians_of_rows(name: str) -> None:
    loss = CONVEX[name]
    logits, targets, weights = rows(loss, weighted=True)
    found = costs(loss, targets, weights, logits.shape[1])
    state = torch.empty(found.states, 30, dtype=torch.float64)
    found.visit(logits.t().clone(), slice(0, 30), state)

    hessians = found.hessians(slice(0, 30), state)

    for output in range(found.outputs):
        directions = torch.zeros(found.outputs, 30, dtype=torch.float64)
        directions[output] = 1
        found.bend(directions, slice(0, 30), state)
        torch.testing.assert_close(hessians[output], directions)
        torch.testing.assert_close(found.second_derivatives(slice(0, 30), state)[output], directions[output])
    some = torch.tensor([3, 17, 4])
    torch.testing.assert_close(found.hessians(some, state[:, some]), hessians[:, :, some])


@pytest.mark.parametrize("length", [1e-4, 0.1, 30.0])
@pytest.mark.parametrize("name", [name for name in CONVEX if name != "one_hot"])  # which underflows
def test_what_is_left_of_fenchels_inequality(name: str, length: float) -> None:
    """For any slopes α that it is told, no u can have φ(z + u) − ⟨α, z + u⟩ below −φ*(α)."""
    loss = CONVEX[name]
    logits, targets, weights = rows(loss, weighted=True)
    found = costs(loss, targets, weights, logits.shape[1])
    state, there = torch.empty(2, found.states, 30, dtype=torch.float64)
    slopes = logits.t().clone()
    found.visit(slopes, slice(0, 30), state)
    generator = torch.Generator().manual_seed(1)
    moved = length * torch.randn(logits.shape, generator=generator, dtype=torch.float64)
    lift = length * torch.randn(logits.shape[1], generator=generator, dtype=torch.float64)
    found.visit((logits + moved).t().clone(), slice(0, 30), there)

    changed, left = found.aim(slice(0, 30), state, there, lift)

    aimed = (slopes + changed).t()
    if length < 1e-3:  # and no slope is cut off
        turned = (moved + lift).t().clone()
        found.bend(turned, slice(0, 30), state)
        torch.testing.assert_close(changed, turned)

    def inequality(at: Tensor) -> Tensor:
        return total(loss, at, targets, weights) - (aimed * at).sum()

    # The conjugate is the supremum over all logits; it is looked for with the other way round to minimise. Of a hinge
    # that is where all of its kinks are.
    at = (logits + moved).clone().requires_grad_()
    behind = inequality(at)
    if name == "hinge":
        at = torch.nn.functional.one_hot(targets, CLASSES).mul(0.7).double().requires_grad_()
    optimizer = torch.optim.LBFGS([at], lr=1, max_iter=2000, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = inequality(at)
        value.backward()
        return value

    optimizer.step(closure)
    found_below = (behind - inequality(at)).item()
    assert left.item() >= found_below - 1e-9
    if length < 1:
        assert left.item() == pytest.approx(found_below, rel=length, abs=1e-3 * length)


@pytest.mark.parametrize("name", LEARNING)
def test_refuses_what_is_not_convex(name: str) -> None:
    with pytest.raises(NotConvexError):
        costs(LEARNING[name], torch.tensor([0, 1, 2]), None, CLASSES)


@pytest.mark.parametrize("loss", [Squared(), Turned(), Own()])
def test_refuses_a_loss_of_the_users_own_of_which_that_is_not_known(loss: Loss) -> None:
    with pytest.raises(NotConvexError):
        costs(loss, torch.tensor([0, 1, 2]), None, CLASSES)


def test_takes_a_loss_of_the_users_own_that_is_linear_in_what_it_reads() -> None:
    logits, targets, _ = rows(Shifted(), weighted=False)
    found = costs(Shifted(), targets, None, CLASSES)

    visited = found.visit(logits.t().clone(), slice(0, 30), torch.empty(CLASSES, 30, dtype=torch.float64))

    assert float(visited.cost) == pytest.approx(float(total(Shifted(), logits, targets, None)), rel=1e-12)


@pytest.mark.parametrize("size", [1e-3, 1.0])
def test_slopes_of_a_hinge_are_levelled_at_the_cost_that_is_named(size: float) -> None:
    """There are such slopes, as a linear program finds them: for all rows and other classes, and how they differ."""
    generator = torch.Generator().manual_seed(0)
    count = 12
    violations = torch.randn(count, CLASSES, generator=generator, dtype=torch.float64)
    targets = torch.arange(count) % CLASSES
    others = torch.ones(count, CLASSES).scatter(1, targets.unsqueeze(1), 0).bool()
    aimed = 0.5 + size * (torch.rand(count, CLASSES, generator=generator, dtype=torch.float64) - 0.5)
    shares = torch.zeros(CLASSES, count, CLASSES, dtype=torch.float64)  # of a slope in the outputs' means
    for output in range(CLASSES):
        shares[output, :, output] = 1
        shares[output, targets == output] -= 1
    shares = (shares / CLASSES / count)[:, others]
    found = costs(Hinge(), targets, None, CLASSES)

    more, changed = found.level(shares @ aimed[others], -float(violations[others].abs().max()))

    left = (violations.clamp(min=0) - aimed * violations)[others].sum() / CLASSES / count
    number = int(others.sum())
    slopes, differences = np.eye(number, 2 * number), np.eye(number, 2 * number, number)
    rows = np.repeat(np.eye(count), CLASSES - 1, 1)  # the sum of a row's, in the slope of its target
    by_slope = np.concatenate([-violations[others].numpy(), np.zeros(number)]) / CLASSES / count
    answer = linprog(
        by_slope,
        A_ub=np.concatenate([slopes - differences, -slopes - differences, [(rows.sum(0) @ differences) * 2]]),
        b_ub=np.concatenate([aimed[others], -aimed[others], [changed * CLASSES * count]]),
        A_eq=shares.numpy() @ slopes,
        b_eq=np.zeros(CLASSES),
        bounds=[(0, 1)] * number + [(0, None)] * number,
    )
    assert answer.status == 0
    positive = violations.clamp(min=0)[others].sum() / CLASSES / count
    assert answer.fun + float(positive) <= float(left) + more
    assert 0 < changed < 2


def test_slopes_are_levelled_by_a_mixture_at_the_cost_that_is_named() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(30, CLASSES, generator=generator, dtype=torch.float64)
    aimed = torch.randn(30, CLASSES, generator=generator, dtype=torch.float64).softmax(1)
    targets = torch.arange(30) % CLASSES
    found = costs(CrossEntropy(), targets, None, CLASSES)
    one_hot = torch.nn.functional.one_hot(targets, CLASSES).double()
    slopes, logarithms = (aimed - one_hot).mean(0), logits.log_softmax(1)

    more, changed = found.level(slopes, float(logarithms.min()))

    share, mass = changed / 2, one_hot.mean(0)
    same_for_all = (mass - (1 - share) * (mass + slopes)) / share
    levelled = (1 - share) * aimed + share * same_for_all
    assert 0 < share < 1
    assert same_for_all.min() >= -1e-12
    torch.testing.assert_close((levelled - one_hot).mean(0), torch.zeros(CLASSES, dtype=torch.float64))
    assert (levelled - aimed).abs().sum(1).mean() <= changed

    def divergence(distributions: Tensor) -> float:
        return float((distributions * (distributions.log() - logarithms)).sum(1).mean())

    assert divergence(levelled) <= divergence(aimed) + more
