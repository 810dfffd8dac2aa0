"""How a run may end before its time, and what is said of it."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from crossent import checkpoints, starting
from crossent.console import note
from crossent.errors import CannotWriteError, UserError
from crossent.loggers import TensorBoard
from crossent.preparing import Run
from crossent.stopping import Stopped


@contextlib.contextmanager
def noted() -> Iterator[None]:
    """Leaves in train.log, too, why a run has ended."""
    try:
        yield
    except UserError as error:
        note(f"error: {error}")
        raise
    except Stopped as stop:
        note(str(stop))
        raise


@contextlib.contextmanager
def explained(plain: dict[str, Any], run: Run) -> Iterator[None]:
    """Words what ends a run early.

    Raises:
        UserError: what the user has to change, or to make room for.
        Stopped: a signal ended the run; the text says after which step, and how to go on.
    """

    def how_to_go_on() -> str:
        if not run.world.is_first:  # whose it is to say, and which may be the only one that sees the directory
            return "go on"
        return starting.how_to_go_on(run.directory, plain, run.world.command)

    try:
        yield
    except MisconfigurationException as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error
    except CannotWriteError as error:
        raise UserError(f"{error}; once it can be, {how_to_go_on()}") from error
    except (Stopped, KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
            raise  # not the one that Lightning makes of a Ctrl-C that it sees itself
        stop = error if isinstance(error, Stopped) else Stopped(signal.SIGINT)
        how = f" after {run.trainer.global_step} steps"
        saved = checkpoints.newest_step(run.directory)
        if saved is not None and stop.at_once:
            how += f", of which the last checkpoint has {saved}"
        how += f"; {how_to_go_on()}"
        raise Stopped(stop.number, how, at_once=stop.at_once) from None
    finally:
        with contextlib.suppress(CannotWriteError):  # of which has been spoken
            close_curves(run, well=False)  # unless that has been done already, at the end of a run that went well


def close_curves(run: Run, *, well: bool) -> None:
    """Brings the curves to disk, and ends their file.

    Args:
        run: that they are of.
        well: whether it has come to its end.
    """
    for logger in run.trainer.loggers:
        if isinstance(logger, TensorBoard):
            logger.close(well=well)
