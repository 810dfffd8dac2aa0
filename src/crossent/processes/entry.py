"""Where the processes of ranks begin. Imports no torch, so that it can be named to a process without it."""

import os
from multiprocessing.connection import Connection
from typing import Any

from crossent import stopping
from crossent.processes.job import Job
from crossent.processes.world import World


def enter(job: Job, world: World, environment: dict[str, str], log: dict[str, Any], report: Connection) -> None:
    """See `crossent.processes.rank.main`."""
    os.setsid()  # Ctrl-C on a terminal is for the process that was started there, which hands it on
    with stopping.postponed():
        from crossent.processes import rank

    rank.main(job, world, environment, log, report)


def count_gpus(report: Connection) -> None:
    """Says how many GPUs there are."""
    import torch

    report.send(torch.cuda.device_count())
