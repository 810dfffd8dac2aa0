"""What the configuration makes of a loss."""

import math
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from crossent import config, losses
from crossent.errors import UserError
from crossent.losses.base import Backend
from crossent.losses.rows import PerClass

COMMON: dict[str, Any] = {"class_weight": None, "ignore_index": -100, "z_loss": 0.0, "backend": "auto"}
HINGE = {"class_path": "crossent.losses.Hinge", "arguments": {}}


def section(name: str, **options: object) -> config.Loss:
    made: config.Loss = msgspec.convert({"name": name, **COMMON, **options}, config.AnyLoss)
    return made


def weights(values: PerClass | None) -> list[float]:
    assert values is not None
    found: list[float] = values.like(torch.empty(0, dtype=torch.float64)).tolist()
    return found


def test_auto_is_the_notebooks_rule() -> None:
    assert isinstance(losses.build(section("auto"), [3, 5]), losses.Binary)
    assert isinstance(losses.build(section("auto"), [3, 5, 1]), losses.CrossEntropy)


def test_balanced_is_scikit_learns() -> None:
    targets = [0, 0, 0, 1, 2, 2, 2, 2, 2]

    loss = losses.build(section("brier", class_weight="balanced"), [3, 1, 5])

    expected = compute_class_weight("balanced", classes=np.arange(3), y=targets)
    assert weights(loss.class_weight) == pytest.approx(expected.tolist(), rel=1e-15)


def test_a_class_without_rows_counts_as_one() -> None:
    with_none, with_one = (losses.build(section("brier", class_weight="balanced"), [6, last, 2]) for last in (0, 1))
    assert weights(with_none.class_weight)[1] == 8 / (3 * 1)
    assert weights(with_one.class_weight)[1] == 9 / (3 * 1)

    adjusted = losses.build(section("logit_adjusted", tau=2.0), [6, 0, 2])
    same = losses.LogitAdjusted(torch.tensor([6.0, 1.0, 2.0]), 2.0)
    logits, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    assert adjusted(logits, torch.eye(3), None, targets).mean == same(logits, torch.eye(3), None, targets).mean


def test_options_arrive() -> None:
    options = {"class_weight": [1, 2, 0.5], "ignore_index": 7, "z_loss": 0.25, "backend": "chunked"}

    loss = losses.build(section("focal", gamma=3, **options), [1, 1, 1])

    assert isinstance(loss, losses.Focal)
    assert (loss.gamma, loss.ignore_index, loss.z_loss, loss.backend) == (3, 7, 0.25, "chunked")
    assert weights(loss.class_weight) == [1, 2, 0.5]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("auto", {"z_loss": 1}, "loss.z_loss=1: for 2 classes loss=auto is binary, which has no softmax"),
        ("auto", {"backend": "chunked"}, "loss.backend=chunked: for 2 classes loss=auto is binary"),
        ("brier", {"class_weight": [1, 2, 3]}, "loss.class_weight: 3 numbers, but the data has 2 classes"),
        ("custom", {"class_path": "crossent.losses.Hinge", "arguments": {}, "z_loss": 1}, "loss.z_loss=1: Hinge has"),
        (
            "custom",
            {"class_path": "crossent.losses.OneHot", "arguments": {}, "backend": "chunked"},
            "loss.backend=chun",
        ),
    ],
)
def test_what_does_not_fit_is_refused(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        losses.build(section(name, **options), [4, 4])


def test_config_and_classes_agree_on_what_a_loss_can_do() -> None:
    for kind, made in losses.LOSSES.items():
        assert issubclass(kind, config.RowLoss) == ("chunked" in made.backends), kind
        assert issubclass(kind, config.LossWithoutSoftmax) != made.has_softmax, kind


def test_a_first_call_while_evaluating_spoils_nothing() -> None:
    loss = losses.LogitAdjusted(torch.tensor([2.0, 1.0])).configure(backend="chunked", class_weight=[1, 2])
    weight, targets = torch.zeros(2, 3, requires_grad=True), torch.tensor([0, 1])
    with torch.inference_mode():
        loss(torch.ones(2, 3), weight, None, targets)

    loss(torch.ones(2, 3), weight, None, targets).mean.backward()

    assert weight.grad is not None


class Learning(losses.RowLoss):
    def __init__(self) -> None:
        super().__init__()
        self.temperature = torch.nn.Parameter(torch.zeros(()))

    def cost(self, row: losses.Statistics) -> Tensor:
        return row.nll * self.temperature.exp()


def test_auto_trains_parameters_of_a_loss_however_many_classes() -> None:
    loss, weight = Learning(), torch.zeros(9000, 3, requires_grad=True)

    loss(torch.ones(2, 3), weight, None, torch.tensor([0, 1])).mean.backward()

    assert weight.grad is not None
    assert loss.temperature.grad == pytest.approx(math.log(9000))
    with pytest.raises(ValueError, match="backend=chunked: Learning has parameters, which only dense can train"):
        loss.configure(backend="chunked")


@pytest.mark.parametrize("backend", ["dense", "chunked"])
def test_features_and_weight_have_one_precision(backend: Backend) -> None:
    loss = losses.Brier().configure(backend=backend)

    with pytest.raises(ValueError, match="but the weight is torch"):
        loss(torch.ones(2, 3).double(), torch.zeros(2, 3), None, torch.tensor([0, 1]))


def test_a_negative_z_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="z_loss=-1: expected a number >= 0"):
        losses.Brier().configure(z_loss=-1)
