"""A training run, from the checked configuration to metrics.json."""

import contextlib
import json
import logging
import pickle
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from crossent import config, losses, optim, reporting, runs, starting, trainer
from crossent.calibration import calibrate
from crossent.callbacks.checkpoints import Interrupted
from crossent.checkpoints import KEY
from crossent.classifier import SoftmaxClassifier
from crossent.data.building import build
from crossent.data.module import DataModule
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
    stored = None if checkpoint is None else _load(checkpoint)
    if stored is not None and _finished(plain, directory, stored):
        log.info("%s: already finished after %d steps; nothing to do", runs.shown(directory), stored["global_step"])
        return {}
    if stored is not None:
        starting.check_kept(stored[KEY]["config"], plain)  # config.yaml may have been edited since
    start = 0 if stored is None else int(stored["global_step"])
    if new:
        runs.claim(directory, plain)
    try:
        run = _prepare(chosen, plain, directory, checkpoint, None if new else start)
    except BaseException:  # Ctrl-C while rows are read, too: there is nothing to go on with
        if new:
            runs.discard(directory)
        raise
    if stored is not None and (changed := run.data.facts.difference(stored[KEY]["data"])):
        shown = runs.shown(directory)
        raise UserError(
            f"resume={shown}: the data is no longer what the run began with: other {changed}; config={shown} starts a "
            "new run from that configuration"
        )
    if not chosen.trainer.fast_dev_run:  # a try-out, not a run to come back to
        runs.point_latest(directory)
    reporting.print_header(chosen, run.data, run.classifier, run.trainer, directory)
    if not new:
        reporting.print_resume(checkpoint, start)
    with _process_settings(chosen, run):
        seconds = _fit(run, plain)
        steps = max(start, run.trainer.global_step)
        if chosen.calibration is not None and not chosen.trainer.fast_dev_run:
            _calibrate(run)
        if run.data.rows("test") and not chosen.trainer.barebones:
            _test(run, plain)
    for logger in run.trainer.loggers:
        if isinstance(logger, TensorBoard):
            logger.close()
    if not chosen.trainer.fast_dev_run:
        run.last.write(directory / runs.METRICS, steps=steps, seconds=seconds)
    stopping = run.trainer.early_stopping_callback
    reporting.print_results(
        chosen,
        run.last,
        directory,
        steps=steps,
        seconds=seconds,
        best_accuracy=run.data.best_accuracy,
        stopped_early=stopping is not None and stopping.stopping_reason_message is not None,
    )
    return {tag: value for tag, (_, value) in run.last.points.items()}


@dataclass(frozen=True)
class _Run:
    """All that a run needs, ready to go."""

    directory: Path
    data: DataModule
    classifier: SoftmaxClassifier
    trainer: lightning.Trainer
    last: LastPoints
    checkpoint: Path | None  # to go on from


def _prepare(
    chosen: config.TrainConfig, plain: dict[str, Any], directory: Path, checkpoint: Path | None, start: int | None
) -> _Run:
    """Everything that can fail through a mistake of the user's, before anything is written."""
    lightning.seed_everything(chosen.seed, verbose=False)
    module = build(chosen)
    module.setup()
    _check_validation(chosen, module)
    classes, columns = len(module.facts.classes), len(module.facts.columns)
    loss = losses.build(chosen.loss, module.facts.class_counts)
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
    optimizer = optim.build_optimizer(chosen.optimizer, classifier.parameters())  # a class of the user's own may refuse
    if isinstance(optimizer, torch.optim.LBFGS) and chosen.trainer.accumulate_grad_batches > 1:
        raise UserError(config.ACCUMULATED_LBFGS)
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


def _check_validation(chosen: config.TrainConfig, module: DataModule) -> None:
    """Refuses an interval that never comes, on which Lightning would stop with a traceback, or that is too short."""
    if not module.rows("val"):
        return
    interval, batches = chosen.trainer.val_check_interval, len(module.train_dataloader())
    within_epochs = chosen.trainer.check_val_every_n_epoch is not None
    if within_epochs and isinstance(interval, int) and interval > batches:
        raise UserError(
            f"trainer.val_check_interval={interval}: with check_val_every_n_epoch it counts within an epoch, which has "
            f"{batches} batch{'es' * (batches != 1)}; use 1.0 for once an epoch"
        )
    a_step = min(chosen.trainer.accumulate_grad_batches, batches)
    if a_step > 1 and (interval if isinstance(interval, int) else interval * batches) < a_step:
        raise UserError(
            f"trainer.val_check_interval={interval}: {a_step} batches make a step (trainer.accumulate_grad_batches), "
            f"so the same weights would be validated twice; use {a_step} batches or more"
        )


def _fit(run: _Run, plain: dict[str, Any]) -> float:
    """Trains, and returns the seconds it took."""
    started = time.perf_counter()
    with _interruptible(run, plain):
        run.trainer.fit(
            run.classifier,
            datamodule=run.data,
            ckpt_path=run.checkpoint,
            weights_only=True if run.checkpoint else None,
        )
    return time.perf_counter() - started


def _calibrate(run: _Run) -> None:
    """Fits the temperature of the best weights and of the last ones, stores it with them, and records its effect."""
    batches = run.data.val_dataloader()
    assert not isinstance(batches, list)  # the configuration has seen that there are validation rows
    folder = run.directory / runs.CHECKPOINTS
    paths = [folder / name for name in (runs.BEST_CHECKPOINT, runs.LAST_CHECKPOINT) if (folder / name).exists()]
    steps, metrics = calibrate(paths, run.classifier.head, batches, run.classifier.loss.ignore_index)
    run.classifier.record_metrics("val", steps, metrics)


def _test(run: _Run, plain: dict[str, Any]) -> None:
    """Tests the best weights where there is a val split to tell them, else the last."""
    best = run.directory / runs.CHECKPOINTS / runs.BEST_CHECKPOINT
    path = best if best.exists() else None
    with _interruptible(run, plain):
        run.trainer.test(
            run.classifier, datamodule=run.data, ckpt_path=path, weights_only=True if path else None, verbose=False
        )


@contextlib.contextmanager
def _interruptible(run: _Run, plain: dict[str, Any]) -> Iterator[None]:
    """Words what ends a run early.

    Raises:
        UserError: arguments that Lightning refuses only now.
        KeyboardInterrupt: the user interrupted; the text says after which step, and how to go on.
    """
    try:
        yield
    except MisconfigurationException as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error
    except (Interrupted, SystemExit):  # the latter is what Lightning makes of a Ctrl-C that it sees itself
        how = ""
        if runs.StoredRun(run.directory).newest_checkpoint is not None:
            how = f"; to go on: {starting.command_to_resume(run.directory, plain)}"
        raise KeyboardInterrupt(f" after {run.trainer.global_step} steps{how}") from None


def _load(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint holds."""
    try:
        stored: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
        _ = stored["global_step"], stored[KEY]
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        why = (
            str(error).split(". ")[0].splitlines()[0] if str(error) else type(error).__name__
        )  # PyTorch goes on at length
        instead = "another checkpoint of the run may be whole, or start anew with config="
        raise UserError(
            f"resume={checkpoint}: no whole checkpoint ({why}); {instead}{runs.shown(checkpoint.parents[1])}"
        ) from error
    return stored


def _finished(plain: dict[str, Any], directory: Path, stored: dict[str, Any]) -> bool:
    """Whether nothing is left to do: the run has its results, and what ended it has not been changed since."""
    try:
        steps = json.loads((directory / runs.METRICS).read_text())["steps"]
    except (OSError, ValueError, KeyError):
        return False
    calibrated = plain["calibration"] is None or "temperature" in stored[KEY]
    if steps != stored["global_step"] or not calibrated:
        return False
    if steps >= plain["trainer"]["max_steps"] > 0:
        return True
    before = stored[KEY]["config"]
    return all(plain[section] == before[section] for section in ("trainer", "callbacks"))


@contextlib.contextmanager
def _process_settings(chosen: config.TrainConfig, run: _Run) -> Iterator[None]:
    """Sets how many CPU threads work on one operation; afterwards it and ``deterministic`` are as they were."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    if chosen.accelerator.threads != "auto":
        torch.set_num_threads(chosen.accelerator.threads)
    elif run.data.batch_rows * run.classifier.head.weight.numel() < _TINY:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
