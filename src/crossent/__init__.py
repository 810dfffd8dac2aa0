"""Crossent: softmax classifiers with PyTorch Lightning and Hydra.

Importing this package imports no torch; its modules do.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from crossent.trained import TrainedClassifier

__version__ = "0.1.0"


def load(run: "str | Path" = "latest") -> "TrainedClassifier":
    """Loads a trained classifier, with ``predict``, ``predict_proba``, ``classes_``, ``coef_`` and ``intercept_``.

    Args:
        run: ``latest``, a run directory, of which the best checkpoint is taken, or a checkpoint.

    Raises:
        crossent.errors.UserError: there is no such run, it has no checkpoint yet, or that is not whole.
    """
    from crossent import trained

    return trained.load(run)
