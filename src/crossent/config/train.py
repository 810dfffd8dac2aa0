"""The configuration of ``crossent-train``."""

from typing import Literal

from msgspec import Struct

from crossent.config.data import AnyData, FileData
from crossent.config.losses import AnyLoss
from crossent.config.optimizers import AnyOptimizer, AnyScheduler, CosineScheduler, Lbfgs
from crossent.config.running import AnyAccelerator, AnyLogger, Callbacks, SplitClasses, Trainer
from crossent.config.types import NonNegative, Seed, Text

Bias = Literal["per_class", "shared", "none"]
Init = Literal["default", "zeros", "notebook"]


Calibration = Literal["temperature"]


class Model(Struct, kw_only=True, forbid_unknown_fields=True):
    bias: Bias
    init: Init
    l2: NonNegative


ACCUMULATED_LBFGS = (
    "trainer.accumulate_grad_batches: lbfgs evaluates several times a step, and would accumulate each; "
    "use larger batches"
)


def _has_val_file(data: AnyData) -> bool:
    return isinstance(data, FileData) and data.val_path is not None


class TrainConfig(Struct, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration of ``crossent-train``."""

    seed: Seed
    resume: Text | None
    config: Text | None
    data: AnyData
    model: Model
    loss: AnyLoss
    optimizer: AnyOptimizer
    scheduler: AnyScheduler
    accelerator: AnyAccelerator
    trainer: Trainer
    logger: AnyLogger
    callbacks: Callbacks
    calibration: Calibration | None

    def __post_init__(self) -> None:
        if self.resume is not None and self.trainer.fast_dev_run:
            raise ValueError("trainer.fast_dev_run=true: a try-out does not go on with a run; leave resume out")
        if self.calibration is not None and self.data.val_share == 0 and not _has_val_file(self.data):
            raise ValueError(f"calibration={self.calibration}: needs validation rows; set data.val_fraction=0.1")
        if self.calibration is not None and not self.trainer.enable_checkpointing:
            raise ValueError(
                f"calibration={self.calibration}: is stored in checkpoints, and trainer.enable_checkpointing is false"
            )
        trainer = self.trainer
        endless = trainer.max_steps == -1 and trainer.max_epochs in (None, -1)
        if endless and isinstance(self.scheduler, CosineScheduler) and self.scheduler.steps is None:
            raise ValueError("scheduler.steps=null: the run's length is not known; give the number of steps")
        if isinstance(self.optimizer, Lbfgs) and trainer.accumulate_grad_batches > 1:
            raise ValueError(ACCUMULATED_LBFGS)
        if isinstance(self.accelerator, SplitClasses):
            self.accelerator.check(self.loss, self.optimizer)
