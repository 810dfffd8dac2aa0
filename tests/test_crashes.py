"""What real processes leave behind that are killed, told to end, or let down by disk and memory."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from conftest import Run, Train, assert_same_run, curves, unmeasured

CRASHES = Path(__file__).parents[1] / "scripts" / "bench" / "crashes.py"
SMALL = (
    "data=digits",
    "optimizer=adam",
    "data.batch_size=64",
    "trainer.max_steps=300",
    "trainer.log_every_n_steps=1",
    "callbacks.checkpoint.every_n_steps=20",
    "callbacks.checkpoint.every_minutes=null",
)
ENDLESS = ("trainer.max_steps=10000000", "trainer.max_time=00:00:01:00", "callbacks.early_stopping.patience=null")


def start(*arguments: str, prefix: Sequence[str] = (), **options: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*prefix, sys.executable, "-m", "crossent.train", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **{"env": unmeasured(), **options},
    )


def wait_for(happened: Callable[[], object], running: "subprocess.Popen[str]") -> None:
    for _ in range(6000):
        if happened():
            return
        assert running.poll() is None, running.communicate()
        time.sleep(0.01)
    raise AssertionError("it has not happened within a minute")


def test_killed_runs_end_as_if_they_had_not_been(tmp_path: Path) -> None:
    counts = tmp_path / "counts.json"

    done = subprocess.run(
        [sys.executable, CRASHES, "--kills", "4", "--seed", "1", "--fork", "--json", counts],
        env=unmeasured(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(counts.read_text())
    assert (found["kills"], found["results lost"], found["runs not bit-identical"]) == (4, 0, 0)


@pytest.mark.parametrize(
    ("number", "code", "scheduled"),
    [(signal.SIGTERM, 143, False), (signal.SIGUSR1, 143, True), (signal.SIGINT, 130, False)],
    ids=["terminated", "by SLURM ahead of the limit", "Ctrl-C"],
)
def test_a_signal_saves_and_says_how_to_go_on(
    number: signal.Signals, code: int, *, scheduled: bool, train: Train, workplace: Path
) -> None:
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_NAME": "train"}
    slurm |= {"SLURM_NODELIST": "localhost", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    running = start(*SMALL, *ENDLESS, "hydra.run.dir=run", env={**unmeasured(), **(slurm if scheduled else {})})
    wait_for((workplace / "run/checkpoints/last.ckpt").exists, running)

    told = time.monotonic()
    running.send_signal(number)
    out, err = running.communicate(timeout=60)

    assert running.returncode == code, out + err
    assert time.monotonic() - told < 10
    steps = int(err.split()[2])
    assert err == (
        f"{'interrupted' if code == 130 else 'terminated'} after {steps} steps; to go on: crossent-train resume=run\n"
    )
    assert not list(workplace.rglob("hpc_ckpt*"))
    resumed = train("resume=run", f"trainer.max_steps={steps + 2}")
    assert f"going on from step {steps}, run/checkpoints/last.ckpt" in resumed.out
    assert sorted(curves(workplace / "run")["train/cost"]) == list(range(steps + 2))


@pytest.mark.parametrize("delay", [0.0, 1.0])  # the latter in the middle of PyTorch's import
def test_a_signal_before_the_first_step_leaves_no_run(delay: float, workplace: Path) -> None:
    running = start(*SMALL, *ENDLESS)
    wait_for(lambda: list(workplace.rglob("train.log")), running)

    time.sleep(delay)
    running.send_signal(signal.SIGTERM)
    _, err = running.communicate(timeout=60)

    assert (running.returncode, err) == (143, "terminated\n")
    assert list(workplace.iterdir()) == []


@pytest.fixture
def disk(workplace: Path) -> Iterator[Path]:
    """A file system of its own with room for two checkpoints."""
    folder = workplace / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=120k", "none", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"needs to mount a file system: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def whole_run(train: Train, *arguments: str) -> Run:
    run = train(*SMALL, *arguments, "hydra.run.dir=whole")
    assert run.code == 0, run.err
    return run


def test_a_disk_that_is_full_at_a_checkpoint(train: Train, disk: Path) -> None:
    whole = whole_run(train)

    failed = train(*SMALL, f"hydra.run.dir={disk}/run")
    left = sorted(path.name for path in (disk / "run" / "checkpoints").iterdir())
    remount(disk, "size=1m")
    resumed = train(f"resume={disk}/run")

    assert failed.code == 2
    assert re.fullmatch(
        r"error: disk/run/checkpoints/(best|last)\.ckpt: cannot be written: No space left on device \(0\.0 MB are left "
        r"in disk/run/checkpoints\); once it can be, to go on: crossent-train resume=disk/run\n",
        failed.err,
    )
    assert not [name for name in left if not re.fullmatch(r"(best|last|step_\d+)\.ckpt", name)]
    assert "going on from step" in resumed.out
    assert_same_run(whole, resumed)


def test_a_disk_that_is_full_at_the_curves(train: Train, disk: Path) -> None:
    rare = ("callbacks.checkpoint.every_n_steps=250", "data.val_fraction=0", "logger.flush_seconds=0")
    whole = whole_run(train, *rare)
    remount(disk, "size=24k")

    failed = train(*SMALL, *rare, f"hydra.run.dir={disk}/run")
    torn = curves(disk / "run")
    remount(disk, "size=1m")
    resumed = train(f"resume={disk}/run")

    assert failed.code == 2
    assert failed.err.startswith("error: disk/run/events.out.tfevents.")
    assert "No space left on device" in failed.err
    assert failed.err.count("\n") == 1
    assert torn["train/cost"].keys() == set(range(len(torn["train/cost"])))
    assert "no checkpoint yet: starting at step 0" in resumed.out
    assert_same_run(whole, resumed)


def test_a_directory_that_is_made_read_only(train: Train, workplace: Path) -> None:
    plain_user = ["setpriv", "--bounding-set", "-dac_override"] if os.geteuid() == 0 else []  # root may write anywhere
    running = start(*SMALL, *ENDLESS, "hydra.run.dir=run", prefix=plain_user)
    folder = workplace / "run" / "checkpoints"
    wait_for((folder / "step_20.ckpt").exists, running)

    folder.chmod(0o555)
    _, err = running.communicate(timeout=60)
    folder.chmod(0o755)
    steps = max(int(path.stem[5:]) for path in folder.glob("step_*.ckpt")) + 100
    whole = whole_run(train, f"trainer.max_steps={steps}", "callbacks.early_stopping.patience=null")
    resumed = train("resume=run", f"trainer.max_steps={steps}", "trainer.max_time=null")

    assert running.returncode == 2
    assert re.fullmatch(
        r"error: run/checkpoints/\w+\.ckpt: cannot be written: Permission denied; once it can be, to go on: "
        r"crossent-train resume=run\n",
        err,
    )
    assert_same_run(whole, resumed)


def test_memory_that_runs_out_is_counted_up() -> None:
    def little() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (1_700_000_000, 1_700_000_000))

    running = start(
        "data=synthetic",
        "data.rows=100000",
        "data.classes=1000",
        "data.features=5",
        "data.val_fraction=0",
        "loss=one_hot",
        "optimizer=adam",
        "logger=none",
        preexec_fn=little,
    )
    _, err = running.communicate(timeout=120)

    assert running.returncode == 2, err
    assert err.startswith("error: out of memory: a step takes about 1.6 GB (2.0 MB for features, ")
    assert "1.6 GB for the logits of 100000 rows and 1000 classes)" in err
    assert "data.batch_size=25000 needs less" in err
    assert err.count("\n") == 1


def test_a_full_disk_under_the_log_is_no_traceback(workplace: Path) -> None:
    script = (
        "import logging\n"
        "from crossent.console import LogFile\n"
        "log = logging.getLogger('x')\n"
        "log.addHandler(LogFile('/dev/full', encoding='utf-8'))\n"
        "for number in range(3):\n"
        "    log.error('line %d', number)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


def test_a_run_that_another_process_is_at_is_left_to_it(train: Train, workplace: Path) -> None:
    running = start(*SMALL, *ENDLESS, "hydra.run.dir=run")
    wait_for((workplace / "run/checkpoints/last.ckpt").exists, running)

    second = train("resume=run")
    running.kill()
    running.communicate()
    alone = train("resume=run", "trainer.max_steps=1")

    assert second.code == 2
    assert second.err == "error: resume=run: another process is training this run; wait until it has ended\n"
    assert "going on from step" in alone.out


def test_what_killed_processes_left_is_cleared_away(train: Train, workplace: Path) -> None:
    run = train(*SMALL, "trainer.max_steps=20")
    (run.directory / "checkpoints" / ".last.ckpt.abc123.part").write_bytes(b"half")
    shutil.copytree(run.directory, workplace / "copy")

    resumed = train("resume=latest", "trainer.max_steps=40")

    assert resumed.code == 0
    assert sorted(path.name for path in (run.directory / "checkpoints").iterdir()) == [
        "best.ckpt",
        "last.ckpt",
        "step_20.ckpt",
    ]
