"""Runs that go on: the finished run is the one that was never interrupted, bit for bit."""

import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from conftest import MINI_BATCHES, Train, assert_same_run, assert_same_state, stop_after
from crossent.classifier import SoftmaxClassifier


@pytest.mark.parametrize(
    ("overrides", "stop"),
    [
        pytest.param((), 7, id="in the middle of an epoch"),
        pytest.param((), 8, id="at the end of an epoch"),
        pytest.param(("trainer.val_check_interval=10",), 10, id="at a validation"),
        pytest.param(("trainer.val_check_interval=4",), 8, id="at a validation that ends an epoch"),
        pytest.param(("trainer.check_val_every_n_epoch=1", "trainer.val_check_interval=1.0"), 6, id="val each epoch"),
        pytest.param(
            ("optimizer=sgd", "optimizer.momentum=0.9", "scheduler=step", "scheduler.step_size=5"), 7, id="step"
        ),
        pytest.param(("scheduler=cosine", "scheduler.steps=60"), 13, id="cosine"),
        pytest.param(("scheduler=cosine",), 13, id="cosine over the run"),
        pytest.param(("trainer.max_steps=-1", "trainer.max_epochs=6"), 7, id="limited by epochs"),
        pytest.param(("trainer.max_steps=30", "trainer.max_epochs=100"), 10, id="limited by both, at an epoch's end"),
        pytest.param(("trainer.limit_train_batches=3",), 6, id="limited batches, at an epoch's end"),
        pytest.param(("trainer.limit_train_batches=0.5",), 3, id="a fraction of the batches"),
        pytest.param(("trainer.overfit_batches=2",), 2, id="overfit batches"),
        pytest.param(("data.test_fraction=0.2",), 9, id="tested with the best weights"),
        pytest.param(("optimizer=lbfgs", "data.batch_size=full", "model.l2=0.01"), 5, id="lbfgs"),
        pytest.param(("trainer.accumulate_grad_batches=2",), 7, id="accumulation"),
        pytest.param(
            (
                "trainer.accumulate_grad_batches=3",
                "loss=cross_entropy",
                "loss.label_smoothing=0.1",
                "loss.z_loss=1e-3",
                "loss.class_weight=balanced",
                "loss.backend=chunked",
                "trainer.val_check_interval=3",
            ),
            7,
            id="ragged accumulation, chunked, weighted",
        ),
        pytest.param(("data.test_fraction=0.2", "data.val_fraction=0"), 9, id="test split only"),
    ],
)
def test_a_run_stopped_between_steps_ends_as_if_it_had_not_been(
    overrides: tuple[str, ...], stop: int, train: Train
) -> None:
    arguments = (*MINI_BATCHES, *overrides, "callbacks.early_stopping.patience=null")
    whole = train(*arguments)
    interrupted = stop_after(stop, train, *arguments)

    resumed = train("resume=latest")

    assert interrupted.code == 130
    assert resumed.code == 0, resumed.err
    assert f"going on from step {stop}" in resumed.out
    assert resumed.directory == interrupted.directory != whole.directory
    assert_same_run(whole, resumed)


def test_ctrl_c_in_a_real_process_says_how_to_go_on(train: Train, workplace: Path) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "crossent.train",
            *MINI_BATCHES,
            "trainer.max_steps=1000000",
            "trainer.max_time=00:00:01:00",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    while "train/cost" not in process.stdout.readline():
        assert process.poll() is None
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)

    assert process.returncode == 130
    assert stderr.startswith("interrupted after ")
    assert stderr.count("\n") == 1
    how = stderr.strip().rpartition("crossent-train ")[2]
    steps = int(stderr.split()[2])
    resumed = train(how, f"trainer.max_steps={steps + 3}")
    assert resumed.code == 0
    assert resumed.metrics["steps"] == steps + 3
    assert sorted(resumed.curves["train/cost"]) == list(range(steps + 3))


def test_a_finished_run_says_so_and_stays_as_it_is(train: Train) -> None:
    run = train("trainer.max_steps=5")
    before = {path: path.read_bytes() for path in run.directory.rglob("*") if path.is_file() and path.suffix != ".log"}

    again = train("resume=latest")

    assert again.code == 0
    assert "already finished after 5 steps" in again.out
    after = {path: path.read_bytes() for path in run.directory.rglob("*") if path.is_file() and path.suffix != ".log"}
    assert after == before


def test_an_early_stopped_run_is_finished_until_its_patience_is_changed(train: Train) -> None:
    stops = ("data=iris", "trainer.val_check_interval=1", "callbacks.early_stopping.min_delta=10")
    run = train(*stops, "callbacks.early_stopping.patience=3", "trainer.max_steps=10")

    again = train("resume=latest")
    on = train("resume=latest", "callbacks.early_stopping.patience=null")

    assert "already finished after 4 steps" in again.out
    assert (run.directory, on.metrics["steps"]) == (on.directory, 10)


def test_a_run_goes_on_from_an_earlier_checkpoint_when_asked(train: Train) -> None:
    run = train("data=wine", "optimizer.lr=10", "trainer.max_steps=40", "trainer.val_check_interval=7")
    best = run.checkpoint("best")["global_step"]
    before = run.curves

    again = train(f"resume={run.directory / 'checkpoints' / 'best.ckpt'}")

    assert best < 40
    assert f"going on from step {best}" in again.out
    assert again.curves == before


def test_the_hint_names_a_choice_as_one_types_it(train: Train, start: Train) -> None:
    start("data=iris", "data.batch_size=32", "accelerator=ddp_cpu", "trainer.max_steps=5")
    stopped = stop_after(7, train, "resume=latest", "accelerator=cpu", "accelerator.threads=1", "trainer.max_steps=9")
    hint = stopped.err.split("crossent-train ")[1].split()

    resumed = train(*hint)

    assert hint[1:] == ["accelerator=cpu", "accelerator.threads=1", "trainer.max_steps=9"]
    assert (resumed.code, resumed.metrics["steps"]) == (0, 9)


def test_an_interrupted_extension_says_how_to_go_on_with_it(train: Train) -> None:
    whole = train(*MINI_BATCHES, "trainer.max_steps=40")
    train(*MINI_BATCHES, "trainer.max_steps=20")

    stopped = stop_after(30, train, "resume=latest", "trainer.max_steps=40")
    command = stopped.err.strip().rpartition("; to go on: crossent-train ")[2]
    resumed = train(*shlex.split(command))

    assert "trainer.max_steps=40" in command
    assert_same_state(whole.checkpoint()["state_dict"], resumed.checkpoint()["state_dict"])
    assert whole.curves["train/cost"] == resumed.curves["train/cost"]


def test_a_longer_limit_by_epochs_goes_on_with_the_epochs_orders(train: Train) -> None:
    epochs = (*MINI_BATCHES, "trainer.max_steps=-1")
    whole = train(*epochs, "trainer.max_epochs=6")
    train(*epochs, "trainer.max_epochs=3")

    resumed = train("resume=latest", "trainer.max_epochs=6")

    assert whole.curves["train/cost"] == resumed.curves["train/cost"]


def test_a_run_without_results_gets_them(train: Train) -> None:
    run = train("data=iris", "data.test_fraction=0.2", "trainer.max_steps=5")
    assert run.checkpoint("best")["global_step"] == 5  # from where on readers forget what was there
    expected, curves = run.metrics, run.curves
    (run.directory / "metrics.json").unlink()

    again = train("resume=latest")

    assert {**again.metrics, "seconds": 0} == {**expected, "seconds": 0}
    assert again.curves == curves


def test_test_points_are_not_doubled_by_a_longer_run(train: Train) -> None:
    wine = ("data=wine", "data.test_fraction=0.2", "optimizer.lr=3", "callbacks.early_stopping.patience=null")
    run = train(*wine, "trainer.max_steps=100", "trainer.val_check_interval=5")

    longer = train("resume=latest", "trainer.max_steps=120")

    assert longer.directory == run.directory
    assert run.checkpoint("best")["global_step"] in longer.curves["test/cost"]


def test_a_moved_run_knows_its_best_checkpoint(train: Train, workplace: Path) -> None:
    wine = ("data=wine", "optimizer.lr=10", "callbacks.early_stopping.patience=null", "hydra.run.dir=there")
    run = train(*wine, "trainer.max_steps=60", "trainer.val_check_interval=5")
    best = run.checkpoint("best")["global_step"]
    (workplace / "there").rename(workplace / "a place, moved to")

    moved = train("resume='a place, moved to'", "trainer.max_steps=62", "trainer.val_check_interval=100")

    assert moved.code == 0, moved.err
    assert moved.checkpoint("best")["global_step"] == best


def test_a_key_that_has_come_since_gets_todays_default(train: Train) -> None:
    run = train("loss=cross_entropy", "trainer.max_steps=3")
    stored = run.directory / "config.yaml"
    stored.write_text(stored.read_text().replace("  label_smoothing: 0.0\n", ""))

    resumed = train("resume=latest", "trainer.max_steps=5")
    changed = train("resume=latest", "loss.label_smoothing=0.1", "trainer.max_steps=6")

    assert resumed.code == 0, resumed.err
    assert changed.err.startswith("error: loss.label_smoothing=0.1: a resumed run keeps its loss (there it is not set)")


def test_a_cosine_over_the_whole_run_keeps_its_length(train: Train) -> None:
    train("scheduler=cosine", "trainer.max_steps=5")

    run = train("resume=latest", "trainer.max_steps=10")

    assert run.err.startswith("error: trainer.max_steps=10: the run's cosine schedule was laid out for")


def test_a_dangling_latest_is_told_from_a_missing_one(train: Train) -> None:
    run = train("trainer.max_steps=3")
    shutil.rmtree(run.directory)

    again = train("resume=latest")

    assert "logs/latest points at a run that is gone" in again.err


def test_ctrl_c_during_the_test_tells_how_to_get_its_results(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(SoftmaxClassifier, "test_step", lambda *_: signal.raise_signal(signal.SIGINT))
        stopped = train("data=iris", "data.test_fraction=0.2", "trainer.max_steps=5")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning has switched it off

    resumed = train("resume=latest")

    assert stopped.code == 130
    assert stopped.err.startswith("interrupted after 5 steps; to go on: crossent-train resume=")
    assert "test/accuracy" in resumed.metrics


def test_a_longer_limit_goes_on(train: Train) -> None:
    whole = train(*MINI_BATCHES)
    train(*MINI_BATCHES, "trainer.max_steps=7")

    resumed = train("resume=latest", "trainer.max_steps=60")

    # The shorter run validated its last weights, so it has that one point more.
    assert_same_state(whole.checkpoint()["state_dict"], resumed.checkpoint()["state_dict"])
    assert whole.curves["train/cost"] == resumed.curves["train/cost"]


def test_resume_keeps_the_stored_configuration_and_files(train: Train) -> None:
    run = train("optimizer.lr=0.5", "trainer.max_steps=3")
    kept = [run.directory / "config.yaml", *(run.directory / ".hydra").iterdir()]
    before = [path.read_text() for path in kept]

    resumed = train("resume=latest", "trainer.max_steps=6")

    assert "lr 0.5" in resumed.out
    assert [path.read_text() for path in kept] == before
    assert sorted(path.name for path in (run.directory / ".hydra").iterdir()) == [
        "config.yaml",
        "hydra.yaml",
        "overrides.yaml",
    ]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("data=iris", "data.name=iris: a resumed run keeps its data (there data.name=toy)"),
        ("data.batch_size=4", "data.batch_size=4: a resumed run keeps its data (there data.batch_size=full)"),
        ("model.l2=1", "model.l2=1: a resumed run keeps its model (there model.l2=0.0)"),
        ("loss=nll", "loss.name=nll: a resumed run keeps its loss (there loss.name=auto)"),
        ("optimizer.lr=0.2", "optimizer.lr=0.2: a resumed run keeps its optimizer (there optimizer.lr=0.1)"),
        ("optimizer=adam", "optimizer.name=adam: a resumed run keeps its optimizer (there optimizer.name=sgd)"),
        ("seed=1", "seed=1: a resumed run keeps its seed (there seed=0)"),
        ("scheduler=cosine", "scheduler.name=cosine: a resumed run keeps its scheduler (there scheduler.name=none)"),
        ("experiment=notebook_module", "experiment=notebook_module: starts from a configuration of its own"),
    ],
)
def test_resume_refuses_to_become_another_run(changed: str, said: str, train: Train) -> None:
    train("trainer.max_steps=3")

    run = train("resume=latest", changed)

    assert run.code == 2
    assert run.err.startswith(f"error: {said}")


def test_naming_the_same_choice_again_is_no_change(train: Train) -> None:
    train("optimizer.lr=0.5", "trainer.max_steps=3")

    run = train("resume=latest", "optimizer=sgd", "optimizer.lr=0.5", "trainer.max_steps=4")

    assert run.code == 0, run.err


def test_without_a_checkpoint_resume_starts_at_step_0(train: Train) -> None:
    whole = train("trainer.max_steps=20", "trainer.log_every_n_steps=1")
    (whole.directory / "checkpoints" / "last.ckpt").unlink()
    (whole.directory / "metrics.json").unlink()
    weights = whole.curves["train/cost"]

    resumed = train("resume=latest")

    assert "no checkpoint yet: starting at step 0" in resumed.out
    assert resumed.metrics["steps"] == 20
    assert resumed.curves["train/cost"] == weights


@pytest.mark.parametrize("where", ["", "config.yaml", "checkpoints/last.ckpt"])
def test_resume_takes_a_directory_its_config_or_a_checkpoint(where: str, train: Train) -> None:
    run = train("trainer.max_steps=3")

    resumed = train(f"resume={run.directory / where}", "trainer.max_steps=5")

    assert resumed.directory == run.directory
    assert resumed.metrics["steps"] == 5


@pytest.mark.parametrize("name", ["last.ckpt", "other.txt"])
def test_a_broken_checkpoint_is_refused_and_left_alone(name: str, train: Train) -> None:
    run = train("trainer.max_steps=3")
    broken = run.directory / "checkpoints" / name
    broken.write_bytes(b"PK\x03\x04 not a checkpoint")

    resumed = train(f"resume={broken}", "trainer.max_steps=5")

    assert resumed.code == 2
    assert str(broken) in resumed.err
    assert resumed.err.count("\n") == 1
    assert broken.read_bytes() == b"PK\x03\x04 not a checkpoint"


def test_an_edited_config_is_not_what_the_checkpoint_was_made_with(train: Train) -> None:
    run = train("trainer.max_steps=3")
    stored = run.directory / "config.yaml"
    stored.write_text(stored.read_text().replace("lr: 0.1", "lr: 0.5"))

    resumed = train("resume=latest", "trainer.max_steps=5")

    assert resumed.err.startswith("error: optimizer.lr=0.5: a resumed run keeps its optimizer (there optimizer.lr=0.1)")


def test_config_starts_a_new_run_from_an_old_ones_configuration(train: Train) -> None:
    old = train("data.batch_size=4", "optimizer=adam", "optimizer.lr=0.5", "trainer.max_steps=3")

    same = train(f"config={old.directory}")
    changed = train(f"config={old.directory / 'config.yaml'}", "optimizer=sgd", "data.batch_size=2")

    assert same.directory != old.directory
    assert_same_state(same.checkpoint()["state_dict"], old.checkpoint()["state_dict"])
    stored = yaml.safe_load((changed.directory / "config.yaml").read_text())
    assert stored["optimizer"] == {
        "name": "sgd",
        "lr": 0.1,
        "momentum": 0.0,
        "dampening": 0.0,
        "nesterov": False,
        "weight_decay": 0.0,
    }
    assert (stored["data"]["batch_size"], stored["trainer"]["max_steps"]) == (2, 3)


def test_config_is_checked_like_any_other(train: Train) -> None:
    run = train("trainer.max_steps=3")
    stored = run.directory / "config.yaml"

    unknown = train(f"config={run.directory}", "optimzer.lr=2")
    stored.write_text(stored.read_text().replace("lr: 0.1", "lr: fast"))
    wrong = train(f"config={run.directory}")
    stored.write_text("- a\n- b\n")
    other = train(f"config={run.directory}")
    stored.write_text("a: [")
    broken = train(f"config={run.directory}")

    assert unknown.err.startswith("error: optimzer.lr: no such key, did you mean 'optimizer.lr'?")
    assert wrong.err == "error: optimizer.lr=fast: expected a number > 0\n"
    assert "holds no configuration" in other.err
    assert "cannot be read" in broken.err
    assert [each.code for each in (unknown, wrong, other, broken)] == [2, 2, 2, 2]


def test_config_sweeps_over_the_choices_of_a_group(train: Train, workplace: Path) -> None:
    run = train("trainer.max_steps=3")

    swept = train("-m", f"config={run.directory}", "optimizer=adam,sgd", "loss=nll")
    refused = train("-m", f"config={run.directory}", "experiment=notebook_low_level,notebook_module")

    assert swept.code == 0, swept.err
    stored = [yaml.safe_load(path.read_text()) for path in workplace.glob("logs/sweep/*/*/*/config.yaml")]
    assert sorted((each["optimizer"]["name"], each["loss"]["name"]) for each in stored) == [
        ("adam", "nll"),
        ("sgd", "nll"),
    ]
    assert "starts from a configuration of its own" in refused.err


def test_config_sweeps(train: Train) -> None:
    run = train("optimizer.momentum=0.5", "trainer.max_steps=3")

    swept = train("-m", f"config={run.directory}", "optimizer.lr=0.1,0.2")

    assert swept.code == 0, swept.err
    assert (swept.checkpoint()["crossent"]["config"]["optimizer"]["lr"]) == 0.2
    assert (swept.checkpoint()["crossent"]["config"]["optimizer"]["momentum"]) == 0.5
