"""The losses, by the names that ``loss=`` takes."""

from crossent import config
from crossent.custom import make
from crossent.losses.base import LogitLoss, Loss, Totals
from crossent.losses.binary import Binary
from crossent.losses.softmax import CrossEntropy, NegativeLogLikelihood, OneHot

__all__ = ["Binary", "CrossEntropy", "LogitLoss", "Loss", "NegativeLogLikelihood", "OneHot", "Totals", "build"]


def build(chosen: config.AnyLoss, classes: int) -> Loss:
    """Makes the loss that was chosen.

    Args:
        chosen: the section ``loss`` of the configuration.
        classes: how many classes the data has; ``auto`` goes by it.

    Raises:
        UserError: a class of the user's own that cannot be made.
    """
    match chosen:
        case config.AutoLoss():
            return Binary() if classes == 2 else CrossEntropy()
        case config.OneHotLoss():
            return OneHot()
        case config.NllLoss():
            return NegativeLogLikelihood()
        case config.CrossEntropyLoss():
            return CrossEntropy(chosen.label_smoothing)
        case config.BinaryLoss():
            return Binary(chosen.pos_weight)
        case config.Custom():
            return make("loss", chosen.class_path, chosen.arguments, Loss)
