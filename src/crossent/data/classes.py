"""From labels to the indices of classes."""

import numpy as np

from crossent.data.storage import Numbers


def find_classes(known: Numbers, labels: Numbers, ignored: int | None) -> tuple[Numbers, Numbers]:
    """Looks labels up among the classes.

    Args:
        known: (classes,), the classes in ascending order.
        labels: (rows,), of the same type.
        ignored: a label that is no class but stays as it is: its rows count for nothing; None: there is none.

    Returns:
        The index of each row's class, (rows,), int64, and which labels are no class.
    """
    if not len(known):
        codes, unknown = np.zeros(len(labels), np.int64), np.ones(len(labels), np.bool_)
    else:
        codes = np.searchsorted(known, labels).clip(max=len(known) - 1)
        unknown = known[codes] != labels
    if ignored is not None:
        skipped = labels == ignored
        codes, unknown = np.where(skipped, ignored, codes), unknown & ~skipped
    return codes.astype(np.int64), unknown
