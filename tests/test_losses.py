"""The losses against their formulas, in double precision."""

import pytest
import torch
from torch import Tensor

from crossent.errors import UserError
from crossent.losses import Binary, CrossEntropy, LogitLoss, NegativeLogLikelihood, OneHot

ROWS, COLUMNS, CLASSES = 7, 4, 5
LOSSES = [OneHot(), NegativeLogLikelihood(), CrossEntropy(), CrossEntropy(0.1)]


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    parameters = (torch.randn(CLASSES, COLUMNS), torch.randn(CLASSES))
    weight, bias = (each.double().requires_grad_() for each in parameters)
    return torch.randn(ROWS, COLUMNS).double(), weight, bias, torch.randint(CLASSES, (ROWS,))


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_sums_are_the_rows_and_their_number(loss: LogitLoss, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    features, weight, bias, targets = batch

    totals = loss(features, weight, bias, targets)

    costs = loss.cost(features @ weight.T + bias, targets)
    torch.testing.assert_close(totals.mean, costs.mean())
    assert totals.weight == ROWS


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_gradients_are_right(loss: LogitLoss, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    features, weight, bias, targets = batch

    assert torch.autograd.gradcheck(lambda w, b: loss(features, w, b, targets).mean, (weight, bias))


@pytest.mark.parametrize("loss", LOSSES[:3], ids=str)
def test_cost_is_logsumexp_minus_the_targets_logit(loss: LogitLoss) -> None:
    logits = torch.randn(ROWS, CLASSES, dtype=torch.float64)
    targets = torch.randint(CLASSES, (ROWS,))

    expected = logits.logsumexp(1) - logits[torch.arange(ROWS), targets]
    torch.testing.assert_close(loss.cost(logits, targets), expected)


def test_smoothing_spreads_over_all_classes() -> None:
    logits = torch.randn(ROWS, CLASSES, dtype=torch.float64)
    targets = torch.randint(CLASSES, (ROWS,))

    lse, target = logits.logsumexp(1), logits[torch.arange(ROWS), targets]
    expected = 0.9 * (lse - target) + 0.1 * (lse - logits.mean(1))
    torch.testing.assert_close(CrossEntropy(0.1).cost(logits, targets), expected)


def test_large_gaps_break_the_hand_written_loss_alone() -> None:
    logits, targets = torch.tensor([[0.0, 200.0]]), torch.tensor([0])

    assert OneHot().cost(logits, targets).isinf()
    assert NegativeLogLikelihood().cost(logits, targets).item() == 200
    assert CrossEntropy().cost(logits, targets).item() == 200


@pytest.mark.parametrize("pos_weight", [None, 3.0])
def test_binary_is_cross_entropy_of_the_logits_0_and_d(pos_weight: float | None) -> None:
    difference = torch.randn(ROWS, 1, dtype=torch.float64)
    targets = torch.randint(2, (ROWS,))

    two = torch.cat([torch.zeros_like(difference), difference], dim=1)
    weight = torch.where(targets == 1, pos_weight or 1.0, 1.0).double()
    expected = weight * CrossEntropy().cost(two, targets)
    torch.testing.assert_close(Binary(pos_weight).cost(difference, targets), expected)


def test_binary_wants_two_classes() -> None:
    assert Binary().outputs(2) == 1
    with pytest.raises(UserError, match="loss=binary: made for 2 classes, the data has 3"):
        Binary().outputs(3)
