"""Lightning's Trainer, as the configuration asks for it."""

import contextlib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import msgspec
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import Strategy
from typing_extensions import override

from crossent import config, devices, hyperparameters, runs
from crossent.callbacks.best import MONITORED
from crossent.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from crossent.callbacks.figures import Figures
from crossent.callbacks.progress import SOLVER_COLUMNS, Console
from crossent.checkpoint_io import CheckpointFiles
from crossent.custom import make
from crossent.data.module import DataModule
from crossent.errors import UserError
from crossent.loggers import LastPoints, TensorBoard
from crossent.processes import strategy
from crossent.processes.grid import Grid
from crossent.processes.world import World
from crossent.resuming import Origin

# What Lightning's benchmark mode forbids to be set; it switches all of it off.
_NOT_IN_BAREBONES = (
    "log_every_n_steps",
    "num_sanity_val_steps",
    "enable_checkpointing",
    "enable_progress_bar",
    "enable_model_summary",
)


class _Unprofiled(PassThroughProfiler):
    """Measures nothing, like Lightning's own, without making a generator for each of the forty calls a step."""

    _nothing = contextlib.nullcontext("")

    @override
    def profile(self, action_name: str) -> AbstractContextManager[str]:  # type: ignore[override]  # as one uses it
        return self._nothing


def build(
    chosen: config.TrainConfig,
    plain: dict[str, Any],
    directory: Path,
    data: DataModule,
    last: LastPoints,
    *,
    origin: Origin | None,
    world: World,
    grid: Grid,
) -> lightning.Trainer:
    """Makes the Trainer.

    Args:
        chosen: the configuration.
        plain: the same as plain values.
        directory: of the run.
        data: its rows.
        last: takes in the curves' last points.
        origin: what the run goes on from, or None for a new run.
        world: the processes that share the run.
        grid: how they share rows and classes.

    Raises:
        UserError: arguments that Lightning refuses, or an accelerator that this machine does not have.
    """
    validates = data.rows("val") > 0
    arguments = {
        name: value for name, value in msgspec.to_builtins(chosen.trainer).items() if name not in config.TRAINER_OWN
    }
    if chosen.trainer.barebones:
        arguments |= dict.fromkeys(_NOT_IN_BAREBONES)
    else:
        arguments["profiler"] = chosen.trainer.profiler or _Unprofiled()
        arguments["enable_progress_bar"] = False  # ours is one for the whole run
        writer = _tensorboard(chosen, plain, directory, origin) if world.is_first else None
        arguments["logger"] = [last, *([] if writer is None else [writer])]
        arguments["enable_checkpointing"] = chosen.trainer.enable_checkpointing and not chosen.trainer.fast_dev_run
        files = CheckpointFiles(is_split=grid.columns > 1)
        saved = None if origin is None or origin.checkpoint is None else origin.step
        arguments["callbacks"] = _callbacks(chosen, directory, last, files, validates=validates, saved=saved)
        if world.is_first:
            arguments["callbacks"].insert(0, _console(chosen, last, validates=validates))
        if validates:  # also where nothing is drawn, or Lightning would wonder about the state in the checkpoint
            arguments["callbacks"].insert(0, Figures(data, writer if _wants_figures(chosen.logger) else None))
        arguments["plugins"] = [files]
    if not validates:
        arguments["limit_val_batches"] = 0
    arguments |= _hardware(chosen.accelerator) | {"devices": 1, "num_nodes": 1}
    arguments["precision"] = chosen.accelerator.precision
    if world.ranks > 1:
        plugins = arguments.pop("plugins", [])
        arguments |= strategy.arguments(world, grid, chosen.accelerator.precision)
        arguments["plugins"] += plugins
    try:
        trainer = lightning.Trainer(**arguments, default_root_dir=directory)
    except (MisconfigurationException, ValueError) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error
    if world.ranks > 1:
        strategy.leave_signals_alone(trainer)
    return trainer


def _console(chosen: config.TrainConfig, last: LastPoints, *, validates: bool) -> Console:
    bar = chosen.trainer.enable_progress_bar
    if isinstance(chosen.optimizer, config.NewtonCg):  # of which nobody knows how many steps it takes; few
        more = SOLVER_COLUMNS if chosen.model.l2_path is None else ("train/l2", *SOLVER_COLUMNS)
        return Console(last, validates=validates, bar=False, more=more, stride=1)
    return Console(last, validates=validates, bar=bar)


def _wants_figures(chosen: config.AnyLogger) -> bool:
    return isinstance(chosen, config.TensorBoardLogger) and chosen.figures


def _tensorboard(
    chosen: config.TrainConfig, plain: dict[str, Any], directory: Path, origin: Origin | None
) -> TensorBoard | None:
    match chosen.logger:
        case config.NoLogger():
            return None
        case config.TensorBoardLogger(flush_seconds=seconds):
            start = None if origin is None else origin.step
            known_by = hyperparameters.of_run(directory, plain)
            return TensorBoard(directory, hyperparameters=known_by, flush_seconds=seconds, start=start)


def _callbacks(
    chosen: config.TrainConfig,
    directory: Path,
    last: LastPoints,
    files: CheckpointFiles,
    *,
    validates: bool,
    saved: int | None,
) -> list[lightning.Callback]:
    callbacks: list[lightning.Callback] = []
    stopping = chosen.callbacks.early_stopping
    overfits = bool(chosen.trainer.overfit_batches)  # on purpose: val/cost is meant to rise
    is_path = chosen.model.l2_path is not None  # whose penalties are all asked for
    if validates and stopping.patience is not None and not overfits and not is_path:
        callbacks.append(
            EarlyStopping(MONITORED, patience=stopping.patience, min_delta=stopping.min_delta, check_finite=False)
        )
    if not chosen.trainer.enable_checkpointing or chosen.trainer.fast_dev_run:
        return callbacks
    folder = directory / runs.CHECKPOINTS
    if validates:
        callbacks.append(BestCheckpoint(folder / runs.BEST_CHECKPOINT))
    saving = chosen.callbacks.checkpoint
    # After `best`, so that the last checkpoint knows of the best one.
    callbacks.append(
        LastCheckpoint(
            folder / runs.LAST_CHECKPOINT,
            files,
            last,
            every_minutes=saving.every_minutes,
            every_n_steps=saving.every_n_steps,
            keep=saving.keep,
            start=saved,
        )
    )
    return callbacks


def _hardware(chosen: config.AnyAccelerator) -> dict[str, Any]:
    """Trainer's arguments ``accelerator`` and, for a class of the user's own, ``strategy``."""
    match chosen:
        case config.CustomAccelerator():
            match make("accelerator", chosen.class_path, chosen.arguments, object):
                case Strategy() as strategy:
                    return {"strategy": strategy}
                case Accelerator() as accelerator:
                    return {"accelerator": accelerator}
                case other:
                    raise UserError(
                        f"accelerator._target_={chosen.class_path}: has to be a Lightning Accelerator or Strategy, "
                        f"not a {type(other).__name__}"
                    )
        case config.GpuAccelerator() | config.DdpAccelerator() | config.ClassParallelAccelerator():
            devices.check(str(chosen.__struct_config__.tag))
            return {"accelerator": "cuda"}
        case config.MpsAccelerator():
            devices.check("mps")
            return {"accelerator": "mps"}
        case config.CpuAccelerator() | config.DdpCpuAccelerator() | config.ClassParallelCpuAccelerator():
            return {"accelerator": "cpu"}
        case config.AutoAccelerator():
            return {"accelerator": "auto"}
