"""The console of a run: a table of the cost that grows as the run goes on, and a progress bar on a terminal."""

import logging
import math
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import lightning.pytorch as lightning
from typing_extensions import override

from crossent.classifier import SoftmaxClassifier
from crossent.console import number
from crossent.loggers import LastPoints

if TYPE_CHECKING:
    from rich.progress import Progress

_ROWS = 10  # of the table, at least; the notebook prints as many
_LONGEST_SILENCE = 10  # seconds
_WIDTH = 12  # of a column, in letters, at least
_COLUMNS = ("train/cost", "val/cost", "val/accuracy")
#: What a solver's steps are told by, beside their cost.
SOLVER_COLUMNS = ("train/penalty", "train/gradient_norm", "train/suboptimality")

log = logging.getLogger(__name__)


class Console(lightning.Callback):
    """Prints a row of the table ten to twenty times a run, and shows one bar for all of its steps.

    The rows are the same on a terminal, above the bar, and in a file.

    Args:
        last: where the curves' last points are.
        validates: whether there will be points of val to show.
        bar: whether to show a bar, where the output is a terminal.
        more: further curves to show.
        stride: steps from row to row; None: ten to twenty rows a run.
    """

    def __init__(
        self,
        last: LastPoints,
        *,
        validates: bool,
        bar: bool,
        more: Sequence[str] = (),
        stride: int | None = None,
    ) -> None:
        self._last = last
        self._wants_bar = bar and sys.stdout.isatty()
        self._bar: Progress | None = None
        self._rows_every = stride
        self._stride = 1
        self._next_row = 0
        self._last_row = -1
        self._row_at = time.monotonic()
        self._columns = (_COLUMNS[0], *more, *(_COLUMNS[1:] if validates else ()))
        self._row = "".join(f"  %{max(_WIDTH, len(column))}s" for column in self._columns)

    @override
    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        total = trainer.estimated_stepping_batches
        self._stride = self._rows_every or _round_number(total / _ROWS)
        self._next_row = trainer.global_step
        self._last_row = self._next_row - 1
        assert isinstance(pl_module, SoftmaxClassifier)
        pl_module.after_point.append(self._print_row)
        log.info("%8s" + self._row, "step", *self._columns)
        if self._wants_bar:
            self._show_bar(None if total == float("inf") else int(total), trainer.global_step)

    @override
    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._print_row(trainer.global_step)  # of the step that has ended, even if what it led to is known
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=trainer.global_step)

    @override
    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self._next_row = self._last_row + 1  # the last point in any case
        self._print_row()

    @override
    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        self._hide_bar()

    @override
    def teardown(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        self._hide_bar()

    def _hide_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _print_row(self, end: float = math.inf) -> None:
        """Prints the newest point of train/cost before a step, if it is due."""
        step, _ = self._last.newest("train/cost", end)
        waited = step > self._last_row and time.monotonic() - self._row_at > _LONGEST_SILENCE
        if step < self._next_row and not waited:
            return
        cells = []
        for tag in self._columns:
            at, value = self._last.newest(tag, end)
            # A validation stands in the row that comes after it, and in no other.
            cells.append(number(tag, value) if self._last_row < at <= step else "")
        log.info("%s", (f"{step:8d}" + self._row % tuple(cells)).rstrip())
        self._last_row, self._row_at = step, time.monotonic()
        self._next_row = (step // self._stride + 1) * self._stride

    def _show_bar(self, total: int | None, done: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        # Rich draws from a thread of its own, ten times a second; a step only sets a number.
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps,"),
            TimeRemainingColumn(),
            transient=True,
        )
        self._bar.add_task("training", total=total, completed=done)
        self._bar.start()


def _round_number(limit: float) -> int:
    """The largest of 1, 2, 5, 10, 20, 50, … up to a limit; 1000 where there is none."""
    if limit == float("inf"):
        return 1000
    power = 1
    while 10 * power <= limit:
        power *= 10
    return max(factor * power for factor in (1, 2, 5) if factor * power <= max(limit, 1))
