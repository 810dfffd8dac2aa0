"""Ranks that torchrun or srun have started: the first one leads, the others do what it says.

So there is one that composes the configuration, names the run directory and draws the values of a sweep, and the others
are told.
"""

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore, Store

from crossent import runs, starting
from crossent.console import note
from crossent.errors import UserError, about_a_file
from crossent.processes import meeting, rank
from crossent.processes.job import PATIENCE, Job
from crossent.processes.meeting import LostError
from crossent.processes.world import World
from crossent.stopping import end_undisturbed, ending_at_once

_NO_MORE = "no more"
# Seconds in which the others have started, where there is nothing for them to do.
_STARTING = 60.0
# Seconds in which a rank that has failed says why, and in which the board answers.
_LAST_WORDS = 3.0
_boards: "list[_Board]" = []  # one at most: a process is in one world


def lead(job: Job, world: World) -> dict[str, float]:
    """Has all ranks do a job, this one, the first, among them.

    Returns:
        The last points of the curves, or the metrics.

    Raises:
        UserError: something that the user has to change, on any of them.
        Stopped: a signal has ended the run.
    """
    board = _Board.of(world)
    number = next(board.numbers)
    board.store.set(f"job {number}", json.dumps([job.command, job.plain, str(job.directory)]))
    try:
        return rank.work(job, world, board.ranks(number))
    except LostError as error:
        end_undisturbed()  # torchrun tells the others to end as soon as one of them has
        board.is_torn = True
        reason = _how_to_go_on(board.failure(number) or str(error), job, world)
        note(f"error: {reason}")
        raise UserError(reason) from error
    finally:
        board.store.set(f"heard {number}", "")


def dismiss(world: World) -> None:
    """Lets the others end, since there will be no more jobs."""
    board = _Board.of(world, _STARTING)
    board.store.set(f"job {next(board.numbers)}", _NO_MORE)
    until = time.monotonic() + _LAST_WORDS  # the board may be gone with this process
    while not board.is_torn and board.store.add("gone", 0) < world.ranks - 1 and time.monotonic() < until:
        time.sleep(0.02)


def follow(world: World) -> int:
    """Does what the first rank says until it says no more, and returns the exit code.

    Raises:
        LostError: the first rank, whose it would be to say so, does not answer any more.
        Stopped: a signal has ended the run.
    """
    rank.be_silent()
    with ending_at_once():
        board, code = _Board.of(world), 0
    for number in board.numbers:
        with ending_at_once():
            said = board.wait(f"job {number}")
        if said == _NO_MORE:
            break
        command, plain, directory = json.loads(said)
        job = Job(command, plain, Path(directory))
        try:
            rank.work(job, world, board.ranks(number))
        except LostError as error:
            if not board.is_heard(number) and world.local_rank == 0:
                raise UserError(_how_to_go_on(str(error), job, world)) from error
            return 2
        except (UserError, OSError) as error:
            mistake = error if isinstance(error, UserError) else about_a_file(error)
            board.report(number, f"rank {world.rank}: {mistake}")
            board.is_heard(number)
            code = 2
        except Exception as error:
            board.report(number, f"rank {world.rank}: {type(error).__name__}: {' '.join(str(error).split())}")
            board.is_heard(number)
            raise
    board.store.add("gone", 1)
    return code


def _how_to_go_on(reason: str, job: Job, world: World) -> str:
    if job.command != "train" or not (job.directory / runs.CONFIG).exists():
        return reason  # it had not begun, or is on another machine
    return f"{reason}; {starting.how_to_go_on(job.directory, job.plain, world.command)}"


class _Board:
    """Where the first rank pins up what there is to do, and the others what has gone wrong.

    Attributes:
        store: PyTorch's, which all ranks see.
        numbers: of the jobs.
        is_torn: whether ranks are missing, so that there is no use in another job.
    """

    def __init__(self, world: World, seconds: float) -> None:
        self.store = meeting.meet(world, seconds)
        self.numbers: Iterator[int] = itertools.count()
        self.is_torn = False

    @classmethod
    def of(cls, world: World, seconds: float = PATIENCE) -> "_Board":
        """That of a world, on which this process is."""
        if not _boards:
            _boards.append(cls(world, seconds))
        return _boards[0]

    def ranks(self, number: int) -> Store:
        """Where the ranks of a job find one another."""
        if self.is_torn:
            raise UserError("ranks are missing since an earlier job")
        return PrefixStore(f"ranks {number}", self.store)

    def wait(self, name: str) -> str:
        """What is pinned up under a name, as soon as it is.

        Raises:
            LostError: it is not, in a long time.
        """
        try:
            return str(self.store.get(name).decode())
        except distributed.DistError as error:
            raise LostError("the first rank, which says what to do, does not answer") from error

    def report(self, number: int, failure: str) -> None:
        """Pins up why a rank has failed at a job, for the first one to say."""
        self.store.set(f"failure {number}", failure)

    def failure(self, number: int) -> str | None:
        """What a rank has said of why it failed at a job; it may have been lost before it could."""
        until = time.monotonic() + _LAST_WORDS
        while time.monotonic() < until:
            if self.store.check([f"failure {number}"]):
                return str(self.store.get(f"failure {number}").decode())
            time.sleep(0.1)
        return None

    def is_heard(self, number: int) -> bool:
        """Waits until the first rank has done with a job; whether it has, or nobody there answers any more.

        Whoever ended before would have the first one ended, too, by what has started them, before it has spoken.
        """
        heard: list[bool] = []

        def ask() -> None:
            with contextlib.suppress(RuntimeError):
                self.store.wait([f"heard {number}"], timedelta(seconds=3 * _LAST_WORDS))
                heard.append(True)

        asking = threading.Thread(target=ask, daemon=True)  # of a machine that is gone PyTorch would wait for ever
        asking.start()
        asking.join(3 * _LAST_WORDS + 1)
        return bool(heard)
