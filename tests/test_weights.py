"""Rows and classes that weigh differently, or not at all: the mean is that of all rows, whatever the batches."""

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conftest import Run, Train
from crossent.data import Table
from crossent.data.toy import Toy
from crossent.losses import Brier
from crossent.open_step import OpenStep

EVERY_STEP = ("trainer.log_every_n_steps=1", "accelerator.precision=64-true", "model.init=zeros")


class Weighted:
    """Rows of three classes, weights from 0 to 2, and some without a class."""

    def __init__(self, rows: int = 23, unlabelled: int = 0, weights: bool = True) -> None:
        generator = torch.Generator().manual_seed(3)
        self.features = torch.randn(rows, 4, generator=generator)
        self.targets = torch.arange(rows).pow(2) % 3 % 2 + (torch.arange(rows) % 5 == 0).long()
        self.targets[:unlabelled] = -100
        self.weights = 2 * torch.rand(rows, generator=generator) if weights else None

    def load(self) -> Table:
        return Table(self.features, self.targets, ("a", "b", "c"), ("1", "2", "3", "4"), self.weights)


WEIGHTED = ("data=custom", "data._target_=test_weights.Weighted")


def weight(run: Run) -> Tensor:
    found: Tensor = run.checkpoint()["state_dict"]["head.weight"]
    return found


def weight_changed(run: Run) -> bool:
    return bool(weight(run).any())


def accumulating(train: Train, size: int, batches: int, *overrides: str) -> Run:
    """One full step an epoch, put together from batches that differ in size."""
    return train(
        *WEIGHTED, *EVERY_STEP, f"data.batch_size={size}", f"trainer.accumulate_grad_batches={batches}",
        "trainer.max_steps=4", *overrides,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("size", "batches"),
    [(8, 3), (8, 5), (22, 2), (5, 5), (1, 23)],
    ids=["ragged", "more batches than there are", "a batch of one row", "ragged, five", "row by row"],
)
@pytest.mark.parametrize(
    "loss",
    [("loss=cross_entropy", "loss.class_weight=[1,0.5,3]", "loss.label_smoothing=0.1"), ("loss=brier",)],
    ids=str,
)
def test_accumulated_batches_take_the_step_of_one_large_batch(
    size: int, batches: int, loss: tuple[str, ...], train: Train
) -> None:
    whole = accumulating(train, 23, 1, *loss, "model.l2=0.1")
    parts = accumulating(train, size, batches, *loss, "model.l2=0.1")

    assert parts.code == 0, parts.err
    torch.testing.assert_close(weight(parts), weight(whole), rtol=1e-12, atol=1e-13)
    assert parts.curves["train/cost"] == pytest.approx(whole.curves["train/cost"], rel=1e-6)
    assert parts.curves["train/penalty"] == pytest.approx(whole.curves["train/penalty"], rel=1e-6)


def test_batches_of_a_step_are_let_go_once_they_are_accumulated() -> None:
    features = torch.ones(2, 3)
    held, step = weakref.ref(features), OpenStep(check=lambda: None)
    weight, targets = torch.zeros(2, 3, requires_grad=True), torch.tensor([0, 1])
    cost = Brier().configure(backend="chunked")(features, weight, None, targets)

    step.add(cost, None, 2, last=False).backward()
    del features, cost

    assert held() is None


def test_clipping_sees_the_gradient_of_the_whole_step(train: Train) -> None:
    whole = accumulating(train, 23, 1, "trainer.gradient_clip_val=0.05")
    parts = accumulating(train, 8, 3, "trainer.gradient_clip_val=0.05")

    torch.testing.assert_close(weight(parts), weight(whole), rtol=1e-12, atol=1e-13)


def test_a_weight_of_two_is_a_row_that_comes_twice(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: Toy) -> Table:
        return Table(table.all_features()[rows], table.targets[rows], table.classes, table.columns, weights)

    table = Toy().load()
    rows, weights = torch.tensor([0, 1, 1, 2, 3, 4, 5, 6, 7, 7]), None
    monkeypatch.setattr(Toy, "load", load)
    twice = train(*EVERY_STEP, "trainer.max_steps=5")
    rows, weights = torch.arange(8), torch.tensor([1.0, 2, 1, 1, 1, 1, 1, 2])
    weighted = train(*EVERY_STEP, "trainer.max_steps=5")

    torch.testing.assert_close(weight(weighted), weight(twice), rtol=1e-12, atol=1e-13)
    assert weighted.curves["train/cost"] == pytest.approx(twice.curves["train/cost"], rel=1e-6)


def test_rows_without_a_class_change_nothing(train: Train) -> None:
    with_them = train(*WEIGHTED, "+data.unlabelled=7", *EVERY_STEP, "trainer.max_steps=5", "loss.class_weight=balanced")
    source = Weighted()
    features, targets, weights = source.features[7:].double(), source.targets[7:], source.weights
    assert weights is not None
    balanced = len(targets) / (3 * torch.bincount(targets, minlength=3).double())

    parameter = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([parameter, bias], lr=0.1)
    for _ in range(5):
        costs = F.cross_entropy(F.linear(features, parameter, bias), targets, reduction="none")
        share = weights[7:].double() * balanced[targets]
        optimizer.zero_grad()
        ((costs * share).sum() / share.sum()).backward()
        optimizer.step()

    assert with_them.code == 0, with_them.err
    torch.testing.assert_close(weight(with_them), parameter.detach(), rtol=1e-12, atol=1e-13)


def test_rows_without_a_class_stay_out_of_val_and_test(train: Train) -> None:
    run = train(
        *WEIGHTED, "+data.unlabelled=5", "+data.weights=false", "data.val_fraction=0.25", "data.test_fraction=0.25",
        "trainer.max_steps=5",
    )  # fmt: skip

    assert run.code == 0, run.err
    assert "15 train + 4 val + 4 test rows" in run.out  # of 18 with a class; the other 5 are among the 15
    assert run.checkpoint()["crossent"]["data"]["class_counts"] != [0, 0, 0]
    assert sum(run.checkpoint()["crossent"]["data"]["class_counts"]) == 10


@pytest.mark.parametrize("weight", [1e5, 1e-9])
def test_weights_keep_their_precision_in_16_bits(weight: float, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    table = replace(Weighted().load(), weights=torch.full((23,), weight))
    monkeypatch.setattr(Weighted, "load", lambda self: table)

    run = train(*WEIGHTED, "accelerator.precision=16-true", "model.init=zeros", "trainer.max_steps=20")

    assert run.code == 0, run.err
    assert run.curves["train/cost"][0] == pytest.approx(1.098612, abs=2e-6)
    assert weight_changed(run)


def test_a_row_of_weight_zero_counts_for_nothing_however_wrong(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    table = replace(Weighted().load(), weights=torch.ones(23))
    features, weights = table.all_features().clone(), torch.ones(23)
    features[3], weights[3] = 1e6, 0.0
    monkeypatch.setattr(Weighted, "load", lambda self: replace(table, features=features, weights=weights))

    run = train(*WEIGHTED, "loss=one_hot", "trainer.max_steps=5", "trainer.log_every_n_steps=1")

    assert all(cost < 10 for cost in run.curves["train/cost"].values())


def test_a_loss_with_parameters_trains_them_also_in_parts(train: Train) -> None:
    learning = ("loss=custom", "loss._target_=test_errors.Learning")
    whole, parts = accumulating(train, 23, 1, *learning), accumulating(train, 8, 3, *learning)

    found = [run.checkpoint()["state_dict"]["loss.temperature"] for run in (whole, parts)]
    assert float(found[0]) != 0
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-13)


def test_a_step_without_a_row_that_counts_is_said_once(train: Train) -> None:
    run = train(*WEIGHTED, "+data.unlabelled=23", *EVERY_STEP, "trainer.max_steps=4")

    assert run.code == 0, run.err
    assert run.out.count("no row that counts") == 1
    assert set(run.curves["train/cost"].values()) == {0.0}
    assert not weight(run).any()


def test_a_class_that_is_ignored_has_no_rows(train: Train) -> None:
    run = train("data=iris", "loss.ignore_index=1", "loss.class_weight=balanced", "trainer.max_steps=2")

    assert run.code == 0, run.err
    assert run.checkpoint()["crossent"]["data"]["class_counts"] == [45, 0, 45]


def test_accuracy_leaves_ignored_rows_out(train: Train) -> None:
    run = train("data=iris", "loss.ignore_index=2", "trainer.max_steps=300", "trainer.val_check_interval=300")

    assert run.code == 0, run.err
    assert run.metrics["val/accuracy"] == 1.0  # the other two classes are linearly separable


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": [1.0] * 23}, "data: weights are a list, expected a tensor"),
        ({"weights": torch.ones(3)}, "data: weights have the shape (3,), not (23,)"),
        ({"weights": torch.full((23,), -1.0)}, "data: row 0: weight -1.0, expected a number >= 0"),
        ({"targets": torch.full((23,), -7)}, "data: row 0: target -7, expected 0 to 2, or -100 (loss.ignore_index)"),
    ],
)
def test_weights_and_targets_are_checked(
    change: dict[str, Any], said: str, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = replace(Weighted().load(), **change)
    monkeypatch.setattr(Weighted, "load", lambda self: table)

    run = train(*WEIGHTED)

    assert run.code == 2
    assert said in run.err
