"""Signals in the middle of a step, of a validation, and of what takes too long."""

import signal
import time
from typing import Any

import pytest
import torch

from conftest import MINI_BATCHES, Train, assert_same_run, stop_after
from crossent import stopping
from crossent.blocked_classifier import BlockedClassifier
from crossent.data.loader import Batch
from crossent.stopping import Stopped

NO_END = "callbacks.early_stopping.patience=null"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_terminated_run_ends_as_if_it_had_not_been(number: signal.Signals, train: Train) -> None:
    whole = train(*MINI_BATCHES, NO_END)
    terminated = stop_after(7, train, *MINI_BATCHES, NO_END, number=number)

    resumed = train("resume=latest")

    assert terminated.code == 143
    assert terminated.err.startswith("terminated after 7 steps; to go on: crossent-train resume=")
    assert_same_run(whole, resumed)


class Signalled:
    """Has a signal sent once, at a call of a method of the classifier."""

    def __init__(self, method: str, call: int, number: int = signal.SIGINT) -> None:
        self.method, self.call, self.number = method, call, number
        self.calls = 0

    def __enter__(self) -> None:
        original = getattr(BlockedClassifier, self.method)

        def method(classifier: BlockedClassifier, *arguments: Any) -> Any:
            self.calls += 1
            if self.calls == self.call:
                self.happen()
            return original(classifier, *arguments)

        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(BlockedClassifier, self.method, method)

    def __exit__(self, *error: object) -> None:
        self.patch.undo()

    def happen(self) -> None:
        signal.raise_signal(self.number)


class Crashed(Signalled):
    def happen(self) -> None:
        raise RuntimeError("a crash")


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_run_stopped_in_a_validation_ends_as_if_it_had_not_been(accumulate: int, train: Train) -> None:
    arguments = (
        *MINI_BATCHES,
        NO_END,
        "trainer.val_check_interval=7",
        f"trainer.accumulate_grad_batches={accumulate}",
    )
    whole = train(*arguments)

    with Signalled("validation_step", 2):
        stopped = train(*arguments)
    resumed = train("resume=latest")

    assert stopped.code == 130, stopped.err
    assert "going on from step" in resumed.out
    assert_same_run(whole, resumed)


@pytest.mark.parametrize(
    ("method", "call"),
    [("_differentiate", 17), ("validation_step", 2), ("on_validation_epoch_end", 2), ("configure_optimizers", 1)],
)
def test_a_crash_loses_nothing(method: str, call: int, train: Train) -> None:
    arguments = (*MINI_BATCHES, NO_END, "trainer.val_check_interval=6", "callbacks.checkpoint.every_n_steps=6")
    whole = train(*arguments)

    with Crashed(method, call), pytest.raises(RuntimeError, match="a crash"):
        train(*arguments)
    resumed = train("resume=latest")

    assert resumed.code == 0, resumed.err
    assert_same_run(whole, resumed)


def test_a_run_that_is_terminated_does_not_wait_for_a_step_that_takes_too_long(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "_GRACE", 0.3)
    arguments = (*MINI_BATCHES, NO_END, "callbacks.checkpoint.every_n_steps=5")
    whole = train(*arguments)

    def endless() -> None:
        for _ in range(1000):
            time.sleep(0.01)
        raise AssertionError("nobody has stopped it")

    def told_then_endless(self: BlockedClassifier, batch: Batch) -> None:
        if self.step == 12:
            signal.raise_signal(signal.SIGTERM)
            endless()
        original(self, batch)

    original = BlockedClassifier._differentiate
    with monkeypatch.context() as patch:
        patch.setattr(BlockedClassifier, "_differentiate", told_then_endless)
        with pytest.raises(Stopped) as stop:
            train(*arguments)
    resumed = train("resume=latest")

    assert stop.value.exit_code == 143
    assert str(stop.value).startswith("terminated after 12 steps, of which the last checkpoint has 10; to go on: ")
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert_same_run(whole, resumed)


def test_a_second_ctrl_c_does_not_wait(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed_twice(*_: object) -> torch.Tensor:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("it has waited")

    monkeypatch.setattr(BlockedClassifier, "training_step", pressed_twice)
    with pytest.raises(Stopped) as stop:
        train(*MINI_BATCHES)

    assert stop.value.exit_code == 130
    assert "interrupted after 0 steps; to begin again, for want of a checkpoint: crossent-train resume=" in str(
        stop.value
    )


def test_a_run_terminated_in_its_last_step_goes_on_with_its_test(train: Train) -> None:
    arguments = ("data=iris", "data.test_fraction=0.2", "trainer.max_steps=5")
    whole = train(*arguments)
    terminated = stop_after(5, train, *arguments, number=signal.SIGTERM)

    resumed = train("resume=latest")

    assert terminated.code == 143
    assert "test/accuracy" in resumed.metrics
    assert_same_run(whole, resumed)


def test_ctrl_c_in_the_calibration_says_how_to_go_on(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("data=iris", "calibration=temperature", "trainer.max_steps=5")
    whole = train(*arguments)
    with monkeypatch.context() as patch:
        patch.setattr("crossent.training.calibrate", lambda *_: signal.raise_signal(signal.SIGINT))
        stopped = train(*arguments)

    resumed = train("resume=latest")

    assert stopped.code == 130
    assert stopped.err.startswith("interrupted after 5 steps; to go on: crossent-train resume=")
    assert "val/nll_calibrated" in resumed.metrics
    assert_same_run(whole, resumed)


def test_a_signal_that_is_ignored_stays_so(train: Train) -> None:
    """As nohup has it."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run = stop_after(3, train, "trainer.max_steps=5", number=signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    assert run.code == 0
    assert run.metrics["steps"] == 5


def test_signals_belong_to_whoever_had_them_when_the_run_has_ended(train: Train) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]

    assert train("trainer.max_steps=3").code == 0
    stop_after(3, train, *MINI_BATCHES, number=signal.SIGTERM)

    assert [signal.getsignal(number) for number in numbers] == before
