"""Convex problems of all kinds, and what is true of them, found without the solver."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn import datasets
from torch import Tensor
from torch.nn import Parameter

from crossent.losses import (
    Binary,
    Cost,
    CrossEntropy,
    Hinge,
    LogitAdjusted,
    LogitLoss,
    Loss,
    NegativeLogLikelihood,
    OneHot,
)
from crossent.solvers import NewtonCG, Objective


@dataclass(frozen=True)
class Problem:
    """Rows, a loss and a penalty."""

    loss: Loss
    features: Tensor
    targets: Tensor
    l2: float
    sample_weight: Tensor | None = None
    bias: bool = True

    @property
    def outputs(self) -> int:
        return self.loss.outputs(int(self.targets.max()) + 1)

    def parameters(self, dtype: torch.dtype = torch.float64) -> list[Parameter]:
        """Weight and bias of 0."""
        shapes = [(self.outputs, self.features.shape[1]), (self.outputs,)]
        return [Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes[: 1 + self.bias]]

    def solver(self, parameters: list[Parameter], **options: Any) -> NewtonCG:
        features = self.features.to(parameters[0].dtype)
        objective = Objective(
            self.loss,
            features,
            self.targets,
            self.sample_weight,
            outputs=self.outputs,
            l2=self.l2,
            intercept=self.bias,
        )
        return NewtonCG(parameters, objective, **options)

    def value(self, parameters: list[Parameter]) -> Tensor:
        """The objective by the loss itself, in double precision."""
        weight, *bias = (parameter.double() for parameter in parameters)
        offset = bias[0] if bias else None
        cost: Cost = self.loss(self.features.double(), weight, offset, self.targets, self.sample_weight)
        return cost.mean + self.l2 / 2 * weight.square().sum()

    def optimum(self) -> float:
        """The least value.

        That it is so is known without the solver: by strong convexity, it is no less than F − ‖∇F‖² / 2λ where the
        slope of the bias is 0; and of a hinge without a bias by its dual.
        """
        parameters = self.parameters()
        has_kinks = isinstance(self.loss, Hinge) and self.loss.p == 1
        run(self.solver(parameters, tol=1e-11 if has_kinks else 1e-15))
        value = self.value(parameters)
        if has_kinks:
            assert self.bias or value.item() - self.dual() < 1e-5 * value.item()
            return value.item()
        weight, *bias = torch.autograd.grad(value, parameters)
        assert all(float(each.abs().max()) < 1e-9 for each in bias)
        assert float(weight.square().sum()) / (2 * self.l2) < 1e-8 * value.item()
        return value.item()

    def dual(self) -> float:
        """What no value of a hinge with margin 1 and without a bias is below: its dual at slopes near the best.

        That is Σ slope − ‖Σ x slopeᵀ‖² / 2λ, for slopes of violations between 0 and their weight: Weston and Watkins,
        Support vector machines for multi-class pattern recognition, 1999.
        """
        parameters = self.parameters()
        solver = self.solver(parameters, tol=1e-7)
        run(solver)
        assert solver.objective is not None
        rounded = RoundedHinge(solver.objective.costs.smoothing)
        rounded.class_weight = self.loss.class_weight
        logits = F.linear(self.features, parameters[0].detach()).requires_grad_()
        identity = torch.eye(self.outputs, dtype=torch.float64)
        cost: Cost = rounded(logits, identity, None, self.targets, self.sample_weight)
        (slopes,) = torch.autograd.grad(cost.mean, logits)
        violations = slopes.scatter(1, self.targets.unsqueeze(1), 0)
        return float(violations.sum() - (slopes.t() @ self.features).square().sum() / (2 * self.l2))


class RoundedHinge(LogitLoss):
    """A hinge with margin 1 whose kinks are rounded off: (u + √(u² + 4 smoothing²)) / 2 in the place of max(0, u)."""

    def __init__(self, smoothing: float, margin: float = 1.0) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.margin = margin

    def cost(self, logits: Tensor, targets: Tensor) -> Tensor:
        target = F.one_hot(targets, logits.shape[1]).bool()
        violations = self.margin + logits - logits.gather(1, targets.unsqueeze(1))
        rounded = (violations + (violations.square() + 4 * self.smoothing**2).sqrt()) / 2
        return rounded.masked_fill(target, 0).mean(1)


def run(solver: NewtonCG, most: int = 200) -> int:
    """Takes steps until there are no more to take, and returns how many that were."""
    for step in range(most):
        solver.step()
        if solver.last is not None and solver.last.end is not None:
            return step + 1
    return most


def claims(
    found: Problem, optimum: float, parameters: list[Parameter], solver: NewtonCG, last_from: int | None = None
) -> list[tuple[float, float]]:
    """Takes all steps, and returns how far from the optimum they say to be, and are, before and after each.

    Args:
        found: what is solved.
        optimum: its least value.
        parameters: the solver's.
        solver: a new one.
        last_from: the first of the steps of which each is said to be the last one; None: none is.
    """
    said: list[tuple[float, float]] = []
    for step in range(200):
        solver.is_last = last_from is not None and step >= last_from
        before = (found.value(parameters).item() - optimum) / optimum
        solver.step()
        assert solver.last is not None
        after = (found.value(parameters).item() - optimum) / optimum
        said += [(solver.last.suboptimality, before), (solver.last.following, after)]
        if solver.last.end is not None:
            break
    return said


def assert_never_nearer(
    found: Problem, optimum: float, parameters: list[Parameter], solver: NewtonCG, tol: float
) -> None:
    """What a solver says at every step is no less than the truth, and in the end it is there."""
    said = claims(found, optimum, parameters, solver)
    _, after = said[-1]
    assert solver.last is not None
    if solver.last.end != "tolerance":  # weights in single precision are not so exact
        assert (solver.last.end, parameters[0].dtype) == ("precision", torch.float32)
        assert tol <= 1e-6
    else:
        assert after <= tol
    rounded = 1e-13  # of the values that are compared
    assert all(claim + rounded >= true for claim, true in said)
    assert any(math.isfinite(claim) for claim, _ in said)


def bundled(name: str, *, standardize: bool = False) -> tuple[Tensor, Tensor]:
    """A data set of scikit-learn's, of numbers that single precision holds."""
    features, targets = getattr(datasets, f"load_{name}")(return_X_y=True)
    found = torch.from_numpy(features.astype(np.float64))
    if standardize:
        scale = found.std(0, correction=0)
        found = (found - found.mean(0)) / scale.where(scale > 0, 1)
    return found.float().double(), torch.from_numpy(targets).long()


def drawn(
    rows: int, columns: int, classes: int, *, seed: int = 0, scales: float = 0.0, strength: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Rows of Gaussian features, whose classes a softmax has drawn.

    Args:
        rows: how many.
        columns: how many.
        classes: how many.
        seed: of the draw.
        scales: columns are multiplied by 10 to the power of −scales to scales.
        strength: how large logits are; 0: nothing is to be learnt.
    """
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    weight = torch.randn(classes, columns, generator=generator, dtype=torch.float64) * strength / columns**0.5
    targets = torch.multinomial((features @ weight.t()).softmax(1), 1, generator=generator).squeeze(1)
    targets[:classes] = torch.arange(classes)
    powers = 2 * torch.rand(columns, generator=generator, dtype=torch.float64) - 1
    return (features * 10 ** (scales * powers)).float().double(), targets


def twenty() -> dict[str, Problem]:
    """Problems by name."""
    found: dict[str, Problem] = {}
    for name in ("iris", "wine", "digits"):
        for standardize in (False, True):
            features, targets = bundled(name, standardize=standardize)
            found[f"{name}{' standardized' * standardize}"] = Problem(
                CrossEntropy(), features, targets, 1 / len(targets)
            )
    features, targets = bundled("breast_cancer")
    found["breast_cancer"] = Problem(Binary(), features, targets, 1 / len(targets))
    features, targets = bundled("breast_cancer", standardize=True)
    found["breast_cancer, hardly penalised"] = Problem(Binary(), features, targets, 1e-7)
    found["pos_weight"] = Problem(Binary(3.0), features, targets, 1e-3)
    found["columns of very different scale"] = Problem(CrossEntropy(), *drawn(2000, 54, 7, scales=3), 1 / 2000)
    found["hardly penalised"] = Problem(CrossEntropy(), *drawn(3000, 40, 10, strength=3), 1e-8)
    found["strongly penalised"] = Problem(CrossEntropy(), *drawn(3000, 40, 10), 10.0)
    found["many classes"] = Problem(CrossEntropy(), *drawn(4000, 20, 300, strength=3), 1 / 4000)
    found["more columns than rows"] = Problem(CrossEntropy(), *drawn(100, 300, 5, strength=3), 1e-2)
    found["noise"] = Problem(CrossEntropy(), *drawn(1000, 30, 8, strength=0), 1e-3)
    features, targets = drawn(2000, 30, 6, strength=2)
    generator = torch.Generator().manual_seed(1)
    weighted = torch.rand(len(targets), generator=generator)
    smoothed = CrossEntropy(0.1).configure(class_weight=[0.5, 1, 2, 1, 1, 3])
    found["smoothed, weighted"] = Problem(smoothed, features, targets, 1e-3, weighted)
    found["adjusted"] = Problem(LogitAdjusted(torch.bincount(targets), 1.5), features, targets, 1e-3)
    found["no bias"] = Problem(NegativeLogLikelihood(), features + 1, targets, 1e-3, bias=False)
    found["one_hot"] = Problem(OneHot().configure(ignore_index=3), features, targets, 1e-4)
    found["squared hinge"] = Problem(Hinge(p=2), features, targets, 1e-3)
    return found


def with_kinks() -> dict[str, Problem]:
    """Problems of a hinge by name."""
    features, targets = bundled("breast_cancer", standardize=True)
    found = {"two classes": Problem(Hinge(), features, targets, 1 / len(targets))}
    features, targets = bundled("wine")
    found["wine"] = Problem(Hinge(), features, targets, 1 / len(targets))
    features, targets = bundled("digits", standardize=True)
    found["digits"] = Problem(Hinge(), features, targets, 1e-2, bias=False)
    features, targets = drawn(2000, 30, 6, strength=2)
    weighted = torch.rand(len(targets), generator=torch.Generator().manual_seed(1))
    loss = Hinge().configure(class_weight=[0.5, 1, 2, 1, 1, 3])
    found["weighted"] = Problem(loss, features, targets, 1e-2, weighted, bias=False)
    found["noise"] = Problem(Hinge(), *drawn(1000, 30, 8, strength=0), 1e-3)
    return found
