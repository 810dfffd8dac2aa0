"""The configuration of ``crossent-evaluate``."""

from typing import Literal

from msgspec import Struct

from crossent.config.data import AnyData, FileData
from crossent.config.losses import AnyLoss
from crossent.config.running import Accelerator, SeveralProcesses, SplitClasses
from crossent.config.types import FilePath, Text


class EvaluationAccelerator(Accelerator):
    """One device, in the precision of the weights or a wider one."""


class AutoEvaluation(EvaluationAccelerator, tag="auto"):
    precision: Literal["32-true", "64-true"]


class CpuEvaluation(EvaluationAccelerator, tag="cpu"):
    precision: Literal["32-true", "64-true"]


class GpuEvaluation(EvaluationAccelerator, tag="gpu"):
    precision: Literal["32-true", "64-true"]


class MpsEvaluation(EvaluationAccelerator, tag="mps"):
    precision: Literal["32-true"]


class DdpEvaluation(SeveralProcesses, tag="ddp"):
    precision: Literal["32-true", "64-true"]


class DdpCpuEvaluation(SeveralProcesses, tag="ddp_cpu"):
    precision: Literal["32-true", "64-true"]


class ClassParallelEvaluation(SplitClasses, tag="class_parallel"):
    precision: Literal["32-true", "64-true"]


class ClassParallelCpuEvaluation(SplitClasses, tag="class_parallel_cpu"):
    precision: Literal["32-true", "64-true"]


AnyEvaluationAccelerator = (
    AutoEvaluation
    | CpuEvaluation
    | GpuEvaluation
    | MpsEvaluation
    | DdpEvaluation
    | DdpCpuEvaluation
    | ClassParallelEvaluation
    | ClassParallelCpuEvaluation
)


class EvaluateConfig(Struct, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration of ``crossent-evaluate``."""

    run: Text
    data: AnyData | None = None
    split: Literal["auto", "train", "val", "test", "all"]
    loss: AnyLoss | None = None
    output: FilePath | None
    overwrite: bool
    accelerator: AnyEvaluationAccelerator

    def __post_init__(self) -> None:
        if isinstance(self.accelerator, SplitClasses) and self.loss is not None:
            self.accelerator.check(self.loss, None)

    def files(self) -> dict[str, str]:
        """The path of every file to be read, under its key."""
        return self.data.files() if isinstance(self.data, FileData) else {}
