"""What every rank does: it joins the others, trains with them, and says what came of it."""

import contextlib
import gc
import logging
import logging.config
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import traceback
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch.distributed.distributed_c10d import Store

from crossent import stopping
from crossent.checking import check
from crossent.config import EvaluateConfig, TrainConfig
from crossent.errors import UserError, about_a_file
from crossent.processes import choosing, meeting, together
from crossent.processes.job import Job, Outcome
from crossent.processes.meeting import LostError
from crossent.processes.world import World
from crossent.stopping import Stopped
from crossent.training import train


def work(job: Job, world: World, store: Store) -> dict[str, float]:
    """Trains or evaluates with the other ranks; all of them have to call this.

    Args:
        job: what to do.
        world: which of the ranks this is.
        store: where they find one another.

    Returns:
        The last points of the curves, or the metrics.

    Raises:
        UserError: something that the user has to change, on any of them.
        LostError: other ranks do not answer any more.
        Stopped: a signal has ended the run.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, _cores() // world.local_ranks))
    try:
        with meeting.joined(world, store, job.patience):
            if world.starter is None:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                stopping.stop_when_told()
            if job.command == "evaluate":
                from crossent.evaluating import evaluate  # which a run does without

                asked = together.agreed(lambda: check(job.plain, EvaluateConfig))
                return evaluate(asked, job.plain, choosing.laid_out(world, asked.accelerator))
            chosen = together.agreed(lambda: check(job.plain, TrainConfig))
            return train(chosen, job.plain, job.directory, choosing.laid_out(world, chosen.accelerator))
    finally:
        torch.set_num_threads(threads)


def main(job: Job, world: World, environment: dict[str, str], log: dict[str, Any], report: Connection) -> None:
    """A rank on this machine, as a process that `crossent.processes.launcher` has started.

    Args:
        job: what to do.
        world: which of the ranks this is.
        environment: variables, as they are where the command was typed.
        log: the first rank's logging, for `logging.config.dictConfig`.
        report: takes what came of it, an `Outcome`.
    """
    folder = Path(world.meeting.removeprefix("file://")).parent
    if not folder.exists():  # nobody waits for this rank any more; PyTorch would wait for the folder, and for long
        os._exit(1)
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    for number in (signal.SIGINT, *stopping.TERMINATING):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)  # at once, as long as the ranks wait for one another
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, *stopping.TERMINATING})
    os.environ.clear()
    os.environ.update(environment)
    gc.freeze()  # what was imported stays
    if world.is_first:
        logging.config.dictConfig(log)
    else:
        be_silent()
    outcome = _outcome(job, world)
    stopping.end_undisturbed()
    report.send(outcome)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if outcome.metrics is not None else 1)  # a thread may be at a checkpoint still, for which nobody waits


def _outcome(job: Job, world: World) -> Outcome:
    try:
        return Outcome(work(job, world, meeting.meet(world, job.patience)))
    except (UserError, OSError) as error:
        with contextlib.suppress(OSError):  # which is about no file
            mistake = error if isinstance(error, UserError) else about_a_file(error)
            return Outcome(mistake=str(mistake), lost=isinstance(error, LostError), crash=traceback.format_exc())
        return Outcome(crash=traceback.format_exc())
    except Stopped as stop:
        return Outcome(signal=stop.number, how=stop.how)
    except KeyboardInterrupt:
        return Outcome(signal=signal.SIGINT)
    except BaseException:
        return Outcome(crash=traceback.format_exc())


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def be_silent() -> None:
    """Leaves it to the first rank to say what all of them would."""
    logging.root.handlers = [logging.NullHandler()]
    warnings.simplefilter("ignore")


def _end_with_parent(folder: Path) -> None:
    """Ends a rank that nobody watches any more."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)
