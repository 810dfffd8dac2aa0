"""Keeps best.ckpt and last.ckpt, and stops a run on Ctrl-C between two steps."""

import math
import random
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import Checkpoint
from typing_extensions import override

from crossent.loggers import LastPoints

MONITORED = "val/cost"
Handler = Any  # what signal.signal takes and returns


class Interrupted(BaseException):
    """The user interrupted, and the run stopped between two steps with its checkpoint written.

    Not a KeyboardInterrupt, on which Lightning ends the process by itself.
    """


class BestCheckpoint(Checkpoint):
    """Keeps the weights with the lowest ``val/cost`` in ``best.ckpt``.

    Lightning's ModelCheckpoint forgets the best value when a run directory was moved; this one stores no path.

    Args:
        path: of the checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._best = math.inf

    @override
    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        cost = float(trainer.callback_metrics[MONITORED])
        if cost < self._best:
            self._best = cost
            trainer.save_checkpoint(self._path, weights_only=False)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best = state_dict["best"]


class LastCheckpoint(Checkpoint):
    """Renews ``last.ckpt`` every so often, at the end, and when the user interrupts.

    The state is taken at the end of a batch that ended an optimiser step, and again after a validation that follows
    it. Those are the points in Lightning's loop from which a run goes on in the middle of an epoch as if it had not
    stopped; once the loop has been left, the epoch counts as finished.

    The checkpoint also holds the states of the random number generators, which Lightning leaves out, and the last
    points of the curves.

    Args:
        path: of the checkpoint.
        last: the curves' last points.
        every_minutes: how often, by the clock; None: not by the clock.
        every_n_steps: how often, by optimiser steps; None: not by steps.
    """

    def __init__(self, path: Path, last: LastPoints, *, every_minutes: float | None, every_n_steps: int | None) -> None:
        self._path = path
        self._last = last
        self._seconds = None if every_minutes is None else 60 * every_minutes
        self._steps = every_n_steps
        self._step = 0  # the last one that was seen to end
        self._saved_step: int | None = None
        self._saved_at = time.monotonic()
        self._interrupted = False
        self._stopping = False
        self._handler: Handler = None
        self._loaded: dict[str, Any] = {}

    @override
    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._go_on(trainer)
        self._step = trainer.global_step
        self._saved_at = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGINT, self._interrupt)

    @override
    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._stop_if_interrupted()

    @override
    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:  # gradients are still being accumulated
            return
        self._step = trainer.global_step
        self._stopping = self._interrupted
        if self._stopping or self._step >= trainer.max_steps > 0 or self._due():
            self._save(trainer)

    @override
    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if trainer.state.fn == "fit" and self._saved_step == self._step:
            self._save(trainer)  # now with the validation behind it

    @override
    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self._stop_if_interrupted()

    @override
    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if self._saved_step != self._step:
            self._save(trainer)

    @override
    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        self._restore_handler()

    @override
    def teardown(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        self._restore_handler()

    @override
    def state_dict(self) -> dict[str, Any]:
        """Random number generators and last points, as values that ``torch.load(weights_only=True)`` reads."""
        version, numbers, gauss = random.getstate()
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "python": [version, list(numbers), gauss],
            "points": {tag: list(point) for tag, point in self._last.points.items()},
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the points in; the rest waits until training starts, since what comes before draws numbers too."""
        self._loaded = state_dict
        self._last.points |= {tag: (step, value) for tag, (step, value) in state_dict["points"].items()}

    def _go_on(self, trainer: lightning.Trainer) -> None:
        if not self._loaded:
            return
        torch.set_rng_state(self._loaded["torch"])
        if len(self._loaded["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(self._loaded["cuda"])
        version, numbers, gauss = self._loaded["python"]
        random.setstate((version, tuple(numbers), gauss))
        # Readers forget the old points from this step on. Those of a validation at this very step are known, though,
        # and will not be computed again.
        for tag, (step, value) in self._loaded["points"].items():
            for logger in trainer.loggers if step >= trainer.global_step else ():
                logger.log_metrics({tag: value}, step)
        self._loaded = {}

    def _due(self) -> bool:
        by_steps = self._steps is not None and self._step % self._steps == 0
        return by_steps or (self._seconds is not None and time.monotonic() - self._saved_at >= self._seconds)

    def _save(self, trainer: lightning.Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()  # a point before the checkpoint is never written again, so it has to be on disk first
        trainer.save_checkpoint(self._path, weights_only=False)  # not the weights alone, the optimiser too
        self._saved_step = self._step
        self._saved_at = time.monotonic()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """The first Ctrl-C lets the step finish; a second one does not wait."""
        if self._interrupted:
            raise Interrupted
        self._interrupted = True

    def _stop_if_interrupted(self) -> None:
        if self._stopping:
            raise Interrupted

    def _restore_handler(self) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            self._handler = None
