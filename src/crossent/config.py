"""Every key of the configuration: its type and its range, once.

The defaults, each with its why, are in ``conf/``. This module imports no torch, so that a wrong override is
answered at once.
"""

import codecs
import sys
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

_LARGEST = sys.float_info.max  # as an upper bound it keeps infinity out; NaN fails every bound

Seed = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Count = Annotated[int, Meta(ge=0)]
AtLeastOne = Annotated[int, Meta(ge=1)]
AtLeastTwo = Annotated[int, Meta(ge=2)]
One = Literal[1]
Limit = Annotated[int, Meta(ge=-1)]
Positive = Annotated[float, Meta(gt=0, le=_LARGEST)]
NonNegative = Annotated[float, Meta(ge=0, le=_LARGEST)]
Coefficient = Annotated[float, Meta(ge=0, le=1e6)]  # of a formula in float32
PositiveCoefficient = Annotated[float, Meta(gt=0, le=1e6)]
Share = Annotated[float, Meta(ge=0, le=1)]
ProperShare = Annotated[float, Meta(ge=0, lt=1)]
CountOrShare = Count | Share
InMemory = Literal["auto"] | bool
Text = Annotated[str, Meta(min_length=1)]
FilePath = Annotated[str, Meta(pattern=r"^(?!\?\?\?$).", description="a path")]  # ??? is OmegaConf's for not set
Duration = Annotated[str, Meta(pattern=r"^\d+:\d\d:\d\d:\d\d$", description="a time as DD:HH:MM:SS")]
ClassPath = Annotated[str, Meta(pattern=r"^\w+(\.\w+)+$", description="a class as package.module.Class")]
Arguments = dict[str, Any]  # whatever the user's class takes


class Section(Struct, kw_only=True, forbid_unknown_fields=True, tag_field="name"):
    """A part of the configuration; a group's choices are told apart by their key ``name``."""


class Custom(Section, tag="custom"):
    """A class of the user's own, and the keyword arguments it is made with."""

    class_path: ClassPath
    arguments: Arguments


# -- data ---------------------------------------------------------------------------------------------------


class Data(Section):
    """What every source has: how its rows are split, scaled and batched."""

    batch_size: Literal["full"] | AtLeastOne
    test_fraction: ProperShare
    standardize: bool

    def __post_init__(self) -> None:
        together = self.val_share + self.test_fraction
        if together >= 1:
            raise ValueError(f"val_fraction + test_fraction = {together:g} leaves no row to train on")

    @property
    def val_share(self) -> float:
        """The fraction of the rows that is for validation."""
        raise NotImplementedError


class OneTable(Data):
    """Has all rows in one place."""

    val_fraction: ProperShare

    @property
    def val_share(self) -> float:
        return self.val_fraction


class ToyData(OneTable, tag="toy"):
    pass


class IrisData(OneTable, tag="iris"):
    pass


class WineData(OneTable, tag="wine"):
    pass


class DigitsData(OneTable, tag="digits"):
    pass


class BreastCancerData(OneTable, tag="breast_cancer"):
    pass


class CustomData(OneTable, tag="custom"):
    class_path: ClassPath
    arguments: Arguments


class SyntheticData(OneTable, tag="synthetic"):
    in_memory: InMemory
    rows: AtLeastTwo
    features: AtLeastOne
    classes: AtLeastTwo
    signal: Coefficient
    zipf: Coefficient
    seed: Seed


class FileData(Data):
    """Is read from a file, or from one each for training, validation and testing."""

    in_memory: InMemory
    path: FilePath
    target: Text | int | None  # columns may have numbers for names
    weight: Text | int | None
    val_path: Text | None
    test_path: Text | None
    val_fraction: ProperShare | None
    missing: Literal["error", "mean", "drop"]

    def __post_init__(self) -> None:
        super().__post_init__()
        for split, fraction in (("val", self.val_fraction), ("test", self.test_fraction)):
            path = getattr(self, f"{split}_path")
            if path is not None and fraction:
                raise ValueError(
                    f"{split}_fraction={fraction:g}: {split}_path={path} has those rows; leave one of them out"
                )

    @property
    def val_share(self) -> float:
        """The fraction of the rows that is for validation: where it is not set, a tenth unless a file has them."""
        if self.val_fraction is None:
            return 0.0 if self.val_path is not None else 0.1
        return self.val_fraction

    def files(self) -> dict[str, str]:
        """The path of every file to be read, under its key."""
        paths = {"path": self.path, "val_path": self.val_path, "test_path": self.test_path}
        return {f"data.{key}": path for key, path in paths.items() if path is not None}


class TableData(FileData):
    """A file with named columns."""

    features: list[Text | int] | None
    max_categories: AtLeastOne


class CsvData(TableData, tag="csv"):
    delimiter: Annotated[str, Meta(pattern=r"^([ !#-~\t]|\\t|tab)$", description="one character, or tab")]
    decimal: Literal[".", ","]
    encoding: Text
    header: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decimal == self.delimiter:
            raise ValueError(f"decimal={self.decimal}: the same as delimiter; a number would be two columns")
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise ValueError(f"encoding={self.encoding}: no such encoding; utf8 and latin-1 are usual") from None


class ParquetData(TableData, tag="parquet"):
    pass


class ArraysData(FileData, tag="arrays"):
    features: Text | None
    val_target: Text | None
    test_target: Text | None

    def __post_init__(self) -> None:
        super().__post_init__()
        for split in ("", "val_", "test_"):
            path, target = getattr(self, f"{split}path"), getattr(self, f"{split}target")
            if path is None and target is not None:
                raise ValueError(f"{split}target={target}: {split}path is not set")
            if path is None:
                continue
            archive = path.endswith(".npz")
            if not archive and target is None:
                raise ValueError(
                    f"{split}target: not set; {path} has the features, {split}target is the .npy of the classes"
                )
            if not archive and self.features is not None:
                raise ValueError(f"features={self.features}: names an array of a .npz file, which {path} is not")
            if split and archive and target is not None:
                raise ValueError(f"{split}target={target}: {path} has its classes under the name that target gives")

    def files(self) -> dict[str, str]:
        found = super().files()
        pairs = {"path": ("target", "weight"), "val_path": ("val_target",), "test_path": ("test_target",)}
        for path, keys in pairs.items():
            if f"data.{path}" in found and not found[f"data.{path}"].endswith(".npz"):
                found |= {f"data.{key}": str(getattr(self, key)) for key in keys if getattr(self, key) is not None}
        return found


BundledData = IrisData | WineData | DigitsData | BreastCancerData
AnyData = ToyData | BundledData | SyntheticData | CsvData | ParquetData | ArraysData | CustomData


# -- model --------------------------------------------------------------------------------------------------

Bias = Literal["per_class", "shared", "none"]
Init = Literal["default", "zeros", "notebook"]


class Model(Struct, kw_only=True, forbid_unknown_fields=True):
    bias: Bias
    init: Init
    l2: NonNegative


# -- loss ---------------------------------------------------------------------------------------------------


class Loss(Section):
    """What every loss has."""

    class_weight: Literal["balanced"] | list[Coefficient] | None
    ignore_index: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
    z_loss: Coefficient
    backend: Literal["auto", "dense", "chunked"]

    def __post_init__(self) -> None:
        if isinstance(self.class_weight, list) and not any(self.class_weight):
            raise ValueError(f"class_weight={self.class_weight}: at least one has to be above 0")


class AutoLoss(Loss, tag="auto"):
    pass


class CustomLoss(Loss, tag="custom"):
    class_path: ClassPath
    arguments: Arguments


class RowLoss(Loss):
    """Depends on few numbers of each row, so it need never hold all logits."""


class WholeRowLoss(Loss):
    """Needs all logits of a row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backend == "chunked":
            raise ValueError(
                f"backend=chunked: {self.__struct_config__.tag} needs all logits at once; use backend=dense, or a loss "
                "that depends on few numbers of a row, as cross_entropy does"
            )


class LossWithoutSoftmax(WholeRowLoss):
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.z_loss:
            raise ValueError(
                f"z_loss={self.z_loss:g}: {self.__struct_config__.tag} has no softmax, whose normaliser z_loss holds; "
                "leave it at 0"
            )


class OneHotLoss(WholeRowLoss, tag="one_hot"):
    pass


class NllLoss(WholeRowLoss, tag="nll"):
    pass


class BinaryLoss(LossWithoutSoftmax, tag="binary"):
    pos_weight: PositiveCoefficient | None


class HingeLoss(LossWithoutSoftmax, tag="hinge"):
    margin: PositiveCoefficient
    p: Literal[1, 2]


class CrossEntropyLoss(RowLoss, tag="cross_entropy"):
    label_smoothing: Share


class LogitAdjustedLoss(RowLoss, tag="logit_adjusted"):
    tau: Coefficient


class FocalLoss(RowLoss, tag="focal"):
    gamma: Coefficient


class Poly1Loss(RowLoss, tag="poly1"):
    epsilon: Annotated[float, Meta(ge=-1, le=1e6)]


class GeneralizedCrossEntropyLoss(RowLoss, tag="generalized_cross_entropy"):
    q: Annotated[float, Meta(gt=0, le=1)]


class SymmetricCrossEntropyLoss(RowLoss, tag="symmetric_cross_entropy"):
    alpha: Coefficient
    beta: Coefficient
    A: Annotated[float, Meta(lt=0, ge=-1e6)]


class BrierLoss(RowLoss, tag="brier"):
    pass


AnyLoss = (
    AutoLoss
    | OneHotLoss
    | NllLoss
    | CrossEntropyLoss
    | BinaryLoss
    | FocalLoss
    | Poly1Loss
    | GeneralizedCrossEntropyLoss
    | SymmetricCrossEntropyLoss
    | BrierLoss
    | LogitAdjustedLoss
    | HingeLoss
    | CustomLoss
)


# -- optimiser and scheduler --------------------------------------------------------------------------------


class Sgd(Section, tag="sgd"):
    lr: Positive
    momentum: NonNegative
    dampening: NonNegative
    nesterov: bool
    weight_decay: NonNegative

    def __post_init__(self) -> None:
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError("nesterov=true needs momentum above 0 and dampening=0")


class Adam(Section, tag="adam"):
    lr: Positive
    betas: tuple[ProperShare, ProperShare]
    eps: NonNegative
    amsgrad: bool
    weight_decay: NonNegative


class AdamW(Adam, tag="adamw"):
    pass


class Lbfgs(Section, tag="lbfgs"):
    lr: Positive
    max_iter: AtLeastOne
    max_eval: AtLeastOne | None
    tolerance_grad: NonNegative
    tolerance_change: NonNegative
    history_size: AtLeastOne
    line_search_fn: Literal["strong_wolfe"] | None


AnyOptimizer = Sgd | Adam | AdamW | Lbfgs | Custom


class NoScheduler(Section, tag="none"):
    pass


class CosineScheduler(Section, tag="cosine"):
    steps: AtLeastOne | None
    eta_min: NonNegative


class StepScheduler(Section, tag="step"):
    step_size: AtLeastOne
    gamma: Positive


AnyScheduler = NoScheduler | CosineScheduler | StepScheduler | Custom


# -- accelerator --------------------------------------------------------------------------------------------

Precision = Literal["32-true", "64-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true"]


class Accelerator(Section):
    devices: One
    num_nodes: One
    precision: Precision
    threads: Literal["auto"] | AtLeastOne


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


AnyAccelerator = AutoAccelerator | CpuAccelerator | GpuAccelerator | MpsAccelerator | CustomAccelerator


# -- trainer ------------------------------------------------------------------------------------------------

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


class Trainer(Struct, kw_only=True, forbid_unknown_fields=True):
    """Lightning's ``Trainer`` arguments, but for those of `TRAINER_ELSEWHERE`."""

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

    def __post_init__(self) -> None:
        if self.max_steps == -1 and self.max_epochs in (None, -1) and self.max_time is None:
            raise ValueError("the run has no end; set max_steps, max_epochs or max_time")
        if self.min_steps is not None and self.min_steps > self.max_steps > -1:
            raise ValueError(f"min_steps={self.min_steps} is more than max_steps={self.max_steps}")


# -- what watches a run -------------------------------------------------------------------------------------


class TensorBoardLogger(Section, tag="tensorboard"):
    flush_seconds: NonNegative


class NoLogger(Section, tag="none"):
    pass


AnyLogger = TensorBoardLogger | NoLogger


class Checkpoint(Struct, kw_only=True, forbid_unknown_fields=True):
    every_minutes: Positive | None
    every_n_steps: AtLeastOne | None


class EarlyStopping(Struct, kw_only=True, forbid_unknown_fields=True):
    patience: AtLeastOne | None
    min_delta: NonNegative


class Callbacks(Struct, kw_only=True, forbid_unknown_fields=True):
    checkpoint: Checkpoint
    early_stopping: EarlyStopping


ACCUMULATED_LBFGS = (
    "trainer.accumulate_grad_batches: lbfgs evaluates several times a step, and would accumulate each; "
    "use larger batches"
)


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

    def __post_init__(self) -> None:
        trainer = self.trainer
        endless = trainer.max_steps == -1 and trainer.max_epochs in (None, -1)
        if endless and isinstance(self.scheduler, CosineScheduler) and self.scheduler.steps is None:
            raise ValueError("scheduler.steps=null: the run's length is not known; give the number of steps")
        if isinstance(self.optimizer, Lbfgs) and trainer.accumulate_grad_batches > 1:
            raise ValueError(ACCUMULATED_LBFGS)


# -- the other commands -------------------------------------------------------------------------------------

Logit = Annotated[float, Meta(ge=-1e6, le=1e6)]
Picture = Annotated[str, Meta(pattern=r"\.png$", description="a path that ends in .png")]


class ExplainConfig(Struct, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration of ``crossent-explain``."""

    logits: list[list[Logit]] | None
    targets: list[Count] | None
    loss: AnyLoss | None = None
    dtype: Literal["float64", "float32", "bfloat16", "float16"]
    plot: Picture | None

    def __post_init__(self) -> None:
        if (self.logits is None) != (self.targets is None):
            raise ValueError("logits and targets go together: logits=[[1,2,3],[0,5,1]] targets=[2,1]")
        if self.logits is None or self.targets is None:
            return
        classes = len(self.logits[0]) if self.logits else 0
        for row, logits in enumerate(self.logits):
            if len(logits) != classes:
                raise ValueError(f"logits.{row}: {len(logits)} numbers, but {classes} in the first row")
        if classes < 2:
            raise ValueError("logits: a row needs 2 or more, one a class")
        if len(self.targets) != len(self.logits):
            raise ValueError(f"targets: {len(self.targets)}, but logits has {len(self.logits)} rows")
        for row, target in enumerate(self.targets):
            if target >= classes:
                raise ValueError(f"targets.{row}={target}: expected 0 to {classes - 1}, a place in the row of logits")


#: The groups of ``conf/`` whose choices are told apart by their key ``name``.
NAMED_GROUPS = ("data", "loss", "optimizer", "scheduler", "accelerator", "logger")
