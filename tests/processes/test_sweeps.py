"""Sweeps of runs that several ranks share."""

import json
import os
import subprocess
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path

import pytest
import yaml

from conftest import Train, assert_answered_in_one_line

TWO = ("accelerator=ddp_cpu", "accelerator.devices=2", "trainer.max_steps=20")
#: Writes down the learning rate that each rank trains with.
SPY = """
import os, pathlib
import torch
from crossent.processes import together

class Spy(torch.optim.SGD):
    def __init__(self, parameters, lr, folder):
        super().__init__(parameters, lr=lr)
        with open(f"{folder}/rank_{together.rank()}", "a") as file:
            file.write(f"{lr}\\n")
"""
#: A sweeper that draws its values where it runs, without a seed.
SWEEPER = """
import random
from hydra.core.plugins import Plugins
from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper

class RandomSweeper(Sweeper):
    def __init__(self, jobs): self.jobs = jobs
    def setup(self, *, hydra_context, task_function, config):
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config)
    def sweep(self, arguments):
        return [self.launcher.launch(
            [[*arguments, f"optimizer.lr={random.SystemRandom().uniform(0.01, 1)}"]], initial_job_idx=index)
            for index in range(self.jobs)]

ConfigStore.instance().store(
    group="hydra/sweeper", name="draws", node={"_target_": f"{__name__}.RandomSweeper", "jobs": 3}, provider="test")
"""


Command = Callable[..., subprocess.CompletedProcess[str]]


def jobs(workplace: Path) -> list[Path]:
    return sorted(path.parent for path in workplace.glob("logs/sweep/*/*/*/metrics.json"))


def test_a_grid_has_one_directory_a_job(start: Train, workplace: Path) -> None:
    run = start("-m", "loss=nll,cross_entropy", "optimizer.lr=0.1,0.01", *TWO)

    assert run.code == 0, run.err
    assert [path.name for path in jobs(workplace)] == [
        "0_loss-nll_optimizer.lr-0.1",
        "1_loss-nll_optimizer.lr-0.01",
        "2_loss-cross_entropy_optimizer.lr-0.1",
        "3_loss-cross_entropy_optimizer.lr-0.01",
    ]
    assert len({path.parent for path in jobs(workplace)}) == 1
    stored = [yaml.safe_load((path / "config.yaml").read_text()) for path in jobs(workplace)]
    assert [(each["loss"]["name"], each["optimizer"]["lr"]) for each in stored] == [
        ("nll", 0.1),
        ("nll", 0.01),
        ("cross_entropy", 0.1),
        ("cross_entropy", 0.01),
    ]
    costs = [json.loads((path / "metrics.json").read_text())["train/cost"] for path in jobs(workplace)]
    assert costs[0] == pytest.approx(costs[2], rel=1e-6)
    assert costs[0] < costs[1]
    assert active_children() == []


def test_a_job_that_fails_leaves_no_process_and_the_others_run(start: Train, workplace: Path) -> None:
    run = start("-m", "loss=one_hot", "optimizer.lr=1.0e+9,0.1", *TWO)

    assert_answered_in_one_line(run, ["job 0 (", "optimizer.lr=1000000000.0", "): ", "is nan", "loss=cross_entropy"])
    assert [path.name for path in jobs(workplace)] == ["1_optimizer.lr-0.1"]
    assert active_children() == []


def test_all_ranks_have_the_values_that_a_sampler_draws(workplace: Path, command: Command) -> None:
    plugins = workplace / "plugins" / "hydra_plugins"
    plugins.mkdir(parents=True)
    (plugins / "draws.py").write_text(SWEEPER)
    (workplace / "spy.py").write_text(SPY)

    done = command(
        "-m",
        "hydra/sweeper=draws",
        "optimizer=custom",
        "optimizer._target_=spy.Spy",
        "+optimizer.lr=0.5",
        f"+optimizer.folder={workplace}",
        *TWO,
        PYTHONPATH=os.pathsep.join([str(workplace / "plugins"), os.environ.get("PYTHONPATH", "")]),
    )

    assert done.returncode == 0, done.stderr
    drawn = [(workplace / f"rank_{rank}").read_text().split() for rank in (0, 1)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 3
    assert len(jobs(workplace)) == 3
