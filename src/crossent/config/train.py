"""The configuration of ``crossent-train``."""

from typing import Literal

from msgspec import Struct

from crossent.config.data import AnyData, FileData
from crossent.config.losses import AnyLoss
from crossent.config.optimizers import AnyOptimizer, AnyScheduler, CosineScheduler, Lbfgs, NewtonCg, NoScheduler
from crossent.config.running import AnyAccelerator, AnyLogger, Callbacks, MpsAccelerator, SplitClasses, Trainer
from crossent.config.types import NonNegative, Seed, Text

Bias = Literal["per_class", "shared", "none"]
Init = Literal["default", "zeros", "notebook"]


Calibration = Literal["temperature"]


class Model(Struct, kw_only=True, forbid_unknown_fields=True):
    bias: Bias
    init: Init
    warm_start: Text | None
    l2: NonNegative
    l2_path: list[NonNegative] | None


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
        if isinstance(self.optimizer, NewtonCg):
            self._check_solver(self.optimizer)
        if self.model.l2_path is not None:
            self._check_path()

    def _check_path(self) -> None:
        """Refuses a path of penalties whose fits nobody could tell the end of, or compare."""
        if not self.model.l2_path:
            raise ValueError("model.l2_path=[]: has no penalty; give some, strong ones first, as in [0.1,0.01,0.001]")
        falling = sorted(set(self.model.l2_path), reverse=True)
        if self.model.l2_path != falling:
            given, instead = (",".join(f"{l2:g}" for l2 in path) for path in (self.model.l2_path, falling))
            raise ValueError(
                f"model.l2_path=[{given}]: each is fitted from the one before, so strong ones come first, and each "
                f"once: [{instead}]"
            )
        if self.model.l2:
            raise ValueError(f"model.l2={self.model.l2:g}: model.l2_path has the penalties already; leave it out")
        if not isinstance(self.optimizer, NewtonCg):
            raise ValueError(
                f"model.l2_path: optimizer={self.optimizer.__struct_config__.tag} does not say when it has fitted a "
                "penalty; use optimizer=newton_cg"
            )
        if self.data.val_share == 0 and not _has_val_file(self.data):
            raise ValueError("model.l2_path: is judged by validation rows; set data.val_fraction=0.1")

    def _check_solver(self, optimizer: NewtonCg) -> None:
        """Refuses what a solver for convex losses, which takes all rows a step, cannot do."""
        solver, loss, trainer = f"optimizer={optimizer.__struct_config__.tag}", self.loss, self.trainer
        name = loss.__struct_config__.tag
        instead = "cross_entropy is convex (and binary, logit_adjusted, nll, one_hot, hinge)"
        if not loss.is_convex:
            which = f"loss.z_loss={loss.z_loss:g}" if loss.z_loss else f"loss={name}"
            raise ValueError(
                f"{which}: not convex in the weights, so {solver} has no optimum to be certain of; {instead}, and "
                "optimizer=lbfgs or adam takes any loss"
            )
        if self.data.batch_size != "full":
            raise ValueError(
                f"data.batch_size={self.data.batch_size}: {solver} takes all rows at every step, from memory or from "
                "their file; use data.batch_size=full"
            )
        if not isinstance(self.scheduler, NoScheduler):
            scheduler = self.scheduler.__struct_config__.tag
            raise ValueError(f"scheduler={scheduler}: {solver} has no learning rate; leave it out")
        if trainer.accumulate_grad_batches > 1:
            raise ValueError(
                f"trainer.accumulate_grad_batches: {solver} takes all rows at every step anyway; leave it at 1"
            )
        if trainer.gradient_clip_val:
            raise ValueError(f"trainer.gradient_clip_val: {solver} searches along its steps itself; leave it at null")
        if isinstance(self.accelerator, MpsAccelerator):
            raise ValueError(f"accelerator=mps: {solver} needs double precision, which an Apple GPU lacks; use cpu")
        if self.accelerator.precision not in ("32-true", "64-true"):
            raise ValueError(f"accelerator.precision={self.accelerator.precision}: {solver} needs 32-true or 64-true")
