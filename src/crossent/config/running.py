"""What runs and watches: the groups ``accelerator``, ``trainer``, ``logger`` and ``callbacks``."""

from typing import Literal

from msgspec import Struct

from crossent.config.losses import AnyLoss, WholeRowLoss
from crossent.config.optimizers import AnyOptimizer, Lbfgs, NewtonCg
from crossent.config.types import (
    Arguments,
    AtLeastOne,
    ClassPath,
    Count,
    CountOrShare,
    Duration,
    Limit,
    NonNegative,
    Positive,
    Section,
    Share,
    Text,
)

Precision = Literal["32-true", "64-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true"]


class Accelerator(Section):
    """What one process drives."""

    devices: AtLeastOne
    num_nodes: AtLeastOne
    precision: Precision
    threads: Literal["auto"] | AtLeastOne

    def __post_init__(self) -> None:
        for key in ("devices", "num_nodes"):
            if (count := getattr(self, key)) > 1:
                raise ValueError(
                    f"{key}={count}: accelerator={self.__struct_config__.tag} takes one; accelerator=ddp shares the "
                    "rows among processes on several GPUs, accelerator=ddp_cpu on the CPU"
                )


class AutoAccelerator(Accelerator, tag="auto"):
    pass


class CpuAccelerator(Accelerator, tag="cpu"):
    pass


class GpuAccelerator(Accelerator, tag="gpu"):
    pass


class MpsAccelerator(Accelerator, tag="mps"):
    precision: Literal["32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true"]


class CustomAccelerator(Accelerator, tag="custom"):
    class_path: ClassPath
    arguments: Arguments


class SeveralProcesses(Section):
    """What several processes share, one for each device."""

    devices: Literal["auto"] | AtLeastOne
    num_nodes: Literal["auto"] | AtLeastOne
    precision: Precision
    threads: Literal["auto"] | AtLeastOne
    timeout: Positive


class DdpAccelerator(SeveralProcesses, tag="ddp"):
    pass


class DdpCpuAccelerator(SeveralProcesses, tag="ddp_cpu"):
    pass


def does_not_divide(processes: int) -> str:
    """What is wrong with a number of class shards that does not divide that of the processes."""
    return (
        f"the number of processes (accelerator.devices) has to be a multiple of it, and is {processes}; "
        "class_shards=auto has all of them share out the classes"
    )


class SplitClasses(SeveralProcesses):
    """Each process has the weights of some of the classes."""

    class_shards: Literal["auto"] | AtLeastOne

    def __post_init__(self) -> None:
        if self.precision == "16-mixed":
            raise ValueError(
                "precision=16-mixed: scales gradients by what they have been, of which each process would know its own "
                "classes' alone; use bf16-mixed"
            )
        devices, shards = self.devices, self.class_shards
        if isinstance(devices, int) and isinstance(shards, int) and self.num_nodes in ("auto", 1) and devices % shards:
            raise ValueError(f"class_shards={shards}: {does_not_divide(devices)}")

    def check(self, loss: AnyLoss, optimizer: AnyOptimizer | None) -> None:
        """Refuses what needs all classes at once.

        Raises:
            ValueError: the loss or the optimiser does.
        """
        name = self.__struct_config__.tag
        if 1 in (self.class_shards, self.devices):
            return
        rows = str(name).replace("class_parallel", "ddp")
        if isinstance(loss, WholeRowLoss):
            raise ValueError(
                f"loss={loss.__struct_config__.tag}: needs the logits of all classes of a row, and with "
                f"accelerator={name} no process has all of them; use cross_entropy or another loss that depends on few "
                f"numbers of a row, or accelerator={rows}, which splits the rows"
            )
        if isinstance(optimizer, Lbfgs | NewtonCg):
            raise ValueError(
                f"optimizer={optimizer.__struct_config__.tag}: searches along the gradient by all weights, and with "
                f"accelerator={name} no process "
                f"has all of them; use sgd, adam or adamw, or accelerator={rows}"
            )


class ClassParallelAccelerator(SplitClasses, tag="class_parallel"):
    pass


class ClassParallelCpuAccelerator(SplitClasses, tag="class_parallel_cpu"):
    pass


AnyAccelerator = (
    AutoAccelerator
    | CpuAccelerator
    | GpuAccelerator
    | MpsAccelerator
    | DdpAccelerator
    | DdpCpuAccelerator
    | ClassParallelAccelerator
    | ClassParallelCpuAccelerator
    | CustomAccelerator
)


#: Lightning's Trainer arguments that have a place elsewhere, and where.
TRAINER_ELSEWHERE = {
    "accelerator": "accelerator=<name>",
    "strategy": "accelerator=<name>",
    "devices": "accelerator.devices",
    "num_nodes": "accelerator.num_nodes",
    "precision": "accelerator.precision",
    "logger": "logger=<name>",
    "callbacks": "callbacks.*",
    "plugins": "accelerator=<name>",
    "default_root_dir": "hydra.run.dir",
}


#: What of ``trainer`` is no argument of Lightning's ``Trainer``.
TRAINER_OWN = frozenset({"steps_per_execution"})


class Trainer(Struct, kw_only=True, forbid_unknown_fields=True):
    """Lightning's ``Trainer`` arguments, but for those of `TRAINER_ELSEWHERE`; and `TRAINER_OWN`, which is Keras's."""

    max_steps: Limit
    max_epochs: Limit | None
    min_steps: Count | None
    min_epochs: Count | None
    max_time: Duration | None
    log_every_n_steps: AtLeastOne
    val_check_interval: AtLeastOne | Share
    check_val_every_n_epoch: AtLeastOne | None
    num_sanity_val_steps: Limit
    accumulate_grad_batches: AtLeastOne
    gradient_clip_val: NonNegative | None
    gradient_clip_algorithm: Literal["norm", "value"] | None
    limit_train_batches: CountOrShare | None
    limit_val_batches: CountOrShare | None
    limit_test_batches: CountOrShare | None
    limit_predict_batches: CountOrShare | None
    overfit_batches: CountOrShare
    fast_dev_run: bool | Count
    enable_checkpointing: bool
    enable_progress_bar: bool
    enable_model_summary: bool
    profiler: Literal["simple", "advanced", "pytorch"] | None
    detect_anomaly: bool
    deterministic: bool | Literal["warn"] | None
    benchmark: bool | None
    inference_mode: bool
    use_distributed_sampler: bool
    sync_batchnorm: bool
    reload_dataloaders_every_n_epochs: Count
    barebones: bool
    enable_autolog_hparams: bool
    model_registry: Text | None
    steps_per_execution: AtLeastOne | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if self.max_steps == -1 and self.max_epochs in (None, -1) and self.max_time is None:
            raise ValueError("the run has no end; set max_steps, max_epochs or max_time")
        if self.min_steps is not None and self.min_steps > self.max_steps > -1:
            raise ValueError(f"min_steps={self.min_steps} is more than max_steps={self.max_steps}")


class TensorBoardLogger(Section, tag="tensorboard"):
    flush_seconds: NonNegative
    figures: bool


class NoLogger(Section, tag="none"):
    pass


AnyLogger = TensorBoardLogger | NoLogger


class Checkpoint(Struct, kw_only=True, forbid_unknown_fields=True):
    every_minutes: Positive | None
    every_n_steps: AtLeastOne | None
    keep: AtLeastOne


class EarlyStopping(Struct, kw_only=True, forbid_unknown_fields=True):
    patience: AtLeastOne | None
    min_delta: NonNegative


class Callbacks(Struct, kw_only=True, forbid_unknown_fields=True):
    checkpoint: Checkpoint
    early_stopping: EarlyStopping
