import os
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from conftest import Train, assert_answered_in_one_line, wait_until

SEARCH = ("-m", "hydra/sweeper=optuna", "hydra.sweep.dir=found", "data=iris", "optimizer=adam")
RATE = "optimizer.lr=tag(log,interval(1e-3,1))"


def study(workplace: Path) -> optuna.Study:
    return optuna.load_study(study_name="search", storage=f"sqlite:///{workplace / 'found' / 'study.db'}")


def test_trials_have_what_came_of_their_runs(train: Train, workplace: Path) -> None:
    run = train(*SEARCH, RATE, "model.bias=per_class,none", "trainer.max_steps=20", "hydra.sweeper.n_trials=3")

    assert run.code == 0, run.err
    trials = study(workplace).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    assert all(1e-3 <= trial.params["optimizer.lr"] <= 1 for trial in trials)
    assert all(trial.params["model.bias"] in ("per_class", "none") for trial in trials)
    assert study(workplace).best_value == min(trial.value or 0 for trial in trials)
    best = study(workplace).best_params["optimizer.lr"]
    assert f"repeat: crossent-train optimizer.lr={best!r} model.bias=" in run.out


def test_a_search_goes_on_where_it_was_interrupted(train: Train, workplace: Path) -> None:
    options = (*SEARCH, RATE, "trainer.max_steps=3000", "callbacks.early_stopping.patience=null")
    running = subprocess.Popen([sys.executable, "-m", "crossent.train", *options, "hydra.sweeper.n_trials=9"],
                               stdout=subprocess.DEVNULL)  # fmt: skip
    wait_until(lambda: list(workplace.glob("found/1_*/config.yaml")))
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    before = study(workplace).trials

    # The number of trials and how long each is are no part of what is searched.
    run = train(*options, "hydra.sweeper.n_trials=3")

    assert run.code == 0, run.err
    trials = study(workplace).trials
    assert trials[0].value == before[0].value
    assert [trial.state for trial in trials] == [TrialState.COMPLETE, TrialState.FAIL, *[TrialState.COMPLETE] * 2]
    assert trials[2].params == trials[1].params
    assert len({trial.params["optimizer.lr"] for trial in trials}) == 3
    assert train(*options, "hydra.sweeper.n_trials=3").code == 0  # nothing is left to do
    assert len(study(workplace).trials) == 4


def test_a_run_that_diverges_does_not_end_the_search(train: Train, workplace: Path) -> None:
    run = train(*SEARCH, "loss=one_hot", "optimizer.lr=1e3,1e9", "trainer.max_steps=20", "hydra.sweeper.n_trials=2",
                "hydra.sweeper.metric=val/nll")  # fmt: skip

    assert run.code == 2
    assert {trial.state for trial in study(workplace).trials} == {TrialState.FAIL}
    assert run.err.count("error: job ") == 2


def test_a_stopped_search_says_how_it_goes_on(workplace: Path) -> None:
    arguments = [*SEARCH, RATE, "trainer.max_steps=1000000", "callbacks.early_stopping.patience=null"]
    running = subprocess.Popen(
        [sys.executable, "-m", "crossent.train", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: list(workplace.glob("found/0_*/events*")))
    os.kill(running.pid, signal.SIGTERM)
    out, err = running.communicate()

    assert running.returncode == 143
    assert "the search goes on with: crossent-train -m data=iris optimizer=adam 'optimizer.lr=tag(log," in out
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], ["nothing to search", "optimizer.lr=tag(log,interval(1e-3,1))"]),
        ([RATE, "seed=0,1"], ["seed: ", "luckiest"]),
        ([RATE, "hydra.sweeper.n_trials=0"], ["hydra.sweeper.n_trials=0: expected an integer >= 1"]),
        ([RATE, "hydra.sweeper.metric=cost"], ["hydra.sweeper.metric=cost: expected a curve as val/accuracy"]),
        (["optimizer.lr=interval(-1,1)"], ["optimizer.lr=-1", "expected a number > 0"]),
        ([RATE, "optimizer.momentum=interval(0,1)"], ["optimizer.momentum"]),
    ],
)
def test_mistakes_are_answered_before_anything_is_run(
    arguments: list[str], said: list[str], train: Train, workplace: Path
) -> None:
    assert_answered_in_one_line(train(*SEARCH, *arguments), said)
    assert not (workplace / "found").exists()


def test_another_search_may_not_take_its_place(train: Train, workplace: Path) -> None:
    options = (*SEARCH, "trainer.max_steps=2", "hydra.sweeper.n_trials=1")
    train(*options, RATE)

    run = train(*options, "optimizer.lr=interval(0.1,1)")

    assert_answered_in_one_line(run, ["hydra.sweep.dir=found: the search there was begun with searched optimizer.lr="])


def test_a_metric_that_runs_do_not_have(train: Train, workplace: Path) -> None:
    run = train(*SEARCH, RATE, "trainer.max_steps=2", "hydra.sweeper.metric=test/cost")

    assert_answered_in_one_line(run, ["hydra.sweeper.metric=test/cost: found/0_", "no such curve", "val/cost"])
