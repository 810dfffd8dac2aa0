"""Metrics against scikit-learn's and torchmetrics' on the same predictions."""

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from crossent.losses.base import Cost
from crossent.metrics import BINS, Evaluation, Scores


def some(rows: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, classes, generator=draw, dtype=torch.float64)
    targets = torch.where(
        torch.rand(rows, generator=draw) < 0.6,
        logits.argmax(dim=1),
        torch.randint(classes, (rows,), generator=draw),
    )
    return logits, targets, torch.rand(rows, generator=draw, dtype=torch.float64) + 0.1


def scored(logits: Tensor, targets: Tensor, weights: Tensor | None = None, parts: int = 1) -> dict[str, float]:
    scores = Scores(logits.shape[1])
    for part in torch.arange(len(logits)).chunk(parts):
        scores.update(logits[part], targets[part], None if weights is None else weights[part])
    return {name: float(value) for name, value in scores.compute().items()}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 5, 6, 40])
def test_all_metrics_are_scikit_learns(classes: int, weighted: bool) -> None:
    logits, targets, weights = some(500, classes)
    used = weights.numpy() if weighted else None

    found = scored(logits, targets, weights if weighted else None, parts=7)

    probabilities, predicted = logits.softmax(dim=1).numpy(), logits.argmax(dim=1).numpy()
    y, labels = targets.numpy(), np.arange(classes)
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(y, predicted, sample_weight=used), rel=1e-12)
    balanced = reference.balanced_accuracy_score(y, predicted, sample_weight=used)
    assert found["balanced_accuracy"] == pytest.approx(balanced, rel=1e-12)
    f1 = reference.f1_score(y, predicted, average="macro", sample_weight=used)
    assert found["macro_f1"] == pytest.approx(f1, rel=1e-12)
    nll = reference.log_loss(y, probabilities, labels=labels, sample_weight=used)
    assert found["nll"] == pytest.approx(nll, rel=1e-12)
    brier = reference.brier_score_loss(y, probabilities, labels=labels, sample_weight=used, scale_by_half=False)
    assert found["brier"] == pytest.approx(brier, rel=1e-12)
    top = 1.0
    if classes > 5:
        top = reference.top_k_accuracy_score(y, probabilities, k=5, labels=labels, sample_weight=used)
    assert found["top5_accuracy"] == pytest.approx(top, rel=1e-12)


def test_the_calibration_error_is_torchmetrics() -> None:
    logits, targets, _ = some(2000, 4)

    expected = multiclass_calibration_error(logits.softmax(dim=1), targets, num_classes=4, n_bins=BINS)

    assert scored(logits, targets, parts=9)["ece"] == pytest.approx(float(expected), rel=1e-6)


def test_certain_predictions_are_in_the_last_bin() -> None:
    """torchmetrics gives probabilities of 1 a bin of their own, which makes two of the last."""
    logits = torch.tensor([[100.0, 0.0], [100.0, 0.0], [3.0, 0.0]])  # 1, 1 and 0.953
    scores = Scores(2)

    scores.update(logits, torch.tensor([0, 1, 0]))

    assert scores.reliability.weight.tolist() == [0.0] * 14 + [3.0]
    assert float(scores.reliability.error) == pytest.approx(abs(2 / 3 - (2 + 0.952574) / 3), abs=1e-6)


def test_classes_without_rows_are_left_out_as_scikit_learn_does() -> None:
    logits = torch.eye(6)[[0, 1, 1, 3, 3, 0]] * 5
    targets = torch.tensor([0, 1, 0, 1, 0, 0])  # nothing of 2, 4 and 5; 3 is predicted

    found = scored(logits, targets)

    predicted = logits.argmax(dim=1)
    assert found["macro_f1"] == pytest.approx(reference.f1_score(targets, predicted, average="macro"))
    assert found["balanced_accuracy"] == pytest.approx((2 / 4 + 1 / 2) / 2)


def test_equal_logits_rank_in_the_order_of_the_classes() -> None:
    found = scored(torch.zeros(10, 10), torch.arange(10))

    assert found["accuracy"] == 0.1
    assert found["top5_accuracy"] == 0.5


def test_ignored_rows_and_rows_of_weight_0_count_for_nothing() -> None:
    logits, targets, weights = some(50, 7)
    weights[30:] = 0
    evaluation = Evaluation(7, ignore_index=-100)

    evaluation.update(None, logits, targets.where(torch.arange(50) >= 10, -100), weights)

    assert evaluation.metrics() == pytest.approx(scored(logits[10:30], targets[10:30], weights[10:30]))


@pytest.mark.parametrize("weights", [None, torch.zeros(3)])
def test_no_row_that_counts_gives_numbers(weights: Tensor | None) -> None:
    evaluation = Evaluation(3, ignore_index=-1)
    targets = torch.zeros(3, dtype=torch.int64) if weights is not None else torch.full((3,), -1)

    evaluation.update(Cost(torch.tensor(0.0), 0.0), torch.randn(3, 3), targets, weights)

    assert set(evaluation.metrics().values()) == {0.0}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_are_wide_whatever_the_precision_of_the_run(dtype: torch.dtype) -> None:
    scores = Scores(3).to(dtype)  # as Lightning does in a run of that precision
    logits = torch.tensor([[4.0, 0.0, 0.0]], dtype=dtype).expand(1000, 3)

    for _ in range(100):
        scores.update(logits, torch.zeros(1000, dtype=torch.int64))

    assert scores.per_class.support.tolist() == [100_000.0, 0.0, 0.0]
    assert float(scores.compute()["accuracy"]) == 1.0


def test_memory_does_not_grow_with_rows_nor_with_the_square_of_classes() -> None:
    scores = Scores(1_000_000)

    for _ in range(3):
        scores.update(torch.randn(2, 1_000_000), torch.tensor([3, 999_999]))

    held = sum(getattr(scores, name).nbytes for name in ("sums", "by_class", "bins"))
    assert held < 8 * (3 * 1_000_000 + 100)


def test_a_temperature_adds_what_comes_after_it() -> None:
    logits, targets, _ = some(300, 5)
    evaluation = Evaluation(5, ignore_index=-100)
    evaluation.temperature = 2.5

    evaluation.update(None, logits, targets, None)

    after = scored(logits / 2.5, targets)
    expected = scored(logits, targets) | {f"{name}_calibrated": after[name] for name in ("nll", "brier", "ece")}
    assert evaluation.metrics() == pytest.approx(expected)
