"""Keeps best.ckpt and last.ckpt, and stops a run between two steps when a signal asks for it."""

import signal
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
from lightning.pytorch.callbacks import Checkpoint
from typing_extensions import override

from crossent import random_states
from crossent.callbacks.best import Best
from crossent.checkpoint_io import CheckpointFiles, Kept
from crossent.classifier import SoftmaxClassifier
from crossent.loggers import LastPoints
from crossent.processes import together
from crossent.stopping import Stopped, StopRequest


def _save(trainer: lightning.Trainer, path: Path, kept: Kept | None = None) -> None:
    """Writes a checkpoint that the run can go on from."""
    model = trainer.lightning_module
    assert isinstance(model, SoftmaxClassifier)
    model.check_weights()
    for logger in trainer.loggers:
        logger.save()  # a point before the checkpoint is never written again, so it has to be on disk first
    trainer.save_checkpoint(path, weights_only=False, storage_options=kept)  # the optimiser, too


class BestCheckpoint(Checkpoint):
    """Keeps the weights of the best validation in ``best.ckpt``.

    Lightning's ModelCheckpoint forgets the best value when a run directory was moved; this one stores no path.

    Args:
        path: of the checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._best = Best()

    @override
    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if self._best.improves(trainer, pl_module):
            _save(trainer, self._path)

    @override
    def state_dict(self) -> dict[str, Any]:
        return self._best.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if together.from_first(self._path.exists):  # or what is best counts from here on
            self._best.load_state_dict(state_dict)


class LastCheckpoint(Checkpoint):
    """Renews ``last.ckpt`` every so often, at the end, and when a signal asks the run to stop.

    The state is taken at the end of a batch that ended an optimiser step, or, where a validation is due there, behind
    that validation. Those are the points in Lightning's loop from which a run goes on in the middle of an epoch as if
    it had not stopped: one that went on from before a validation would leave it out, and once the loop has been left,
    the epoch counts as finished.

    The checkpoint also holds the states of the random number generators, which Lightning leaves out, and the last
    points of the curves.

    Args:
        path: of the checkpoint.
        files: what writes it.
        last: the curves' last points.
        every_minutes: how often, by the clock; None: not by the clock.
        every_n_steps: how often, by optimiser steps; None: not by steps.
        keep: how many of the newest are kept, this one included.
        start: the step of the checkpoint that is there, which the run goes on from; None: there is none.
    """

    def __init__(
        self,
        path: Path,
        files: CheckpointFiles,
        last: LastPoints,
        *,
        every_minutes: float | None,
        every_n_steps: int | None,
        keep: int,
        start: int | None,
    ) -> None:
        self._path = path
        self._files = files
        self._last = last
        self._seconds = None if every_minutes is None else 60 * every_minutes
        self._steps = every_n_steps
        self._keep = keep
        self._step = 0  # the last one that was seen to end
        self._between_steps = True
        self._saved_step = start  # of the file
        self._saved_at = time.monotonic()
        self._due = False  # once the validation has ended
        self._stop = StopRequest()
        self._told = False  # by any rank, to stop
        self._random: list[dict[str, Any]] = []  # the states of the checkpoint to go on from, one a rank

    @override
    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self._random:
            random_states.restore(self._random, trainer.global_rank, trainer.world_size)
        self._step = trainer.global_step
        self._saved_at = time.monotonic()
        self._stop.listen()
        assert isinstance(pl_module, SoftmaxClassifier)
        pl_module.open_step.wishes = self._wishes
        if self._steps is not None:
            every = self._steps
            pl_module.until.append(lambda step: every - step % every)

    @override
    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._stop_if_told()

    @override
    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._between_steps = trainer.global_step != self._step  # or gradients are still being accumulated
        if not self._between_steps:
            return
        self._step = trainer.global_step
        self._told, is_time = pl_module.open_step.granted if together.ranks() > 1 else self._wishes()
        is_turn = self._steps is not None and self._step % self._steps == 0
        self._due = self._told or self._step >= trainer.max_steps > 0 or is_turn or is_time
        if self._due and not _validates_now(trainer):
            self._save(trainer)

    @override
    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if trainer.state.fn != "fit":
            return
        (self._told,) = together.any_of(bool(self._stop))
        told = self._told and self._between_steps and self._saved_step != self._step
        if self._due or told:
            self._save(trainer)

    @override
    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self._stop_if_told()

    @override
    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if self._saved_step != self._step:
            self._save(trainer)
        self._files.wait()
        self._stop.ignore()
        (self._told,) = together.any_of(bool(self._stop))
        if self._told:  # ahead of calibration and test
            raise self._stopped()

    @override
    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        if isinstance(exception, Stopped):
            self._stop.hold()  # until Lightning gives the signals back
            if exception.at_once:
                self._files.abandon()
        else:
            self._stop.ignore()

    @override
    def state_dict(self) -> dict[str, Any]:
        """Random number generators and last points, as values that ``torch.load(weights_only=True)`` reads."""
        points = {tag: list(point) for tag, point in self._last.points.items()}
        return {"random": random_states.of_all_ranks(), "points": points, "between_steps": self._between_steps}

    @override
    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Goes on with the curves, and later with the random numbers: what comes before training draws some, too."""
        if trainer.state.fn != "fit":  # the best weights are tested, and the run is where it is
            return
        stored = checkpoint["callbacks"][self.state_key]
        self._random = stored["random"]
        self._last.points |= {tag: (step, value) for tag, (step, value) in stored["points"].items()}
        # Readers forget the old points from this step on. Those of a validation at this very step are known, though,
        # and will not be computed again.
        for tag, (step, value) in stored["points"].items():
            again = tag.startswith("train/") and not trainer.should_stop  # by the next step
            for logger in trainer.loggers if step >= checkpoint["global_step"] and not again else ():
                logger.log_metrics({tag: value}, step)

    def _wishes(self) -> tuple[bool, bool]:
        """Whether this rank was told to stop, and whether it is time for a checkpoint by its clock."""
        return bool(self._stop), self._seconds is not None and time.monotonic() - self._saved_at >= self._seconds

    def _save(self, trainer: lightning.Trainer) -> None:
        """Writes the state, from which the run can go on."""
        _save(trainer, self._path, Kept(self._saved_step if self._saved_step != self._step else None, self._keep))
        self._due = False
        self._saved_step = self._step
        self._saved_at = time.monotonic()

    def _stop_if_told(self) -> None:
        told = self._told if together.ranks() > 1 else bool(self._stop)  # ranks stop at the same place or not at all
        if told and self._saved_step == self._step:
            self._files.wait()
            raise self._stopped()

    def _stopped(self) -> Stopped:
        return Stopped(self._stop.number or signal.SIGTERM)  # where another rank was told


def _validates_now(trainer: lightning.Trainer) -> bool:
    """Whether a validation comes right behind the batch that has ended; Lightning has no public word for it."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
