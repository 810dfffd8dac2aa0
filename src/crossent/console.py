"""Where lines for the reader go, and what moves while he waits."""

import contextlib
import io
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TextIO

_SMALL, _LARGE = 1e-3, 10_000  # numbers that six digits behind the point do not suit


class StdoutHandler(logging.StreamHandler[TextIO]):
    """A log handler that asks for ``sys.stdout`` at each line.

    A live progress bar replaces ``sys.stdout`` while it is shown, so that lines appear above it; the handler of
    the standard library keeps the stream it was made with, and would write into the bar.
    """

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # the base class sets it once
        return sys.stdout

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the standard library's name
        """Goes on in silence where the reader has left (``crossent-train | head``); train.log has every line."""
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            fall_silent()
        else:
            super().handleError(record)


class LogFile(logging.FileHandler):
    """A log file of which lines are missing where the disk is full, in place of a traceback for each of them."""

    def _open(self) -> io.TextIOWrapper:
        # Nothing waits in between, or it would be written again and again until the process ends.
        try:
            file = Path(self.baseFilename).open(f"{self.mode}b", buffering=0)  # noqa: SIM115  # closed by the handler
        except OSError:
            file = Path(os.devnull).open("ab", buffering=0)  # noqa: SIM115
        return io.TextIOWrapper(
            file,
            encoding=self.encoding,
            errors=self.errors,
            write_through=True,
        )

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the standard library's name
        """Goes on; whatever fails next says why."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def note(line: str) -> None:
    """Writes a line to train.log alone, where there is one; the console has it already."""
    for handler in logging.root.handlers:
        if isinstance(handler, LogFile):
            handler.handle(logging.LogRecord("crossent", logging.ERROR, __file__, 0, line, None, None))


def shown(path: Path) -> str:
    """A path as one would type it here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def as_typed(command: str) -> str:
    """A command as it can be typed: the one beside this Python where PATH has none."""
    beside = Path(sys.executable).with_name(command)
    return command if shutil.which(command) or not beside.exists() else shown(beside)


def fall_silent() -> None:
    """Lets standard output go nowhere to the end of the process, once nobody reads it any more."""
    nowhere = Path(os.devnull).open("w")  # noqa: SIM115  # stays open as long
    os.dup2(nowhere.fileno(), sys.stdout.fileno())


@contextlib.contextmanager
def progress(doing: str, what: str, *, shown: bool = True) -> Iterator[Callable[[int, float | None], None]]:
    """Shows a bar while something is done, where the output is a terminal.

    Args:
        doing: what is done.
        what: is counted.
        shown: whether it is this process that shows it.

    Yields:
        To be called with the count so far, and the share of the whole, from 0 to 1, or None where nobody knows.
    """
    if not shown or sys.stdout is None or not sys.stdout.isatty():
        yield lambda count, share: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    counted = TextColumn("{task.fields[count]:,} " + what)
    with Progress(TextColumn(doing), BarColumn(), counted, TimeRemainingColumn(), transient=True) as bar:
        task = bar.add_task(doing, total=1, count=0)

        def advance(count: int, share: float | None) -> None:
            bar.update(task, completed=share or 0, total=None if share is None else 1, count=count)

        yield advance


def number(tag: str, value: float) -> str:
    """The value of a curve, ``<split>/<metric>``, as one reads it best."""
    if tag.endswith("iterations"):
        return f"{value:.0f}"
    if 0 < abs(value) < _SMALL and tag.endswith(("norm", "suboptimality", "l2")):
        return f"{value:.2e}"
    return f"{value:.6f}" if abs(value) < _LARGE else f"{value:.4g}"


def metrics_table(points: Mapping[str, tuple[int, float]]) -> list[str]:
    """The last points of the curves: a line for each metric, a column for each split.

    Args:
        points: step and value by tag, ``<split>/<metric>``.
    """
    # Not every point of train/cost has others beside it, and those of earlier steps would be taken for its own.
    newest = max((step for tag, (step, _) in points.items() if tag.startswith("train/")), default=0)
    points = {tag: point for tag, point in points.items() if not tag.startswith("train/") or point[0] == newest}
    tags = [tag.split("/", 1) for tag in points]
    splits = sorted({split for split, _ in tags}, key=("train", "val", "test").index)
    # How good the weights are comes first; the rest is of train alone.
    tags.sort(key=lambda tag: tag[0] == "train" and tag[1] != "cost")
    names = list(dict.fromkeys(name for _, name in tags))
    width = max([len(name) for name in names], default=0)
    lines = [" " * width + "".join(f"{split:>12}" for split in splits)]
    for name in names:
        found = [points.get(f"{split}/{name}") for split in splits]
        lines.append(
            f"{name:<{width}}" + "".join(" " * 12 if each is None else f"{number(name, each[1]):>12}" for each in found)
        )
    steps = [max(step for tag, (step, _) in points.items() if tag.startswith(f"{split}/")) for split in splits]
    lines.append(f"{'at step':<{width}}" + "".join(f"{step:12}" for step in steps))
    return [line.rstrip() for line in lines]
