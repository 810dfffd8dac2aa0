"""Checkpoints that are cut short, flipped, lost or gone back behind: what a run goes on from then."""

import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import MINI_BATCHES, Run, Train, assert_same_run, assert_same_state, stop_after
from crossent import resuming, runs
from crossent.blocked_classifier import BlockedClassifier
from crossent.data.loader import Batch

SAVING = (
    *MINI_BATCHES,
    "trainer.val_check_interval=8",
    "callbacks.early_stopping.patience=null",
    "callbacks.checkpoint.every_n_steps=10",
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def whole(train: Train, shared: Path, workplace: Path) -> Run:
    """A run that nothing has happened to; made once."""
    kept = shared / "whole"
    if not kept.exists():
        shutil.copytree(train(*SAVING, "hydra.run.dir=whole").directory, kept)
    return Run(0, "", "", kept)


@pytest.fixture
def stopped(train: Train, shared: Path, workplace: Path) -> Path:
    """A run that was stopped after 37 steps, with checkpoints of steps 37 and 30; a copy for each test."""
    kept = shared / "stopped"
    if not kept.exists():
        shutil.copytree(stop_after(37, train, *SAVING, "hydra.run.dir=stopped").directory, kept)
    return Path(shutil.copytree(kept, workplace / "run"))


def checkpoints(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "checkpoints").iterdir())


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 1.0])
def test_a_newest_checkpoint_cut_short_is_passed_over(share: float, train: Train, stopped: Path, whole: Run) -> None:
    last = stopped / "checkpoints" / "last.ckpt"
    content = last.read_bytes()
    last.write_bytes(content[: min(int(share * len(content)), len(content) - 1)])

    resumed = train("resume=run")

    assert resumed.code == 0, resumed.err
    assert "passed over: run/checkpoints/last.ckpt is " in resumed.out
    assert "going on from step 32, run/checkpoints/best.ckpt" in resumed.out
    assert "No path found" not in resumed.out
    assert_same_run(whole, resumed)


def test_a_flipped_byte_is_passed_over(train: Train, stopped: Path, whole: Run) -> None:
    last = stopped / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[content.index(b"data.pkl") + 600] ^= 0x10
    last.write_bytes(content)

    resumed = train("resume=run")

    assert "passed over: run/checkpoints/last.ckpt is damaged or cut short: its checksum is wrong" in resumed.out
    assert "going on from step 32" in resumed.out
    assert_same_run(whole, resumed)


def test_no_flipped_byte_goes_unnoticed(stopped: Path) -> None:
    """Or it changes nothing, like one in the time that a record was written at."""
    last = stopped / "checkpoints" / "last.ckpt"
    content = last.read_bytes()
    expected = torch.load(last, weights_only=True)
    for path, _ in runs.step_checkpoints(last.parent):
        path.unlink()
    (last.parent / "best.ckpt").unlink()
    draw = random.Random(0)
    places = {*range(0, 200), *range(len(content) - 400, len(content)), *draw.sample(range(len(content)), 300)}
    noticed = 0
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << draw.randrange(8)
        last.write_bytes(flipped)
        found = resuming.find(runs.StoredRun(stopped))
        noticed += bool(found.passed_over)
        if not found.passed_over:
            assert_same_state(found.stored, expected)
    assert noticed > 0.9 * len(places)


def test_the_best_checkpoint_counts_when_the_others_are_damaged(train: Train, stopped: Path, whole: Run) -> None:
    best = torch.load(stopped / "checkpoints" / "best.ckpt", weights_only=True)["global_step"]
    for name in ("last.ckpt", "step_30.ckpt"):
        (stopped / "checkpoints" / name).write_bytes(b"")

    resumed = train("resume=run")

    assert resumed.out.count("passed over: ") == 2
    assert f"going on from step {best}" in resumed.out
    assert_same_run(whole, resumed)


def test_without_any_whole_checkpoint_a_run_starts_at_step_0(train: Train, stopped: Path, whole: Run) -> None:
    for path in (stopped / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:1000])

    resumed = train("resume=run")

    assert resumed.out.count("passed over: ") == 3
    assert "no whole checkpoint: starting at step 0" in resumed.out
    assert_same_run(whole, resumed)


def test_a_run_goes_back_for_good(train: Train, stopped: Path, whole: Run) -> None:
    """Who goes on from an earlier checkpoint leaves the later ones behind, even if he is interrupted at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crossent.blocked_classifier.BlockedClassifier.training_step", crash)
        with pytest.raises(RuntimeError, match="a crash"):
            train("resume=run/checkpoints/step_30.ckpt")
    left, log = checkpoints(stopped), (stopped / "train.log").read_text()

    resumed = train("resume=run")

    assert left == ["best.ckpt", "last.ckpt"]
    assert "left behind, since the run goes back: last.ckpt\n" in log
    assert "going on from step 30" in resumed.out
    assert_same_run(whole, resumed)


def crash(*_: Any) -> torch.Tensor:
    raise RuntimeError("a crash")


@pytest.mark.parametrize("links", [True, False], ids=["", "on a system without hard links"])
@pytest.mark.parametrize(("keep", "kept"), [(1, []), (2, ["step_50.ckpt"]), (3, ["step_40.ckpt", "step_50.ckpt"])])
def test_the_newest_are_kept(
    keep: int, kept: list[str], *, links: bool, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    run = train(*SAVING, f"callbacks.checkpoint.keep={keep}", "data.val_fraction=0")

    assert checkpoints(run.directory) == ["last.ckpt", *kept]
    for name in kept:
        stored = torch.load(run.directory / "checkpoints" / name, weights_only=True)
        assert f"step_{stored['global_step']}.ckpt" == name


def test_a_checkpoint_from_the_middle_of_a_step_is_not_gone_on_from(train: Train) -> None:
    accumulating = ("trainer.accumulate_grad_batches=3", "trainer.val_check_interval=4")
    run = stop_after(2, train, *MINI_BATCHES, *accumulating)
    assert run.checkpoint("best")["global_step"] == 1

    resumed = train(f"resume={run.directory}/checkpoints/best.ckpt", "trainer.max_steps=9")

    assert resumed.code == 2
    assert "was written in the middle of a step, whose gradients it does not hold; resume=logs/train" in resumed.err


def test_generators_of_random_numbers_go_on(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss of the user's own may draw from any of them."""
    drawn: dict[int, tuple[float, float, float]] = {}
    original = BlockedClassifier._differentiate

    def drawing(self: BlockedClassifier, batch: Batch) -> None:
        drawn[self.step] = (torch.rand(()).item(), random.random(), float(np.random.random()))
        original(self, batch)

    monkeypatch.setattr(BlockedClassifier, "_differentiate", drawing)
    train(*SAVING)
    expected, after = drawn.copy(), 37
    stop_after(after, train, *SAVING)
    drawn.clear()

    train("resume=latest")

    assert drawn == {step: numbers for step, numbers in expected.items() if step >= after}


def test_testing_leaves_the_last_points_of_training_alone(train: Train) -> None:
    wine = ("data=wine", "data.test_fraction=0.2", "optimizer.lr=3", "callbacks.early_stopping.patience=null")
    run = train(*wine, "trainer.max_steps=100", "trainer.val_check_interval=5")

    assert run.checkpoint("best")["global_step"] < 100
    last = max(run.curves["train/cost"])
    assert run.metrics["train/cost"] == pytest.approx(run.curves["train/cost"][last])


def test_a_refused_resume_leaves_the_curves_alone(train: Train) -> None:
    run = train("data=csv", "data.path=rows.csv", "trainer.max_steps=5") if write_rows(3) else None
    assert run is not None
    before = run.curves
    write_rows(4)

    refused = train("resume=latest", "trainer.max_steps=9")

    assert refused.err.startswith("error: resume=logs/train")
    assert run.curves == before
    assert len(list(run.directory.glob("events.out.tfevents.*"))) == 1


def write_rows(value: int) -> bool:
    rows = [f"{value if index == 5 else index},{'ab'[index % 2]}" for index in range(40)]
    Path("rows.csv").write_text("\n".join(["size,kind", *rows]))
    return True


def test_a_run_that_could_not_begin_leaves_latest_where_it_was(train: Train) -> None:
    run = train("trainer.max_steps=3")
    Path("rows.csv").write_text("size,kind\n1,a\n")

    failed = train("data=csv", "data.path=rows.csv")

    assert failed.code == 2
    assert Path("logs/latest").resolve() == run.directory


@pytest.mark.parametrize(
    "arguments",
    [
        ("trainer.val_check_interval=1", "callbacks.early_stopping.patience=2", "optimizer.lr=2.0"),
        (
            "trainer.val_check_interval=1",
            "callbacks.early_stopping.patience=2",
            "optimizer.lr=2.0",
            "callbacks.checkpoint.every_n_steps=1",
        ),
        ("trainer.max_steps=-1", "trainer.max_epochs=5", "callbacks.checkpoint.every_n_steps=5"),
        ("trainer.max_steps=-1", "trainer.max_epochs=5", "callbacks.checkpoint.every_n_steps=1", "data.val_fraction=0"),
    ],
    ids=["early", "early, at a saved step", "after epochs", "after epochs, without validation"],
)
def test_a_run_that_had_ended_has_ended(arguments: tuple[str, ...], train: Train, workplace: Path) -> None:
    """Whatever was left to do then: it takes no step more."""
    run = train(*MINI_BATCHES, *arguments, "hydra.run.dir=run")
    whole = Run(0, "", "", Path(shutil.copytree(run.directory, workplace / "whole")))
    (run.directory / "metrics.json").unlink()

    resumed = train("resume=run")

    assert resumed.code == 0
    assert_same_run(whole, resumed)


def test_the_best_checkpoint_counts_when_it_is_the_newest(train: Train) -> None:
    rare = (*SAVING, "callbacks.checkpoint.every_n_steps=null", "callbacks.checkpoint.every_minutes=null")
    whole = train(*rare)
    calls = 0

    def crash_later(self: BlockedClassifier, batch: Batch) -> None:
        nonlocal calls
        calls += 1
        if calls == 30:
            crash()
        original(self, batch)

    original = BlockedClassifier._differentiate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BlockedClassifier, "_differentiate", crash_later)
        with pytest.raises(RuntimeError, match="a crash"):
            train(*rare)
    resumed = train("resume=latest")

    assert "going on from step 24, " in resumed.out
    assert "/best.ckpt" in resumed.out
    assert_same_run(whole, resumed)


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_what_builds_on_best_weights_that_are_damaged_is_passed_over(
    damage: str, train: Train, stopped: Path, whole: Run
) -> None:
    best = stopped / "checkpoints" / "best.ckpt"
    content = bytearray(best.read_bytes())
    content[len(content) // 2] ^= 1
    match damage:
        case "cut":
            best.write_bytes(content[:3000])
        case "flipped":
            best.write_bytes(content)
        case "gone":
            best.unlink()

    resumed = train("resume=run")

    assert resumed.out.count("needs the best weights so far, but run/checkpoints/best.ckpt is ") == 2
    assert "no whole checkpoint: starting at step 0" in resumed.out
    assert_same_run(whole, resumed)


def test_who_insists_goes_on_without_the_best_weights_so_far(train: Train, stopped: Path) -> None:
    (stopped / "checkpoints" / "best.ckpt").write_bytes(b"PK")

    resumed = train("resume=run/checkpoints/last.ckpt")

    assert resumed.code == 0, resumed.err
    assert "what is best counts from here on" in resumed.out
    assert "going on from step 37" in resumed.out
    assert resumed.checkpoint("best")["global_step"] > 37
    assert (stopped / "checkpoints" / "best.damaged").read_bytes() == b"PK"


def test_what_cannot_go_on_leaves_the_checkpoints_alone(train: Train, stopped: Path) -> None:
    before = {path.name: path.read_bytes() for path in (stopped / "checkpoints").iterdir()}

    tried = train("resume=run/checkpoints/step_30.ckpt", "trainer.fast_dev_run=true")
    limited = train("resume=run/checkpoints/step_30.ckpt", "trainer.max_epochs=2")

    assert tried.err == "error: trainer.fast_dev_run=true: a try-out does not go on with a run; leave resume out\n"
    assert limited.err == "error: trainer.max_epochs=2: the checkpoint is from epoch 5; give that or more\n"
    assert {path.name: path.read_bytes() for path in (stopped / "checkpoints").iterdir()} == before


def test_a_log_that_cannot_be_written_is_gone_without(train: Train) -> None:
    run = train("trainer.max_steps=3")
    (run.directory / "train.log").unlink()
    (run.directory / "train.log").mkdir()

    resumed = train("resume=latest", "trainer.max_steps=5")

    assert resumed.code == 0, resumed.err


def test_the_log_says_why_a_run_ended(train: Train) -> None:
    stopped = stop_after(7, train, *SAVING)
    log = (stopped.directory / "train.log").read_text()
    failed = train("loss=one_hot", "optimizer.lr=1000", "hydra.run.dir=run")

    assert stopped.err.strip() in log
    assert failed.err.strip() in Path("run/train.log").read_text()
