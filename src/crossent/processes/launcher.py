"""Starts the ranks of this machine, and watches them until the last one has ended. Imports no torch.

Not Lightning's launcher, whose ranks type the whole command line again, and which leaves it to a rank of them to watch
the others. The ranks of a job are processes of their own: what one of them leaves behind, also where it dies, is no
part of the process that goes on with a sweep.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

from crossent import stopping
from crossent.errors import UserError
from crossent.processes import watching
from crossent.processes.job import Job
from crossent.processes.watching import RankProcess
from crossent.processes.world import World
from crossent.stopping import Stopped


def launch(job: Job, ranks: int, log: Mapping[str, Any]) -> dict[str, float]:
    """Has so many ranks do a job.

    Args:
        job: what to do.
        ranks: how many.
        log: the first rank's logging, for `logging.config.dictConfig`.

    Returns:
        The last points of the curves, or the metrics.

    Raises:
        UserError: something that the user has to change, or a rank that was killed; all of them have ended.
        Stopped: a signal has ended the run.
        Fault: there is one in the code.
    """
    with tempfile.TemporaryDirectory(prefix="crossent-") as folder:
        meeting = f"file://{folder}/ranks"
        worlds = [World(rank, ranks, rank, meeting=meeting) for rank in range(ranks)]
        started: list[RankProcess] = []
        with _signals(started, ranks) as told:
            try:
                for world in worlds:
                    started.append(_start(job, world, dict(log)))
                ended = watching.wait(started, told)
            finally:
                for rank in started:
                    rank.process.kill()
                    rank.process.join()
    return watching.verdict(job, ended, told)


def _start(job: Job, world: World, log: dict[str, Any]) -> RankProcess:
    from crossent.processes.entry import enter

    report, end = multiprocessing.Pipe(duplex=False)
    process: BaseProcess = context().Process(  # type: ignore[attr-defined]
        target=enter, args=(job, world, _environment(), log, end), name=f"rank {world.rank}", daemon=True
    )
    process.start()
    end.close()
    return RankProcess(world.rank, process, report)


@contextlib.contextmanager
def _signals(started: Sequence[RankProcess], ranks: int) -> Iterator[list[int]]:
    """Notes the signals that come once all ranks are there, whose they are to answer; before that they stop the run."""
    told: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        if len(started) < ranks:
            raise Stopped(number)
        told.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield told
        return
    numbers = [
        number for number in (signal.SIGINT, *stopping.TERMINATING) if signal.getsignal(number) is not signal.SIG_IGN
    ]
    handlers = {number: signal.signal(number, hear) for number in numbers}
    try:
        yield told
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def context() -> BaseContext:
    """How processes are started: split off from one that has imported everything, where that is safe."""
    if sys.platform != "linux":  # elsewhere a process that has begun to use the system's libraries cannot be split
        return multiprocessing.get_context("spawn")
    split = multiprocessing.get_context("forkserver")
    split.set_forkserver_preload(["crossent.processes.rank"])
    resource_tracker.ensure_running()  # which the other would start, and which ends any blocking of signals
    # Signals that are sent to all processes of a terminal or a job at once are not for it: a Ctrl-C would abort it
    # while it imports torch, and without it nobody knows how the ranks have ended.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *stopping.TERMINATING})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return split


def _environment() -> dict[str, str]:
    """The variables of this process; messages between ranks of one machine do not leave it."""
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    return ({"GLOO_SOCKET_IFNAME": loopback} if loopback else {}) | dict(os.environ)


def gpus() -> int:
    """How many GPUs this machine shows, counted by a process of its own, since it takes torch."""
    from crossent.processes.entry import count_gpus

    report, end = multiprocessing.Pipe(duplex=False)
    process = context().Process(target=count_gpus, args=(end,), daemon=True)  # type: ignore[attr-defined]
    process.start()
    end.close()
    with report:
        try:
            found: int = report.recv()
        except EOFError:
            raise UserError("accelerator: the GPUs of this machine cannot be counted; see nvidia-smi") from None
        finally:
            process.join()
    return found
