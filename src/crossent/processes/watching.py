"""The ranks of this machine as the launcher sees them: what they say, how they end, and what is to be said of them all.

Imports no torch.
"""

import contextlib
import os
import signal
import time
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from crossent import runs, starting
from crossent.console import note
from crossent.errors import Fault, UserError
from crossent.processes.job import Job, Outcome
from crossent.stopping import Stopped

# Seconds until ranks are told to end where they have not noticed that one of them has failed, until those are killed
# that do not, and until all are that the user has told to terminate.
_NOTICE = 2.0
_LEAVE = 8.0
_TERMINATE = 10.0


class RankProcess:
    """A rank, and what it has said.

    Args:
        number: of the rank.
        process: that it is.
        report: what it says comes from there.

    Attributes:
        outcome: what it has said of how it ended; None: nothing, so far.
        was_told: whether it had to end because another one has failed, so that it is not to blame.
    """

    def __init__(self, number: int, process: BaseProcess, report: Connection) -> None:
        self.number = number
        self.process = process
        self.outcome: Outcome | None = None
        self.was_told = False
        self._report = report

    def wait_for(self) -> list[Any]:
        """What becomes ready when it says something or ends."""
        return [self.process.sentinel] if self.outcome else [self.process.sentinel, self._report]

    def has_ended(self) -> bool:
        """Whether it has, after it has been listened to."""
        ended = not self.process.is_alive()
        with contextlib.suppress(EOFError, OSError):
            if self.outcome is None and self._report.poll():
                self.outcome = self._report.recv()
        return ended

    def signal(self, number: int) -> None:
        """Sends a signal, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid or 0, number)

    @property
    def death(self) -> str:
        """How it has ended without a word."""
        code = self.process.exitcode or 0
        if code >= 0:
            return f"rank {self.number} has ended with exit code {code}"
        name = signal.Signals(-code).name
        memory = ", perhaps by the system for want of memory" if name == "SIGKILL" else ""
        return f"rank {self.number} was killed by {name}{memory}"


def wait(started: list[RankProcess], told: list[int]) -> list[RankProcess]:
    """Waits until all have ended, and returns them in the order in which they have."""
    left, ended, heard = started.copy(), list[RankProcess](), 0
    leave = kill = float("inf")  # the times at which those that are left are told to end, and are ended
    while left:
        for number in told[heard:]:
            heard += 1
            for rank in left:
                rank.signal(number)
            if number != signal.SIGINT or heard > 1:  # a second Ctrl-C does not wait
                kill = min(kill, time.monotonic() + (_TERMINATE if heard == 1 else _NOTICE))
        connection.wait([each for rank in left for each in rank.wait_for()], timeout=0.1)
        for rank in left.copy():
            if rank.has_ended():
                left.remove(rank)
                ended.append(rank)
                if rank.process.exitcode and not rank.was_told:
                    leave = min(leave, time.monotonic() + _NOTICE)
        if time.monotonic() > leave:
            for rank in left:
                rank.was_told = True
                rank.signal(signal.SIGTERM)
            leave, kill = float("inf"), min(kill, time.monotonic() + _LEAVE)
        if time.monotonic() > kill:
            for rank in left:
                rank.was_told = True
                rank.process.kill()
    return ended


def verdict(job: Job, ended: list[RankProcess], told: list[int]) -> dict[str, float]:
    """What is to be said of all ranks together: the first one's metrics, or why there are none."""
    by_rank = sorted(((rank.number, rank.outcome) for rank in ended), key=lambda each: each[0])
    said = [outcome for _, outcome in by_rank if outcome is not None]
    if not told and len(said) == len(ended) and all(outcome.metrics is not None for outcome in said):
        return said[0].metrics or {}
    stops = [rank.outcome for rank in ended if rank.outcome and rank.outcome.signal and not rank.was_told]
    if told or stops:
        first = next((rank.outcome for rank in ended if rank.number == 0 and rank.outcome), Outcome())
        how = first.how or _with_hint(job, "")
        raise Stopped(told[0] if told else stops[0].signal or signal.SIGTERM, how)
    blamed = [rank for rank in ended if not rank.was_told]  # the first to end before the others
    for rank in blamed:
        outcome = rank.outcome or Outcome()
        if outcome.crash is not None and outcome.mistake is None:
            raise Fault(f"{outcome.crash}\n{_with_hint(job, f'rank {rank.number} has failed')}")
        if outcome.mistake is not None and not outcome.lost:
            raise UserError(outcome.mistake) from Fault(outcome.crash)
    deaths = [rank.death for rank in blamed if rank.outcome is None]
    deaths += [f"rank {rank.number} has not answered any more" for rank in ended if rank.outcome is None]
    reason = _with_hint(job, deaths[0] if deaths else next(each.mistake for each in said if each.mistake))
    note(f"error: {reason}")
    raise UserError(reason)


def _with_hint(job: Job, reason: str) -> str:
    """A reason, and how to go on where there is something to go on with."""
    if job.command != "train" or not (job.directory / runs.CONFIG).exists():
        return reason
    return f"{reason}; {starting.how_to_go_on(job.directory, job.plain)}"
