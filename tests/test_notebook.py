"""The notebook's numbers, to the last digit that it prints."""

import re
from typing import Any

import pytest
import torch

from conftest import Train
from crossent.data.toy import Toy
from crossent.losses import CrossEntropy, Loss, NegativeLogLikelihood, OneHot

TOLERANCE = 2e-6


@pytest.mark.parametrize("name", ["low_level", "cross_entropy", "module"])
def test_training_reproduces_the_costs_in_event_files_and_console(
    name: str, train: Train, golden: dict[str, Any]
) -> None:
    run = train(f"experiment=notebook_{name}")

    expected = golden["training"]["runs"][name]["cost"]
    steps = golden["training"]["cost_at_steps"]
    curve = run.curves["train/cost"]
    assert [curve[step] for step in steps] == pytest.approx(expected, abs=TOLERANCE)
    rows = re.findall(r"^ +(\d+) +([\d.]+)$", run.out, flags=re.MULTILINE)
    assert [int(step) for step, _ in rows] == steps
    assert [float(cost) for _, cost in rows] == pytest.approx(expected, abs=TOLERANCE)


def test_without_overrides_the_toy_set_is_trained_for_1001_steps_of_all_rows(
    train: Train, golden: dict[str, Any]
) -> None:
    run = train()

    assert run.code == 0
    assert run.metrics["steps"] == golden["training"]["steps"]
    stored = run.checkpoint()["crossent"]["config"]
    assert (stored["data"]["name"], stored["data"]["batch_size"]) == ("toy", "full")
    assert (stored["optimizer"]["name"], stored["optimizer"]["lr"]) == ("sgd", 0.1)


def test_toy_set_is_the_notebooks(golden: dict[str, Any]) -> None:
    table = Toy().load()

    assert table.all_features().tolist() == golden["toy"]["features"]
    assert table.targets.tolist() == golden["toy"]["targets"]


@pytest.mark.parametrize("loss", [OneHot(), NegativeLogLikelihood(), CrossEntropy()])
def test_every_way_of_writing_the_loss_gives_the_notebooks_batch(loss: Loss, golden: dict[str, Any]) -> None:
    batch = golden["batch"]
    torch.manual_seed(batch["seed"])
    logits, _ = torch.rand(3, 5), torch.randint(5, (3,))

    def mean(rows: slice) -> float:
        return float(loss(logits[rows], torch.eye(5), None, torch.tensor(batch["targets"][rows])).mean)

    assert [mean(slice(row, row + 1)) for row in range(3)] == pytest.approx(batch["cost_per_row"], abs=1e-4)
    assert mean(slice(3)) == pytest.approx(batch["cost_mean"], abs=1e-4)
