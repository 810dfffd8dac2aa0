"""What becomes of ranks that fail, are killed or are told to stop."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch

from conftest import Run, Train, assert_answered_in_one_line, assert_same_run, curves, unmeasured, wait_until
from crossent import checkpoints
from crossent.config.running import does_not_divide
from crossent.processes import watching

RUN = (
    "data=digits",
    "optimizer=adam",
    "data.batch_size=64",
    "trainer.max_steps=100",
    "trainer.log_every_n_steps=1",
    "callbacks.early_stopping.patience=null",
    "callbacks.checkpoint.every_n_steps=20",
    "callbacks.checkpoint.every_minutes=null",
)
TWO = ("accelerator=ddp_cpu", "accelerator.devices=2")
THREE = ("accelerator=ddp_cpu", "accelerator.devices=3")
SPLIT = ("accelerator=class_parallel_cpu",)
ENDLESS = ("trainer.max_steps=10000000", "trainer.max_time=00:00:01:00")
CHECKPOINT = Path("run/checkpoints/last.ckpt")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert active_children() == []


def family(pid: int) -> list[int]:
    """A process and all that have come from it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(each for child in children for each in family(int(child)))]


def alive(pids: list[int]) -> list[int]:
    def state(pid: int) -> str:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return "X"

    return [pid for pid in pids if state(pid) not in "XZ"]


def resuming_step(directory: Path) -> int:
    found = checkpoints.newest_step(directory)
    assert found is not None
    return found


def while_it_runs(run: Callable[[], Run], happens: Callable[[], None]) -> Run:
    """Has something happen at the first checkpoint of a run."""

    def watch() -> None:
        wait_until(CHECKPOINT.exists)
        happens()

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    found = run()
    watching.join()
    return found


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_takes_the_others_along(victim: int, start: Train) -> None:
    whole = start(*RUN, *THREE, "hydra.run.dir=whole")

    def kill() -> None:
        (rank,) = (each for each in active_children() if each.name == f"rank {victim}")
        rank.kill()

    killed = while_it_runs(lambda: start(*RUN, *THREE, *ENDLESS, "hydra.run.dir=run"), kill)
    resumed = start("resume=run", "trainer.max_steps=100", "trainer.max_time=null")

    assert killed.code == 2
    assert killed.err == (
        f"error: rank {victim} was killed by SIGKILL, perhaps by the system for want of memory; "
        "to go on: crossent-train resume=run\n"
    )
    assert f"error: rank {victim} was killed" in Path("run/train.log").read_text()
    assert_same_run(whole, resumed)


def test_a_rank_that_is_killed_before_the_run_has_begun_leaves_none(start: Train, workplace: Path) -> None:
    (workplace / "slow.py").write_text(
        "import os, signal\nfrom crossent.processes import together\n"
        "class Source:\n    def load(self):\n        if together.rank(): os.kill(os.getpid(), signal.SIGKILL)\n"
        "        import time; time.sleep(30)\n"
    )

    run = start("data=custom", "data._target_=slow.Source", *TWO)

    assert run.code == 2
    assert run.err == "error: rank 1 was killed by SIGKILL, perhaps by the system for want of memory\n"
    assert not list(workplace.rglob("train.log"))


def test_a_mistake_that_one_rank_alone_sees_is_said_once(start: Train, workplace: Path) -> None:
    (workplace / "mine.py").write_text(
        "from crossent.errors import UserError\nfrom crossent.processes import together\n"
        "class Source:\n    def load(self):\n        if together.rank() == 1: raise UserError('mine: no rows here')\n"
        "        from crossent.data.toy import Toy\n        return Toy().load()\n"
    )

    run = start("data=custom", "data._target_=mine.Source", *THREE)

    assert (run.code, run.err) == (2, "error: rank 1: mine: no rows here\n")
    assert not list(workplace.rglob("train.log"))


def test_ranks_that_read_other_rows_are_refused(start: Train, workplace: Path) -> None:
    (workplace / "mine.py").write_text(
        "import dataclasses\nfrom crossent.data.toy import Toy\nfrom crossent.processes import together\n"
        "class Source:\n    def load(self):\n        table = Toy().load()\n"
        "        return dataclasses.replace(table, features=table.features + together.rank())\n"
    )

    run = start("data=custom", "data._target_=mine.Source", *TWO)

    assert run.code == 2
    assert run.err.startswith("error: data: rank 1 has other ")
    assert run.err.count("\n") == 1


def test_a_run_that_diverges_says_so_once(start: Train) -> None:
    run = start(*RUN, *TWO, "loss=one_hot", "optimizer=sgd", "optimizer.lr=1000")

    assert run.code == 2
    assert run.err.startswith("error: the cost is nan at step ")
    assert "loss=one_hot takes the logarithm" in run.err
    assert run.err.count("\n") == 1


def test_a_val_cost_that_is_none_on_one_rank_is_said_by_all(start: Train, workplace: Path) -> None:
    (workplace / "mine.py").write_text(
        "import torch\nfrom crossent.losses import RowLoss\nfrom crossent.processes import together\n"
        "class Broken(RowLoss):\n    def cost(self, row):\n"
        "        trains = torch.is_grad_enabled() or together.rank() == 0\n"
        "        return row.nll + 0 if trains else row.nll * torch.nan\n"
    )

    run = start(*RUN, *TWO, "loss=custom", "loss._target_=mine.Broken")

    assert_answered_in_one_line(run, ["the cost is nan at step 50 (", "val rows"])


def test_a_run_goes_on_where_other_machines_do_not_see_its_directory(start: Train, workplace: Path) -> None:
    (workplace / "mine.py").write_text(
        "import pathlib\nfrom crossent.losses import CrossEntropy\nfrom crossent.processes import together\n"
        "class Blind(CrossEntropy):\n    def __init__(self):\n        super().__init__()\n"
        "        there = pathlib.Path.exists\n"
        "        if together.rank():\n"
        "            pathlib.Path.exists = lambda path: path.suffix != '.ckpt' and there(path)\n"
    )
    blind = (*RUN, *TWO, "loss=custom", "loss._target_=mine.Blind", "data.test_fraction=0.1", "calibration=temperature")
    whole = start(*blind, "hydra.run.dir=whole")

    start(*blind, "hydra.run.dir=part", "trainer.max_steps=60")
    part = start("resume=part", "trainer.max_steps=100")

    assert (whole.code, part.code) == (0, 0), part.err
    assert torch.equal(whole.checkpoint()["state_dict"]["head.weight"], part.checkpoint()["state_dict"]["head.weight"])


def test_a_fault_in_the_code_of_a_rank_shows_where_it_was(start: Train, workplace: Path) -> None:
    (workplace / "mine.py").write_text(
        "from crossent.losses import RowLoss\nfrom crossent.processes import together\n"
        "class Broken(RowLoss):\n    calls = 0\n    def cost(self, row):\n        type(self).calls += 1\n"
        "        if together.rank() == 1 and self.calls > 9: raise ZeroDivisionError('here')\n"
        "        return row.nll + 0\n"
    )

    run = start(*RUN, *TWO, "loss=custom", "loss._target_=mine.Broken")

    assert run.code == 1
    assert run.err.count("Traceback") == 1
    assert "mine.py" in run.err
    assert "ZeroDivisionError: here\n\nrank 1 has failed; to begin again, for want of a checkpoint: " in run.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["accelerator=ddp"],
            "accelerator=ddp: this machine shows no GPU; accelerator=ddp_cpu takes processes on its CPU",
        ),
        (
            ["accelerator=ddp_cpu", "accelerator.num_nodes=2"],
            "accelerator.num_nodes=2: the processes of several",
        ),
        (["accelerator=ddp_cpu", "accelerator.devices=0"], "accelerator.devices=0: expected auto or an integer >= 1"),
        (
            ["accelerator=cpu", "accelerator.devices=2"],
            "accelerator.devices=2: accelerator=cpu takes one;",
        ),
        (["accelerator=ddp_cpu", "accelerator.timeout=0"], "accelerator.timeout=0: expected a number > 0"),
        ([*TWO, "loss=custom", "loss._target_=nope.Loss"], "loss._target_=nope.Loss: no module named 'nope'"),
        (
            ["accelerator=class_parallel"],
            "accelerator=class_parallel: this machine shows no GPU; accelerator=class_parallel_cpu takes processes",
        ),
        (
            [*SPLIT, "loss=one_hot"],
            "loss=one_hot: needs the logits of all classes of a row, and with accelerator=class_parallel_cpu",
        ),
        ([*SPLIT, "loss=hinge"], "loss=hinge: needs the logits of all classes of a row"),
        ([*SPLIT, "optimizer=lbfgs"], "optimizer=lbfgs: searches along the gradient by all weights"),
        (
            [*SPLIT, "accelerator.precision=16-mixed"],
            "accelerator.precision=16-mixed: scales gradients by what they have been",
        ),
        (
            [*SPLIT, "accelerator.class_shards=3"],
            f"accelerator.class_shards=3: {does_not_divide(2)}",
        ),
        (
            [*SPLIT, "accelerator.devices=4", "accelerator.class_shards=3"],
            f"accelerator.class_shards=3: {does_not_divide(4)}",
        ),
        ([*SPLIT, "accelerator.devices=4"], "accelerator: 4 processes cannot share out 3 classes"),
        ([*SPLIT, "data=breast_cancer"], "loss=auto: for 2 classes that is binary, whose one output cannot be split"),
        (
            [*SPLIT, "loss=custom", "loss._target_=crossent.losses.OneHot"],
            "loss=custom: OneHot needs the logits of all classes of a row, and no process has all of them;",
        ),
        (
            [*SPLIT, "optimizer=custom", "optimizer._target_=torch.optim.LBFGS"],
            "optimizer._target_=torch.optim.lbfgs.LBFGS: has only this process's classes to look at;",
        ),
    ],
    ids=lambda each: each[-1] if isinstance(each, list) else "",
)
def test_a_mistake_is_answered_in_one_line(
    arguments: list[str], said: str, start: Train, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    run = start(*arguments)

    assert run.code == 2
    assert run.err.startswith(f"error: {said}")
    assert run.err.count("\n") == 1
    assert list(workplace.rglob("*")) == []


def test_a_file_that_cannot_be_read_is_answered_in_one_line(start: Train, workplace: Path) -> None:
    (workplace / "mine.py").write_text("class Source:\n    def load(self):\n        open('nowhere.csv')\n")

    run = start("data=custom", "data._target_=mine.Source", *TWO)

    assert (run.code, run.err) == (2, "error: nowhere.csv: No such file or directory\n")


def begun(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "crossent.train", *RUN, *ENDLESS, *TWO, "hydra.run.dir=run", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=unmeasured(),
        start_new_session=True,
    )


@pytest.mark.parametrize("delay", [2.0])
def test_ctrl_c_before_the_first_step_leaves_nothing(delay: float, workplace: Path) -> None:
    running = begun()
    wait_until(lambda: list(workplace.rglob("train.log")))
    time.sleep(delay)
    ranks = family(running.pid)

    os.killpg(running.pid, signal.SIGINT)
    running.wait(timeout=15)
    _, err = running.communicate(timeout=60)  # until the last process has let go of it

    assert running.returncode == 130
    assert err.startswith("interrupted")
    assert err.count("\n") == 1
    wait_until(lambda: not alive(ranks))
    assert "after" in err or list(workplace.iterdir()) == []


def test_a_signal_stops_all_ranks_at_one_step(start: Train, workplace: Path) -> None:
    """Sent to all processes of the group, as terminals and schedulers do."""
    running = begun()
    wait_until(CHECKPOINT.exists)
    ranks = family(running.pid)

    os.killpg(running.pid, signal.SIGTERM)
    _, err = running.communicate(timeout=30)

    assert running.returncode == 143
    steps = int(err.split()[2])
    assert err == f"terminated after {steps} steps; to go on: crossent-train resume=run\n"
    wait_until(lambda: not alive(ranks))
    resumed = start("resume=run", f"trainer.max_steps={steps + 2}")
    assert resumed.code == 0, resumed.err
    assert sorted(curves(workplace / "run")["train/cost"]) == list(range(steps + 2))


def test_a_second_ctrl_c_does_not_wait(workplace: Path) -> None:
    (workplace / "mine.py").write_text(
        "import pathlib, time\nfrom crossent.losses import RowLoss\n"
        "class Slow(RowLoss):\n    calls = 0\n    def cost(self, row):\n        type(self).calls += 1\n"
        "        if self.calls > 30:\n            pathlib.Path('slow').touch()\n            time.sleep(60)\n"
        "        return row.nll + 0\n"
    )
    running = begun("loss=custom", "loss._target_=mine.Slow")
    wait_until(Path("slow").exists)
    ranks = family(running.pid)

    running.send_signal(signal.SIGINT)
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=20)

    assert running.returncode == 130
    assert err.startswith("interrupted after ")
    assert err.count("\n") == 1
    wait_until(lambda: not alive(ranks))


def test_ranks_end_with_the_process_that_watches_them(start: Train, workplace: Path) -> None:
    running = begun()
    wait_until(CHECKPOINT.exists)
    ranks = family(running.pid)

    running.kill()
    running.communicate()

    assert len(ranks) > 3
    wait_until(lambda: not alive(ranks))
    steps = resuming_step(workplace / "run")
    resumed = start("resume=run", f"trainer.max_steps={steps + 2}", "trainer.max_time=null")
    assert resumed.code == 0, resumed.err
    assert resumed.metrics["steps"] == steps + 2


def test_a_rank_that_does_not_answer_is_ended_with_the_others(start: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_LEAVE", 1.0)
    began = time.monotonic()

    def happens() -> None:
        for rank in active_children():
            os.kill(rank.pid or 0, signal.SIGSTOP if rank.name == "rank 0" else signal.SIGKILL)

    run = while_it_runs(lambda: start(*RUN, *TWO, *ENDLESS, "hydra.run.dir=run"), happens)

    assert_answered_in_one_line(run, ["rank 1 was killed by SIGKILL", "to go on: crossent-train resume=run"])
    assert time.monotonic() - began < 20
