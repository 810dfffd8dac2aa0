"""Makes the data module that the configuration asks for."""

from crossent import config
from crossent.data.module import DataModule
from crossent.data.sources import source


def build(chosen: config.TrainConfig) -> DataModule:
    """Makes the data module that the configuration asks for.

    Raises:
        UserError: a class of the user's own that cannot be made.
    """
    rows = chosen.data
    return DataModule(
        source(rows, chosen.loss.ignore_index),
        whole=isinstance(chosen.optimizer, config.NewtonCg),
        batch_size=None if rows.batch_size == "full" else rows.batch_size,
        val_fraction=rows.val_share,
        test_fraction=rows.test_fraction,
        standardize=rows.standardize,
        shuffle=not chosen.trainer.overfit_batches,  # the same batches again and again
        seed=chosen.seed,
        limit=chosen.trainer.overfit_batches or chosen.trainer.limit_train_batches,
        ignore_index=chosen.loss.ignore_index,
        fills=isinstance(rows, config.FileData) and rows.missing == "mean",
    )
