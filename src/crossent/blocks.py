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

    Others evaluate as often as they like, or take a closure of Lightning's. So do steps in 16 bits, and of ranks with
    some of the classes each, and whatever looks at what is computed.
    """
    trainer, accelerator = chosen.trainer, chosen.accelerator
    looks = trainer.profiler or trainer.detect_anomaly or trainer.fast_dev_run or trainer.overfit_batches
    return (
        isinstance(chosen.optimizer, config.Sgd | config.Adam | config.AdamW)
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

    A step may take several batches, whose gradients are accumulated. Those of the first one, but for its last, had
    calls of their own.

    Args:
        trainer: in the middle of the call that takes a step.
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
        # Batches of the epoch, the one under way included. Lightning resumes from the end of an epoch within that one,
        # and from there on its epochs begin after the loader's.
        left = int(trainer.num_training_batches) - self._loop.batch_idx
        served_after = loader.left if isinstance(loader, TrainLoader) else left
        self._until_end = _MANY if self._repeats else min(left, 1 + served_after)
        self._until_val = self._batches_until_val()
        limits = [most or _MANY, self._steps_until_end(), *(each(trainer.global_step) for each in until)]
        shortest = float(max(1, min(limits)))
        self._most = int(-together.largest(-shortest)[0])  # of all ranks, which have to take the same steps
        self._taken = self._passed = 1  # steps and batches, with those under way
        self._settled = self._settled_batches = 1  # of these, Lightning counts the first itself

    def steps(self, last: Batch) -> Iterator[Iterator[Batch]]:
        """The batches of each step, of the first one but the last."""
        batches = iter((last,))
        while True:
            yield batches
            count = 1 if self._repeats else min(self._trainer.accumulate_grad_batches, self._until_end - self._passed)
            has_room = 0 < count <= self._until_val - self._passed
            if not has_room or self._taken >= self._most or self._is_over():
                return
            for each in self._trainer.lr_scheduler_configs:
                self._trainer.lightning_module.lr_scheduler_step(each.scheduler, None)
            self._taken += 1
            batches = self._next(last, count)

    @property
    def ahead(self) -> int:
        """Steps that Lightning has not counted yet."""
        return self._taken - self._settled

    def settle(self) -> None:
        """Has Lightning count the steps so far, but for the last one, which it counts when the call ends."""
        steps, self._settled = self.ahead, self._taken
        batches, self._settled_batches = self._passed - self._settled_batches, self._passed
        if not steps:
            return
        loop, fit = self._loop, self._trainer.fit_loop
        optimizer = loop.automatic_optimization.optim_progress.optimizer
        counted: list[tuple[Any, int]] = [
            (optimizer.step, steps),
            (optimizer.zero_grad, steps),
            (loop.batch_progress, batches),
        ]
        if self._trainer.lr_scheduler_configs:
            counted.append((loop.scheduler_progress, steps))
        for progress, more in counted:
            _add(progress.total, more)
            if not self._repeats:  # else each epoch begins to count anew
                _add(progress.current, more)
        loop._batches_that_stepped += steps
        if self._repeats:
            _add(fit.epoch_progress.total, steps)
            _add(fit.epoch_progress.current, steps)
            loop.val_loop.batch_progress.total.reset()
            loader = self._trainer.train_dataloader
            assert isinstance(loader, TrainLoader)
            loader.repeat(steps)

    def _steps_until_end(self) -> int:
        """Steps until the run ends, as far as it is by their number, or by that of epochs of one batch."""
        trainer = self._trainer
        left = [trainer.max_steps - trainer.global_step] if trainer.max_steps > 0 else []
        if self._repeats and trainer.max_epochs is not None and trainer.max_epochs > 0:
            left.append(trainer.max_epochs - trainer.current_epoch)
        return min(left, default=_MANY)

    def _batches_until_val(self) -> int:
        """Batches, the one under way included, until Lightning validates within an epoch, or after one of one batch."""
        trainer, progress = self._trainer, self._loop.batch_progress
        every, epochs = trainer.val_check_batch, trainer.check_val_every_n_epoch
        if not trainer.enable_validation or every is None or every == float("inf"):
            return _MANY
        if epochs is None:
            return int(every - (progress.total.ready - 1) % every)
        if self._repeats:
            return int(epochs - trainer.current_epoch % epochs)
        return int(every - self._loop.batch_idx % every)

    def _is_over(self) -> bool:
        if self._is_wanted():
            return True
        return self._ends_at is not None and time.monotonic() >= self._ends_at

    def _next(self, last: Batch, count: int) -> Iterator[Batch]:
        """As many batches as the next step takes."""
        for _ in range(count):
            self._passed += 1
            if self._repeats:
                yield last
                continue
            fetcher = self._trainer.fit_loop._data_fetcher
            assert fetcher is not None
            batch: Batch = next(fetcher)[0]
            self._loop.batch_progress.is_last_batch = fetcher.done
            device = self._trainer.strategy.root_device
            yield batch if batch.features.device == device else batch.to(device)


def _add(progress: Any, steps: int) -> None:
    """Counts steps in each of a tracker's numbers."""
    for name, value in vars(progress).items():
        setattr(progress, name, value + steps)
