"""The losses, by the names that ``loss=`` takes."""

from collections.abc import Sequence
from typing import Any

import msgspec
import torch

from crossent import config
from crossent.class_shard import ClassShard
from crossent.custom import gist, make
from crossent.errors import UserError
from crossent.losses.base import Cost, LogitLoss, Loss, NeedsAllClassesError
from crossent.losses.binary import Binary
from crossent.losses.hinge import Hinge
from crossent.losses.row_losses import (
    Brier,
    CrossEntropy,
    Focal,
    GeneralizedCrossEntropy,
    LogitAdjusted,
    Poly1,
    RowLoss,
    SymmetricCrossEntropy,
)
from crossent.losses.statistics import Statistics
from crossent.losses.written_out import NegativeLogLikelihood, OneHot

__all__ = [
    "LOSSES",
    "Binary",
    "Brier",
    "Cost",
    "CrossEntropy",
    "Focal",
    "GeneralizedCrossEntropy",
    "Hinge",
    "LogitAdjusted",
    "LogitLoss",
    "Loss",
    "NegativeLogLikelihood",
    "OneHot",
    "Poly1",
    "RowLoss",
    "Statistics",
    "SymmetricCrossEntropy",
    "build",
]


#: The class behind each section of the configuration; the section's own keys are the class's arguments.
LOSSES: dict[type[config.Loss], type[Loss]] = {
    config.OneHotLoss: OneHot,
    config.NllLoss: NegativeLogLikelihood,
    config.CrossEntropyLoss: CrossEntropy,
    config.BinaryLoss: Binary,
    config.FocalLoss: Focal,
    config.Poly1Loss: Poly1,
    config.GeneralizedCrossEntropyLoss: GeneralizedCrossEntropy,
    config.SymmetricCrossEntropyLoss: SymmetricCrossEntropy,
    config.BrierLoss: Brier,
    config.LogitAdjustedLoss: LogitAdjusted,
    config.HingeLoss: Hinge,
}

_COMMON = frozenset(field.name for field in msgspec.structs.fields(config.Loss))


def build(chosen: config.Loss, class_counts: Sequence[int], shard: ClassShard | None = None) -> Loss:
    """Makes the loss that was chosen.

    Args:
        chosen: the section ``loss`` of the configuration.
        class_counts: training rows of each class, for what goes by their frequencies.
        shard: the classes whose weights the loss will be given, where other ranks have others; None: all of them.

    Raises:
        UserError: an option that the loss does not have or that does not fit the classes, or a class of the user's own
            that cannot be made.
    """
    if isinstance(chosen, config.AutoLoss):
        two = len(class_counts) == 2
        if two and (chosen.z_loss or chosen.backend == "chunked"):
            key = f"z_loss={chosen.z_loss:g}" if chosen.z_loss else "backend=chunked"
            raise UserError(f"loss.{key}: for 2 classes loss=auto is binary, which has no softmax; use cross_entropy")
        if two and shard is not None:
            raise UserError(
                "loss=auto: for 2 classes that is binary, whose one output cannot be split; use cross_entropy"
            )
        loss: Loss = Binary() if two else CrossEntropy()
    elif isinstance(chosen, config.CustomLoss):
        loss = _tried(make("loss", chosen.class_path, chosen.arguments, Loss), chosen, len(class_counts))
    else:
        loss = LOSSES[type(chosen)](**_arguments(chosen, class_counts))
    try:
        return loss.configure(
            class_weight=_class_weight(chosen.class_weight, class_counts),
            ignore_index=chosen.ignore_index,
            z_loss=chosen.z_loss,
            backend=chosen.backend,
            shard=shard,
        )
    except NeedsAllClassesError as error:
        raise UserError(
            f"loss={chosen.__struct_config__.tag}: {error}, and no process has all of them; accelerator=ddp_cpu splits "
            "the rows instead (accelerator=ddp on GPUs)"
        ) from error
    except ValueError as error:
        raise UserError(f"loss.{error}") from error


def _tried(loss: Loss, chosen: config.CustomLoss, classes: int) -> Loss:
    """A loss of the user's own, after two rows have gone through it."""
    try:
        outputs = loss.outputs(classes)
        cost: Cost = loss(torch.zeros(2, 1), torch.zeros(outputs, 1), None, torch.tensor([0, 1]))
        cost.mean.item()
    except UserError:
        raise
    except Exception as error:  # it is the user's code
        raise UserError(f"loss._target_={chosen.class_path}: {gist(error)}") from error
    return loss


def _arguments(chosen: config.Loss, class_counts: Sequence[int]) -> dict[str, Any]:
    arguments = {key: value for key, value in msgspec.structs.asdict(chosen).items() if key not in _COMMON}
    if isinstance(chosen, config.LogitAdjustedLoss):
        arguments["frequencies"] = _seen(class_counts)
    return arguments


def _class_weight(chosen: str | list[float] | None, class_counts: Sequence[int]) -> torch.Tensor | None:
    """One weight a class; ``balanced`` is scikit-learn's: rows / (classes · rows of the class)."""
    if chosen is None:
        return None
    if isinstance(chosen, str):
        return sum(class_counts) / (len(class_counts) * _seen(class_counts))
    if len(chosen) != len(class_counts):
        raise UserError(f"loss.class_weight: {len(chosen)} numbers, but the data has {len(class_counts)} classes")
    return torch.tensor(chosen, dtype=torch.float64)


def _seen(class_counts: Sequence[int]) -> torch.Tensor:
    """Rows of each class, (classes,).

    A class without any counts as one row, since its frequency has to have a logarithm and an inverse.
    """
    return torch.tensor(class_counts, dtype=torch.float64).clamp(min=1)
