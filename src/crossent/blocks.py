"""Blocks of optimiser steps: several of them in one call of Lightning's, which costs as much as several small steps."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as lightning

from crossent import config
from crossent.data.loader import Batch, TrainLoader
from crossent.processes import together
from crossent.processes.world import World

# Seconds of a block whose length is `auto`: a few times what a call costs, and short enough for a progress bar.
_SECONDS = 0.05
_MANY = 2**52


def takes_blocks(chosen: config.TrainConfig, world: World) -> bool:
    """Whether several steps may be taken in one call, as it is with first-order optimisers.

    Others evaluate as often as they like, or take a closure of Lightning's. So do steps of several batches, of 16 bits,
    and of ranks with some of the classes each, and whatever looks at what is computed.
    """
    trainer, accelerator = chosen.trainer, chosen.accelerator
    looks = trainer.profiler or trainer.detect_anomaly or trainer.fast_dev_run or trainer.overfit_batches
    return (
        isinstance(chosen.optimizer, config.Sgd | config.Adam | config.AdamW)
        and trainer.accumulate_grad_batches == 1
        and not trainer.reload_dataloaders_every_n_epochs
        and accelerator.precision in ("32-true", "64-true")
        and not isinstance(accelerator, config.CustomAccelerator)
        and world.class_shards == 1
        and not looks
    )


class Block:
    """The steps that one call of Lightning's takes, and the counting that Lightning would have done between them.

    A block ends where something is due that happens between calls: a validation, the end of an epoch, or whatever
    `until` names. Where a batch has all rows, nothing happens at the end of an epoch, and a block goes on beyond it.

    Args:
        trainer: in the middle of a call, whose batch is the first one.
        most: steps; None: as many as a twentieth of a second has room for.
        until: each tells after how many steps from a step on something is due.
        is_wanted: whether something is to happen at once, between calls.
    """

    def __init__(
        self,
        trainer: lightning.Trainer,
        most: int | None,
        until: list[Callable[[int], int]],
        is_wanted: Callable[[], bool],
    ) -> None:
        self._trainer = trainer
        self._loop = trainer.fit_loop.epoch_loop
        loader = trainer.train_dataloader
        self._repeats = trainer.num_training_batches == 1 and isinstance(loader, TrainLoader) and loader.is_one_batch
        self._is_wanted = is_wanted
        self._ends_at = None if most else time.monotonic() + _SECONDS
        left = [self._left(), *(each(trainer.global_step) for each in until)]
        shortest = float(max(1, min(left if most is None else [most, *left])))
        self._most = int(-together.largest(-shortest)[0])  # of all ranks, which have to take the same steps
        self._taken = 1  # the one under way included
        self._settled = 1  # of these, Lightning counts the first itself

    def batches(self, first: Batch) -> Iterator[Batch]:
        """The batches of the steps, one by one; the first one, and as many more as there is to be steps."""
        batch = first
        while True:
            yield batch
            if self._taken >= self._most or self._is_over():
                return
            for each in self._trainer.lr_scheduler_configs:
                self._trainer.lightning_module.lr_scheduler_step(each.scheduler, None)
            batch = first if self._repeats else self._next()
            self._taken += 1

    @property
    def ahead(self) -> int:
        """Steps that Lightning has not counted yet."""
        return self._taken - self._settled

    @property
    def passed(self) -> int:
        """Batches of the epoch since the block's first one."""
        return 0 if self._repeats else self._taken - 1

    def settle(self) -> None:
        """Has Lightning count the steps so far, but for the last one, which it counts when the call ends."""
        steps, self._settled = self.ahead, self._taken
        if not steps:
            return
        loop, fit = self._loop, self._trainer.fit_loop
        optimizer = loop.automatic_optimization.optim_progress.optimizer
        counted: list[Any] = [optimizer.step, optimizer.zero_grad, loop.batch_progress]
        if self._trainer.lr_scheduler_configs:
            counted.append(loop.scheduler_progress)
        for progress in counted:
            _add(progress.total, steps)
            if not self._repeats:  # else each epoch begins to count anew
                _add(progress.current, steps)
        loop._batches_that_stepped += steps
        if self._repeats:
            _add(fit.epoch_progress.total, steps)
            _add(fit.epoch_progress.current, steps)
            loop.val_loop.batch_progress.total.reset()
            loader = self._trainer.train_dataloader
            assert isinstance(loader, TrainLoader)
            loader.repeat(steps)

    def _left(self) -> int:
        """Steps until Lightning has something to do, at least 1."""
        trainer, progress = self._trainer, self._loop.batch_progress
        epoch = trainer.current_epoch
        left = [trainer.max_steps - trainer.global_step] if trainer.max_steps > 0 else []
        if not self._repeats:
            left.append(int(trainer.num_training_batches) - progress.current.ready + 1)
        elif trainer.max_epochs is not None and trainer.max_epochs > 0:
            left.append(trainer.max_epochs - epoch)
        every, epochs = trainer.val_check_batch, trainer.check_val_every_n_epoch
        if trainer.enable_validation and every is not None and every != float("inf"):
            if epochs is None:
                left.append(int(every - (progress.total.ready - 1) % every))
            elif self._repeats:
                left.append(epochs - epoch % epochs)
            else:
                left.append(int(every - (progress.current.ready - 1) % every))
        return min(left, default=_MANY)

    def _is_over(self) -> bool:
        if self._is_wanted():
            return True
        return self._ends_at is not None and time.monotonic() >= self._ends_at

    def _next(self) -> Batch:
        fetcher = self._trainer.fit_loop._data_fetcher
        assert fetcher is not None
        batch: Batch = next(fetcher)[0]
        self._loop.batch_progress.is_last_batch = fetcher.done
        device = self._trainer.strategy.root_device
        return batch if batch.features.device == device else batch.to(device)


def _add(progress: Any, steps: int) -> None:
    """Counts steps in each of a tracker's numbers."""
    for name, value in vars(progress).items():
        setattr(progress, name, value + steps)
