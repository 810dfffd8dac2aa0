"""The synthetic rows: how often their teacher says one can be right, and whether that is so."""

import pytest
import torch

from conftest import Train
from crossent.data.mapped import Mapped
from crossent.data.synthetic import Synthetic


def test_the_same_seed_draws_the_same_rows() -> None:
    one, same, other = (Synthetic(500, 4, 3, seed=seed).load() for seed in (0, 0, 1))

    assert torch.equal(one.all_features(), same.all_features())
    assert torch.equal(one.targets, same.targets)
    assert not torch.equal(one.targets, other.targets)


def test_rows_on_disk_are_those_in_memory() -> None:
    memory, disk = (Synthetic(500, 4, 3, in_memory=in_memory).load() for in_memory in (True, False))

    assert isinstance(disk.features, Mapped)
    assert torch.equal(memory.all_features(), disk.all_features())


@pytest.mark.parametrize("zipf", [0.0, 1.0, 1.5])
def test_classes_are_as_frequent_as_asked_for(zipf: float) -> None:
    table = Synthetic(200_000, 20, 10, zipf=zipf).load()

    found = torch.bincount(table.targets, minlength=10) / len(table)

    wanted = torch.arange(1.0, 11.0) ** -zipf
    torch.testing.assert_close(found, wanted / wanted.sum(), rtol=0.15, atol=0)


@pytest.mark.parametrize("signal", [1.0, 4.0])
def test_a_run_comes_as_near_to_the_best_accuracy_as_the_rows_allow(train: Train, signal: float) -> None:
    size = ("data.rows=40000", "data.features=5", "data.classes=4", f"data.signal={signal}")
    run = train(
        "data=synthetic", *size, "data.test_fraction=0.5", "optimizer=lbfgs", "trainer.max_steps=20", "loss=nll"
    )

    best = Synthetic(40_000, 5, 4, signal=signal).load().best_accuracy
    assert best is not None
    assert f"accuracy of the best possible classifier, on average over all rows: {best:.6f}" in run.out
    # 20,000 test rows: a standard error of 0.0035 at most, and the classifier has 24 parameters from 16,000 rows.
    assert run.metrics["test/accuracy"] == pytest.approx(best, abs=0.012)


def test_noise_alone_cannot_be_told_apart() -> None:
    assert Synthetic(1000, 4, 5, signal=0.0).load().best_accuracy == pytest.approx(0.2)
