"""A training run, from the checked configuration to metrics.json."""

import contextlib
import logging
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from crossent import config, losses, memory, optim, reporting, resuming, runs, starting, trainer
from crossent.calibration import calibrate
from crossent.classifier import SoftmaxClassifier
from crossent.console import note, shown
from crossent.data.building import build
from crossent.data.module import DataModule
from crossent.errors import CannotWriteError, UserError
from crossent.head import Head
from crossent.loggers import LastPoints, TensorBoard
from crossent.resuming import Origin
from crossent.stopping import Stopped
from crossent.writing import clear_parts

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
        Stopped: a signal ended it; the text says how to go on.
    """
    reporting.quieten()
    if chosen.resume is not None:
        with runs.held(directory, f"resume={shown(directory)}"):
            return _go_on(chosen, plain, directory)
    runs.claim(directory, plain)
    # A try-out is no run to come back to.
    latest = None if chosen.trainer.fast_dev_run else runs.point_latest(directory)
    with runs.held(directory, f"hydra.run.dir={shown(directory)}"):
        try:
            run = _prepare(chosen, plain, directory, None)
        except BaseException:  # Ctrl-C while rows are read, too: there is nothing to go on with
            runs.discard(directory, latest)
            raise
        return _run(chosen, plain, run)


def _go_on(chosen: config.TrainConfig, plain: dict[str, Any], directory: Path) -> dict[str, float]:
    """Trains from where a run stopped."""
    origin = resuming.find(runs.find(str(chosen.resume), "resume"))
    if origin.finished(plain, directory):
        log.info("%s: already finished after %d steps; nothing to do", shown(directory), origin.step)
        return {}
    origin.check_config(plain)
    for folder in (directory, directory / runs.CHECKPOINTS):
        clear_parts(folder)
    run = _prepare(chosen, plain, directory, origin)
    if not chosen.trainer.fast_dev_run:
        runs.point_latest(directory)
    return _run(chosen, plain, run)


def _run(chosen: config.TrainConfig, plain: dict[str, Any], run: "_Run") -> dict[str, float]:
    """Trains, calibrates and tests, and writes down what came of it."""
    directory, origin = run.directory, run.origin
    reporting.print_header(chosen, run.data, run.classifier, run.trainer, directory)
    if origin is not None:
        reporting.print_resume(origin)
    if run.trainer.strategy.root_device.type == "cpu" and (warning := memory.warning(chosen, run.data)):
        log.warning("%s", warning)
    with _noted(), _process_settings(chosen, run), _explained(plain, run), _within_memory(chosen, run.data):
        seconds = _fit(run)
        steps = run.trainer.global_step if origin is None else max(origin.step, run.trainer.global_step)
        if chosen.calibration is not None and not chosen.trainer.fast_dev_run:
            _calibrate(run)
        if run.data.rows("test") and not chosen.trainer.barebones:
            _test(run)
        _close_curves(run)
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
    origin: Origin | None  # what it goes on from; None: it is new


def _prepare(chosen: config.TrainConfig, plain: dict[str, Any], directory: Path, origin: Origin | None) -> _Run:
    """Everything that can fail through a mistake of the user's, before anything is written."""
    lightning.seed_everything(chosen.seed, verbose=False)
    module = build(chosen)
    with _within_memory(chosen, module):
        module.setup()
        return _build(chosen, plain, directory, origin, module)


def _build(
    chosen: config.TrainConfig, plain: dict[str, Any], directory: Path, origin: Origin | None, module: DataModule
) -> _Run:
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
    loop = trainer.build(chosen, directory, last, validates=module.rows("val") > 0, origin=origin)
    if origin is not None:
        origin.check_data(module.facts, directory)
        origin = origin.adopt(directory)
    for logger in loop.loggers:
        _ = getattr(logger, "experiment", None)  # opens the event file; its imports are no part of fit's time
    return _Run(directory, module, classifier, loop, last, origin)


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


def _fit(run: _Run) -> float:
    """Trains, and returns the seconds it took."""
    started = time.perf_counter()
    checkpoint = None if run.origin is None else run.origin.checkpoint
    run.trainer.fit(
        run.classifier, datamodule=run.data, ckpt_path=checkpoint, weights_only=True if checkpoint else None
    )
    return time.perf_counter() - started


def _calibrate(run: _Run) -> None:
    """Fits the temperature of the best weights and of the last ones, stores it with them, and records its effect."""
    batches = run.data.val_dataloader()
    assert not isinstance(batches, list)  # the configuration has seen that there are validation rows
    stored = runs.StoredRun(run.directory)
    paths = [path for path in (stored.best, stored.last) if path.exists()]
    steps, metrics = calibrate(paths, run.classifier.head, batches, run.classifier.loss.ignore_index)
    run.classifier.record_metrics("val", steps, metrics)


def _test(run: _Run) -> None:
    """Tests the best weights where there is a val split to tell them, else the last."""
    best = runs.StoredRun(run.directory).best
    path = best if best.exists() else None
    run.trainer.test(
        run.classifier, datamodule=run.data, ckpt_path=path, weights_only=True if path else None, verbose=False
    )


@contextlib.contextmanager
def _noted() -> Iterator[None]:
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
def _explained(plain: dict[str, Any], run: _Run) -> Iterator[None]:
    """Words what ends a run early.

    Raises:
        UserError: what the user has to change, or to make room for.
        Stopped: a signal ended the run; the text says after which step, and how to go on.
    """
    try:
        yield
    except MisconfigurationException as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error
    except CannotWriteError as error:
        raise UserError(f"{error}; once it can be, {_how_to_go_on(plain, run)}") from error
    except (Stopped, KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
            raise  # not the one that Lightning makes of a Ctrl-C that it sees itself
        stop = error if isinstance(error, Stopped) else Stopped(signal.SIGINT)
        how = f" after {run.trainer.global_step} steps"
        saved = resuming.newest_step(run.directory)
        if saved is not None and stop.at_once:
            how += f", of which the last checkpoint has {saved}"
        how += f"; {_how_to_go_on(plain, run)}"
        raise Stopped(stop.number, how, at_once=stop.at_once) from None
    finally:
        with contextlib.suppress(CannotWriteError):  # of which has been spoken
            _close_curves(run)


def _close_curves(run: _Run) -> None:
    for logger in run.trainer.loggers:
        if isinstance(logger, TensorBoard):
            logger.close()


def _how_to_go_on(plain: dict[str, Any], run: _Run) -> str:
    why = "begin again, for want of a checkpoint" if resuming.newest_step(run.directory) is None else "go on"
    return f"to {why}: {starting.command_to_resume(run.directory, plain)}"


@contextlib.contextmanager
def _within_memory(chosen: config.TrainConfig, data: DataModule) -> Iterator[None]:
    """Says what would have been needed where memory runs out.

    Raises:
        UserError: it has.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not memory.ran_out(error):
            raise
        raise UserError(memory.explanation(error, chosen, data)) from error


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
