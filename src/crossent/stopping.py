"""Signals that ask a run to end: Ctrl-C, and what a system or a scheduler sends before it kills. Imports no torch."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

#: Sent by systems that shut down and schedulers that stop a job; the second by SLURM's ``--signal=USR1@<seconds>``, the
#: third by a terminal that is closed, unless nohup has it ignored.
TERMINATING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
# Seconds that a run has to finish its step and to write its checkpoint, of the ten in which it is to be gone.
_GRACE = 7.0

_Handler = Any  # what signal.signal takes and returns


class Stopped(BaseException):
    """A signal has ended the run.

    Not a KeyboardInterrupt, on which Lightning ends the process by itself.

    Args:
        number: of the signal.
        how: after how many steps, and how to go on.
        at_once: whether the run was left in the middle of what it did, so that nothing may be waited for.
    """

    def __init__(self, number: int, how: str = "", *, at_once: bool = False) -> None:
        super().__init__(f"{'interrupted' if number == signal.SIGINT else 'terminated'}{how}")
        self.number = number
        self.how = how
        self.at_once = at_once

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, else 143, whichever signal it was."""
        return 128 + (signal.SIGINT if self.number == signal.SIGINT else signal.SIGTERM)


def stop_when_told() -> None:
    """Lets the signals that terminate end the process as Ctrl-C does: what it has begun is cleared away."""
    for number in TERMINATING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _raise)


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """Lets signals end the process without a word until the end of a block, also where it waits in a library's code."""
    numbers = (signal.SIGINT, *TERMINATING)
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def end_undisturbed() -> None:
    """Lets further signals do nothing: what there was to say has been said, and the process is about to end."""
    for number in (signal.SIGINT, *TERMINATING):
        signal.signal(number, signal.SIG_IGN)


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(number)


@contextlib.contextmanager
def postponed() -> Iterator[None]:
    """Lets signals that end the process wait until the end of a block.

    For PyTorch's import: an exception in the middle of it aborts the process, with a page of C++ about it.
    """
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.signal(number, note) for number in (signal.SIGINT, *TERMINATING)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if noted:
        signal.raise_signal(noted[0])


class StopRequest:
    """Notes a signal that asks the run to end, so that the step under way can be finished first.

    A second Ctrl-C does not wait, and neither does a run that was told to terminate when its time is up.
    """

    def __init__(self) -> None:
        self.number: int | None = None  # of the signal; None: nobody has asked
        self._handlers: dict[int, _Handler] = {}

    def __bool__(self) -> bool:
        return self.number is not None

    def listen(self) -> None:
        """Notes signals from here on; they come to the main thread alone."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *TERMINATING):
                if signal.getsignal(number) is signal.SIG_IGN:
                    continue
                self._handlers[number] = signal.signal(number, self._note)

    def hold(self) -> None:
        """Lets further signals do nothing, so that what ends the run is not ended itself."""
        for number in self._handlers:
            signal.signal(number, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0)

    def ignore(self) -> None:
        """Leaves the signals to whoever had them before."""
        if signal.SIGALRM in self._handlers:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.number is not None:
            raise Stopped(self.number, at_once=True)
        if number != signal.SIGINT and signal.SIGALRM not in self._handlers:
            self._handlers[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._time_is_up)
            signal.setitimer(signal.ITIMER_REAL, _GRACE)
        if self.number is None:
            self.number = number

    def _time_is_up(self, number: int, frame: FrameType | None) -> NoReturn:
        raise Stopped(signal.SIGTERM, at_once=True)
