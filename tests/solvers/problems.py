"""Convex problems of all kinds, and what is true of them, found without the solver."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor
from torch.nn import Parameter

from crossent.losses import Binary, Cost, CrossEntropy, Hinge, LogitAdjusted, Loss, NegativeLogLikelihood, OneHot
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
        slope of the bias is 0.
        """
        parameters = self.parameters()
        run(self.solver(parameters, tol=1e-15))
        value = self.value(parameters)
        weight, *bias = torch.autograd.grad(value, parameters)
        assert all(float(each.abs().max()) < 1e-9 for each in bias)
        assert float(weight.square().sum()) / (2 * self.l2) < 1e-8 * value.item()
        return value.item()


def run(solver: NewtonCG, most: int = 200) -> int:
    """Takes steps until there are no more to take, and returns how many that were."""
    for step in range(most):
        solver.step()
        if solver.last is not None and solver.last.end is not None:
            return step + 1
    return most


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
