"""A training run, from the checked configuration to metrics.json."""

import contextlib
import logging
import pickle
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from crossent import config, data, losses, optim, reporting, runs, trainer
from crossent.callbacks.checkpoints import Interrupted
from crossent.classifier import SoftmaxClassifier
from crossent.errors import UserError
from crossent.head import Head
from crossent.loggers import LastPoints, TensorBoard

log = logging.getLogger(__name__)

# Multiply-adds a step below which a second thread costs more in waiting than it takes off the work.
_TINY = 2_000_000


def train(chosen: config.TrainConfig, plain: dict[str, Any], directory: Path) -> dict[str, float]:
    """Trains, tests where there is a test split, and leaves the run directory complete.

    Args:
        chosen: the configuration.
        plain: the same as plain values, for config.yaml and the checkpoints.
        directory: of the run; a new one, or that of the run to go on with.

    Returns:
        The last value of every curve, under its tag.

    Raises:
        UserError: something that the user has to change. If a new run could not begin, its directory is gone again.
        KeyboardInterrupt: the user interrupted; the text says how to go on.
    """
    reporting.quieten()
    new = chosen.resume is None
    checkpoint = None if new else runs.find(str(chosen.resume), "resume").newest_checkpoint
    start = 0 if checkpoint is None else _steps_of(checkpoint)
    if checkpoint is not None and _finished(chosen, directory, start):
        log.info("%s: already finished after %d steps; nothing to do", runs.shown(directory), start)
        return {}
    if new:
        runs.claim(directory, plain)
    try:
        run = _prepare(chosen, plain, directory, checkpoint, None if new else start)
    except UserError:
        if new:
            runs.discard(directory)
        raise
    runs.point_latest(directory)
    reporting.print_header(chosen, run.data, run.classifier, run.trainer, directory)
    if not new:
        reporting.print_resume(checkpoint, start)
    with _threads(chosen.accelerator.threads, run.data.batch_rows * run.classifier.head.weight.numel()):
        seconds = _fit(run)
        steps = run.trainer.global_step
        if run.data.rows("test") and not chosen.trainer.barebones:
            _test(run)
    for logger in run.trainer.loggers:
        if isinstance(logger, TensorBoard):
            logger.close()
    if not chosen.trainer.fast_dev_run:
        run.last.write(directory / runs.METRICS, steps=steps, seconds=seconds)
    reporting.print_results(chosen, run.last, directory, steps=steps, seconds=seconds)
    return {tag: value for tag, (_, value) in run.last.points.items()}


@dataclass(frozen=True)
class _Run:
    """All that a run needs, ready to go."""

    directory: Path
    data: data.DataModule
    classifier: SoftmaxClassifier
    trainer: lightning.Trainer
    last: LastPoints
    checkpoint: Path | None  # to go on from


def _prepare(
    chosen: config.TrainConfig, plain: dict[str, Any], directory: Path, checkpoint: Path | None, start: int | None
) -> _Run:
    """Everything that can fail through a mistake of the user's, before anything is written."""
    lightning.seed_everything(chosen.seed, verbose=False)
    module = data.build(chosen.data, seed=chosen.seed, shuffle=not chosen.trainer.overfit_batches)
    module.setup()
    classes, columns = len(module.facts.classes), len(module.facts.columns)
    loss = losses.build(chosen.loss, classes)
    outputs = loss.outputs(classes)
    head = Head(columns, classes, outputs, bias=chosen.model.bias, init=chosen.model.init, seed=chosen.seed)
    classifier = SoftmaxClassifier(
        head,
        loss,
        optimizer=partial(optim.build_optimizer, chosen.optimizer),
        scheduler=partial(optim.build_scheduler, chosen.scheduler),
        l2=chosen.model.l2,
        record={"config": plain, "data": module.facts.to_plain()},
    )
    optim.build_optimizer(chosen.optimizer, classifier.parameters())  # a class of the user's own may refuse
    last = LastPoints()
    loop = trainer.build(
        chosen,
        directory,
        last,
        validates=module.rows("val") > 0,
        start=start,
    )
    for logger in loop.loggers:
        _ = getattr(logger, "experiment", None)  # opens the event file; its imports are no part of fit's time
    return _Run(directory, module, classifier, loop, last, checkpoint)


def _fit(run: _Run) -> float:
    """Trains, and returns the seconds it took."""
    started = time.perf_counter()
    try:
        run.trainer.fit(
            run.classifier,
            datamodule=run.data,
            ckpt_path=run.checkpoint,
            weights_only=True if run.checkpoint else None,
        )
    except MisconfigurationException as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error
    except Interrupted:
        how = f"to go on: crossent-train resume={runs.shown(run.directory)}"
        raise KeyboardInterrupt(f" after {run.trainer.global_step} steps; {how}") from None
    except SystemExit:  # what Lightning makes of a Ctrl-C outside of the steps
        raise KeyboardInterrupt(" before the first step") from None
    return time.perf_counter() - started


def _test(run: _Run) -> None:
    """Tests the best weights where there is a val split to tell them, else the last."""
    best = run.directory / runs.CHECKPOINTS / runs.BEST_CHECKPOINT
    path = best if best.exists() else None
    run.trainer.test(
        run.classifier, datamodule=run.data, ckpt_path=path, weights_only=True if path else None, verbose=False
    )


def _steps_of(checkpoint: Path) -> int:
    """The optimiser steps behind a checkpoint."""
    try:
        return int(torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"])
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"resume: {checkpoint} is no whole checkpoint: {why}") from error


def _finished(chosen: config.TrainConfig, directory: Path, start: int) -> bool:
    """Whether nothing is left to do: the run ended, and its limits have not been raised since."""
    if start >= chosen.trainer.max_steps > 0:
        return True
    if not (directory / runs.METRICS).exists():
        return False
    stored = runs.StoredRun(directory).config("resume")
    limits = ("max_steps", "max_epochs", "max_time")
    return all(stored["trainer"][limit] == getattr(chosen.trainer, limit) for limit in limits)


@contextlib.contextmanager
def _threads(chosen: Literal["auto"] | int, multiply_adds: int) -> Iterator[None]:
    """Sets how many CPU threads work on one operation, for as long as the run takes."""
    before = torch.get_num_threads()
    if chosen == "auto":
        chosen = 1 if multiply_adds < _TINY else before
    torch.set_num_threads(chosen)
    try:
        yield
    finally:
        torch.set_num_threads(before)
