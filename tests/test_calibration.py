"""Temperature scaling: the one minimum, stored in the checkpoint, and used from then on."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import crossent
from conftest import Train, assert_answered_in_one_line
from crossent.calibration import Logits, fit_temperature
from crossent.metrics import Scores

IGNORED = -100


def of(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Callable[[], list[Logits]]:
    """In two parts."""
    parts = (slice(30), slice(30, None))
    return lambda: [Logits(logits[at], targets[at], None if weights is None else weights[at]) for at in parts]


def drawn(scale: float, rows: int = 400, classes: int = 4) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(rows, classes, generator=draw)
    noise = -torch.empty_like(logits).exponential_(generator=draw).log()
    return scale * logits, (logits + noise).argmax(dim=1)  # softmax(logits) are the true probabilities


def nll(logits: Tensor, targets: Tensor, temperature: float, weights: Tensor | None = None) -> float:
    scores = Scores(logits.shape[1])
    scores.update(logits.double() / temperature, targets, weights)
    return float(scores.compute()["nll"])


@pytest.mark.parametrize("scale", [0.01, 0.3, 1.0, 5.0, 1000.0])
def test_no_other_temperature_is_better(scale: float) -> None:
    logits, targets = drawn(scale)

    found = fit_temperature(of(logits, targets), IGNORED)

    assert found is not None
    best = nll(logits, targets, found)
    assert found == pytest.approx(scale, rel=0.2)  # that of the true probabilities, but for chance
    for other in (0.999, 1.001):
        assert nll(logits, targets, found * other) > best


def test_weights_and_ignored_rows_are_heeded() -> None:
    logits, targets = drawn(2.0)
    weights = torch.rand(len(targets), generator=torch.Generator().manual_seed(2))
    targets[::7] = IGNORED
    weights[1::7] = 0

    found = fit_temperature(of(logits, targets, weights), IGNORED)

    assert found is not None
    kept = targets != IGNORED
    for other in (0.999, 1.001):
        there = nll(logits[kept], targets[kept], found, weights[kept])
        assert nll(logits[kept], targets[kept], found * other, weights[kept]) > there


@pytest.mark.parametrize(
    ("logits", "targets", "said"),
    [
        (torch.eye(3).repeat(20, 1), torch.arange(3).repeat(20), "every row of them is right"),
        (torch.eye(3).repeat(20, 1), torch.arange(3).roll(1).repeat(20), "no more than chance"),
        (torch.zeros(60, 3), torch.arange(3).repeat(20), "no more than chance"),
        (torch.full((60, 3), torch.nan), torch.arange(3).repeat(20), "not finite"),
    ],
)
def test_where_no_temperature_is_best_it_says_so(
    logits: Tensor, targets: Tensor, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert fit_temperature(of(logits, targets), IGNORED) is None

    assert said in caplog.text


def test_a_run_stores_its_temperature_and_reports_before_and_after(train: Train, evaluate: Train) -> None:
    plain = train("data=digits", "data.test_fraction=0.2", "trainer.max_steps=300")
    run = train("data=digits", "data.test_fraction=0.2", "trainer.max_steps=300", "calibration=temperature")

    for name in ("best", "last"):
        assert 0.1 < run.checkpoint(name)["crossent"]["temperature"] < 1
    before = {name: value for name, value in run.metrics.items() if not name.endswith(("_calibrated", "seconds"))}
    assert before == pytest.approx({name: plain.metrics[name] for name in before})
    for split in ("val", "test"):
        for name in ("nll", "brier", "ece"):
            assert run.metrics[f"{split}/{name}_calibrated"] < run.metrics[f"{split}/{name}"]
    steps = run.checkpoint("best")["global_step"]
    assert {tag: set(points) for tag, points in run.curves.items() if tag.endswith("_calibrated")} == {
        f"{split}/{name}_calibrated": {steps} for split in ("val", "test") for name in ("nll", "brier", "ece")
    }

    again = evaluate("output=evaluation")
    assert again.code == 0
    metrics = json.loads(Path("evaluation/metrics.json").read_text())
    for name in ("nll", "ece", "nll_calibrated", "ece_calibrated"):
        assert metrics[f"test/{name}"] == pytest.approx(run.metrics[f"test/{name}"])

    model, rows = crossent.load(), np.random.default_rng(0).normal(8, 4, size=(5, 64))
    assert model.temperature == run.checkpoint("best")["crossent"]["temperature"]
    scores = torch.from_numpy((rows @ model.coef_.T + model.intercept_) / model.temperature)
    assert model.predict_proba(rows) == pytest.approx(scores.softmax(dim=1).numpy(), abs=1e-5)


def test_a_finished_run_can_be_calibrated_afterwards(train: Train) -> None:
    first = train("data=digits", "data.test_fraction=0.2", "trainer.max_steps=100")

    train("resume=latest", "calibration=temperature")
    again = train("resume=latest", "calibration=temperature")

    assert 0 < first.checkpoint("best")["crossent"]["temperature"] < 1
    assert first.metrics["test/nll_calibrated"] < first.metrics["test/nll"]
    assert "already finished" in again.out


def test_points_of_the_best_weights_are_not_written_twice(train: Train) -> None:
    run = train("data=digits", "trainer.max_steps=50")
    for name, step in (("best", 40), ("last", 50)):  # as if it had become no better since
        stored = run.checkpoint(name) | {"global_step": step}
        stored["callbacks"]["BestCheckpoint"]["step"] = 40
        torch.save(stored, run.directory / "checkpoints" / f"{name}.ckpt")
    run = train("resume=latest", "calibration=temperature")
    assert set(run.curves["val/nll_calibrated"]) == {40}
    last = run.checkpoint("last")
    del last["crossent"]["temperature"]  # as if it had been killed before that
    torch.save(last, run.directory / "checkpoints" / "last.ckpt")

    resumed = train("resume=latest", "calibration=temperature")

    assert resumed.curves == run.curves  # which fails on a doubled point
    assert "temperature" in resumed.checkpoint("last")["crossent"]


def test_a_run_that_goes_on_forgets_the_temperature_of_earlier_weights(train: Train) -> None:
    straight = train("data=digits", "trainer.max_steps=60", "calibration=temperature")
    train("data=digits", "trainer.max_steps=40", "calibration=temperature")
    resumed = train("resume=latest", "trainer.max_steps=60")

    last = resumed.checkpoint("last")["crossent"]["temperature"]
    assert last == pytest.approx(straight.checkpoint("last")["crossent"]["temperature"], rel=1e-9)
    assert set(resumed.metrics) == set(straight.metrics)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["calibration=temperature"], ["calibration=temperature", "validation rows", "data.val_fraction"]),
        (["calibration=platt"], ["calibration=platt", "temperature"]),
        (["data=iris", "calibration=temperature", "trainer.enable_checkpointing=false"], ["enable_checkpointing"]),
    ],
)
def test_a_mistake_is_answered_in_one_line(train: Train, overrides: list[str], said: list[str]) -> None:
    assert_answered_in_one_line(train(*overrides), said)
