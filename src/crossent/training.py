"""A training run, from the checked configuration to metrics.json."""

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from crossent import config, memory, reporting, resuming, runs
from crossent.calibration import calibrate
from crossent.callbacks.figures import Figures
from crossent.console import shown
from crossent.endings import close_curves, explained, noted
from crossent.preparing import Run, prepare
from crossent.processes import together
from crossent.processes.world import ALONE, World
from crossent.solved_classifier import SolvedClassifier
from crossent.writing import clear_parts

log = logging.getLogger(__name__)

# Multiply-adds a step below which a second thread costs more in waiting than it takes off the work.
_TINY = 2_000_000


def train(chosen: config.TrainConfig, plain: dict[str, Any], directory: Path, world: World = ALONE) -> dict[str, float]:
    """Trains, tests where there is a test split, and leaves the run directory complete.

    Every rank of a run calls this, and the first of them alone reads and writes in the directory.

    Args:
        chosen: the configuration.
        plain: the same as plain values, for config.yaml and the checkpoints.
        directory: of the run; a new one, or that of the run to go on with.
        world: the processes that share the run.

    Returns:
        The last value of every curve, under its tag.

    Raises:
        UserError: something that the user has to change. If a new run could not begin, its directory is gone again.
        Stopped: a signal ended it; the text says how to go on.
    """
    reporting.quieten()
    if chosen.resume is not None:
        with _held(directory, f"resume={shown(directory)}"):
            return _go_on(chosen, plain, directory, world)
    latest = together.from_first(lambda: _begin(chosen, plain, directory))
    with _held(directory, f"hydra.run.dir={shown(directory)}"):
        try:
            run = prepare(chosen, plain, directory, None, world)
        except BaseException:  # Ctrl-C while rows are read, too: there is nothing to go on with
            if world.is_first:
                runs.discard(directory, latest)
            raise
        return _run(chosen, plain, run)


def _begin(chosen: config.TrainConfig, plain: dict[str, Any], directory: Path) -> Path | None:
    """Makes the directory the run's own; what ``logs/latest`` pointed at before it."""
    runs.claim(directory, plain)
    # A try-out is no run to come back to.
    return None if chosen.trainer.fast_dev_run else runs.point_latest(directory)


@contextlib.contextmanager
def _held(directory: Path, key: str) -> Iterator[None]:
    """Keeps other processes from the run than those that share it.

    Raises:
        UserError: one is at it already.
    """
    with contextlib.ExitStack() as stack:
        together.from_first(lambda: stack.enter_context(runs.held(directory, key)))
        yield


def _go_on(chosen: config.TrainConfig, plain: dict[str, Any], directory: Path, world: World) -> dict[str, float]:
    """Trains from where a run stopped."""
    origin = together.from_first(lambda: resuming.find(runs.find(str(chosen.resume), "resume")))
    if together.from_first(lambda: origin.finished(plain, directory)):
        log.info("%s: already finished after %d steps; nothing to do", shown(directory), origin.step)
        return {}
    origin.check_config(plain)
    if world.is_first:
        for folder in (directory, directory / runs.CHECKPOINTS):
            clear_parts(folder)
    run = prepare(chosen, plain, directory, origin, world)
    if world.is_first and not chosen.trainer.fast_dev_run:
        runs.point_latest(directory)
    return _run(chosen, plain, run)


def _run(chosen: config.TrainConfig, plain: dict[str, Any], run: Run) -> dict[str, float]:
    """Trains, calibrates and tests, and writes down what came of it."""
    directory, origin = run.directory, run.origin
    reporting.print_header(chosen, run.data, run.classifier, run.trainer, directory, run.world)
    if origin is not None:
        reporting.print_resume(origin)
    if run.trainer.strategy.root_device.type == "cpu" and (warning := memory.warning(chosen, run.data, run.world)):
        log.warning("%s", warning)
    with noted(), _process_settings(chosen, run), explained(plain, run), memory.explained(chosen, run.data, run.world):
        seconds = _fit(run)
        steps = run.trainer.global_step if origin is None else max(origin.step, run.trainer.global_step)
        for callback in run.trainer.callbacks:  # type: ignore[attr-defined]  # Lightning sets it from outside
            if isinstance(callback, Figures):
                callback.draw()
        if chosen.calibration is not None and not chosen.trainer.fast_dev_run:
            _calibrate(run)
        if run.data.rows("test") and not chosen.trainer.barebones:
            _test(run)
        close_curves(run, well=True)
        if run.world.is_first and not chosen.trainer.fast_dev_run:
            run.last.write(directory / runs.METRICS, steps=steps, seconds=seconds)
    stopping = run.trainer.early_stopping_callback
    reporting.print_results(
        chosen,
        run.last,
        directory,
        steps=steps,
        seconds=seconds,
        best_accuracy=run.data.best_accuracy,
        fits=run.classifier.fits if isinstance(run.classifier, SolvedClassifier) else (),
        stopped_early=stopping is not None and stopping.stopping_reason_message is not None,
    )
    return {tag: value for tag, (_, value) in run.last.points.items()}


def _fit(run: Run) -> float:
    """Trains, and returns the seconds it took."""
    started = time.perf_counter()
    checkpoint = None if run.origin is None else run.origin.checkpoint
    run.trainer.fit(
        run.classifier, datamodule=run.data, ckpt_path=checkpoint, weights_only=True if checkpoint else None
    )
    return time.perf_counter() - started


def _calibrate(run: Run) -> None:
    """Fits the temperature of the best weights and of the last ones, stores it with them, and records its effect."""
    batches = run.data.val_dataloader()
    assert not isinstance(batches, list)  # the configuration has seen that there are validation rows
    stored = runs.StoredRun(run.directory)
    paths = together.from_first(lambda: [path for path in (stored.best, stored.last) if path.exists()])
    head, group = run.classifier.head, run.classifier.grid.of_my_classes
    steps, metrics = calibrate(paths, head, batches, run.classifier.loss.ignore_index, group)
    run.classifier.record_metrics("val", steps, metrics)


def _test(run: Run) -> None:
    """Tests the best weights where there is a val split to tell them, else the last."""
    best = runs.StoredRun(run.directory).best
    path = together.from_first(lambda: best if best.exists() else None)
    run.trainer.test(
        run.classifier, datamodule=run.data, ckpt_path=path, weights_only=True if path else None, verbose=False
    )


def _most_weights(run: Run) -> int:
    """Of any rank, so that all decide alike."""
    shard, columns = run.classifier.head.shard, run.classifier.head.weight.shape[1]
    return -(-shard.of // run.world.class_shards) * columns


@contextlib.contextmanager
def _process_settings(chosen: config.TrainConfig, run: Run) -> Iterator[None]:
    """Sets how many CPU threads work on one operation; afterwards it and ``deterministic`` are as they were."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    if chosen.accelerator.threads != "auto":
        torch.set_num_threads(chosen.accelerator.threads)
    elif run.data.batch_rows // run.world.row_shards * _most_weights(run) < _TINY:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
