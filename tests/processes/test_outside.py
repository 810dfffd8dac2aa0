"""Ranks that torchrun has started, as processes of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from conftest import Train, unmeasured

OPTIONS = (
    "data=iris",
    "data.batch_size=32",
    "accelerator=ddp_cpu",
    "accelerator.precision=64-true",
    "trainer.max_steps=20",
)


def torchrun(*arguments: str, environment: Mapping[str, str] = os.environ) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, "-m", "crossent.train", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        check=False,
    )


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What Crossent has said; torchrun has a page of its own about a process that fails."""
    return [line for line in done.stderr.splitlines() if line.startswith("error:")]


def test_a_sweep_has_one_process_that_leads(train: Train, workplace: Path) -> None:
    """The short ids in the directories' names are random: only one process can have drawn them."""
    done = torchrun("-m", *OPTIONS, "optimizer.lr=0.1,0.01")
    alone = train(*OPTIONS, "accelerator=cpu", "accelerator.precision=64-true", "optimizer.lr=0.01")

    assert (done.returncode, errors(done)) == (0, []), done.stderr
    (sweep,) = workplace.glob("logs/sweep/*/*")
    assert sorted(path.name for path in sweep.iterdir()) == [
        "0_optimizer.lr-0.1",
        "1_optimizer.lr-0.01",
        "multirun.yaml",
        "summary",
    ]
    assert done.stdout.count("trained to step 20") == 2
    metrics = json.loads((sweep / "1_optimizer.lr-0.01" / "metrics.json").read_text())
    for name in alone.metrics.keys() - {"seconds"}:
        assert metrics[name] == pytest.approx(alone.metrics[name], rel=1e-12), name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["accelerator=cpu"], "accelerator=cpu: takes one process, but torchrun has started 2"),
        (
            [*OPTIONS, "loss=custom", "loss._target_=mine.Broken"],
            "rank 1: ZeroDivisionError: here; to begin again, for want",
        ),
    ],
    ids=["an accelerator for one", "a fault on a rank"],
)
def test_a_failure_is_said_once(arguments: list[str], said: str, workplace: Path) -> None:
    (workplace / "mine.py").write_text(
        "from crossent.losses import RowLoss\nfrom crossent.processes import together\n"
        "class Broken(RowLoss):\n    calls = 0\n    def cost(self, row):\n        type(self).calls += 1\n"
        "        if together.rank() == 1 and self.calls > 9: raise ZeroDivisionError('here')\n"
        "        return row.nll + 0\n"
    )

    done = torchrun(*arguments, environment=unmeasured())

    assert done.returncode == 1  # torchrun's own
    assert len(errors(done)) == 1, done.stderr
    assert errors(done)[0].startswith(f"error: {said}")
