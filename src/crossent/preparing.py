"""All that a run needs, made from the checked configuration."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch

from crossent import config, losses, memory, optim, trainer
from crossent.blocked_classifier import BlockedClassifier
from crossent.blocks import takes_blocks
from crossent.classifier import SoftmaxClassifier
from crossent.data.building import build
from crossent.data.facts import DataFacts
from crossent.data.module import DataModule
from crossent.errors import UserError
from crossent.head import Head
from crossent.loggers import LastPoints
from crossent.losses import convex
from crossent.processes import together
from crossent.processes.grid import Grid
from crossent.processes.world import World
from crossent.resuming import Origin
from crossent.solved_classifier import SolvedClassifier
from crossent.warm_start import warm_start


@dataclass(frozen=True)
class Run:
    """A run that is ready to go.

    Attributes:
        directory: of the run.
        data: its rows.
        classifier: with its weights as they begin.
        trainer: Lightning's.
        last: takes in the last points of the curves.
        origin: what it goes on from; None: it is new.
        world: the processes that share it.
    """

    directory: Path
    data: DataModule
    classifier: SoftmaxClassifier
    trainer: lightning.Trainer
    last: LastPoints
    origin: Origin | None
    world: World


def prepare(
    chosen: config.TrainConfig, plain: dict[str, Any], directory: Path, origin: Origin | None, world: World
) -> Run:
    """Makes all that a run needs: everything that can fail through a mistake of the user's, before a step is taken.

    Every rank calls this.

    Args:
        chosen: the configuration.
        plain: the same as plain values, for the checkpoints.
        directory: of the run.
        origin: what it goes on from; None: it is new.
        world: the processes that share it.

    Raises:
        UserError: something that the user has to change.
    """
    lightning.seed_everything(chosen.seed, verbose=False)
    module = together.agreed(lambda: _data(chosen, world))
    _check_same_data(module.facts)
    with memory.explained(chosen, module, world):
        return _build(chosen, plain, directory, origin, module, world)


def _data(chosen: config.TrainConfig, world: World) -> DataModule:
    """The rows, all of them on every rank: which ones are its own changes with every batch."""
    module = build(chosen)
    with memory.explained(chosen, module, world):
        module.setup()
    return module


def _check_same_data(facts: DataFacts) -> None:
    """Refuses ranks that have read other rows than the first one, from another copy of a file."""
    plain = together.from_first(facts.to_plain)
    for rank, changed in enumerate(together.of_all(facts.difference(plain))):
        if changed:
            raise UserError(
                f"data: rank {rank} has other {changed} than the first one; give all machines the same rows"
            )


def _build(
    chosen: config.TrainConfig,
    plain: dict[str, Any],
    directory: Path,
    origin: Origin | None,
    module: DataModule,
    world: World,
) -> Run:
    _check_validation(chosen, module)
    classes, columns = len(module.facts.classes), len(module.facts.columns)
    grid = Grid.of(world, chosen.accelerator)
    shard = grid.shard(classes)
    loss = losses.build(chosen.loss, module.facts.class_counts, shard)
    outputs = loss.outputs(classes)
    model = chosen.model
    head = Head(columns, classes, outputs, bias=model.bias, init=model.init, seed=chosen.seed, shard=shard)
    if model.warm_start is not None and origin is None:
        warm_start(head, module.facts, model.warm_start)
    kind: Callable[..., SoftmaxClassifier] = SoftmaxClassifier
    if isinstance(chosen.optimizer, config.NewtonCg):
        _check_convex(loss, chosen.loss, outputs)
        kind = partial(SolvedClassifier, l2_path=model.l2_path)
    elif takes_blocks(chosen, world):
        most = chosen.trainer.steps_per_execution
        kind = partial(BlockedClassifier, most=None if most == "auto" else most)
    classifier = kind(
        head,
        loss,
        optimizer=partial(optim.build_optimizer, chosen.optimizer),
        scheduler=partial(optim.build_scheduler, chosen.scheduler),
        l2=model.l2,
        record={"config": plain, "data": module.facts.to_plain()},
        grid=grid,
    )
    if chosen.accelerator.precision == "64-true":
        classifier.double()  # Lightning would only do so after it has loaded a checkpoint, and so round its weights
    # A class of the user's own may refuse.
    optimizer = together.agreed(lambda: optim.build_optimizer(chosen.optimizer, classifier.parameters()))
    if isinstance(optimizer, torch.optim.LBFGS) and chosen.trainer.accumulate_grad_batches > 1:
        raise UserError(config.ACCUMULATED_LBFGS)
    if shard is not None and not optim.is_elementwise(optimizer):
        raise UserError(
            f"optimizer._target_={type(optimizer).__module__}.{type(optimizer).__qualname__}: has only this process's "
            "classes to look at; if each weight's step depends on that weight alone, say so by 'elementwise = True' in "
            "the class"
        )
    last = LastPoints()
    loop = trainer.build(chosen, plain, directory, module, last, origin=origin, world=world, grid=grid)
    if origin is not None:
        origin.check_data(module.facts, directory)
        origin = together.from_first(partial(origin.adopt, directory))
    for logger in loop.loggers:
        _ = getattr(logger, "experiment", None)  # opens the event file; its imports are no part of fit's time
    return Run(directory, module, classifier, loop, last, origin, world)


def _check_convex(loss: losses.Loss, chosen: config.Loss, outputs: int) -> None:
    """Refuses a loss of the user's own that turns out not to be convex."""
    try:
        convex.costs(loss, torch.tensor([0, 1]), None, outputs)
    except convex.NotConvexError as error:
        named = getattr(chosen, "class_path", None)
        what = f"loss._target_={named}" if named else f"loss={chosen.__struct_config__.tag}"
        raise UserError(
            f"{what}: {error}, as optimizer=newton_cg needs it; optimizer=lbfgs or adam takes any loss"
        ) from error


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
