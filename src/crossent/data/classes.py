"""From labels to the indices of classes, and back. Imports no torch."""

from collections.abc import Sequence

import numpy as np

from crossent.data.facts import Labels
from crossent.data.storage import Numbers


def find_classes(known: Numbers, labels: Numbers, ignored: int | None) -> tuple[Numbers, Numbers]:
    """Looks labels up among the classes.

    Args:
        known: (classes,), the classes.
        labels: (rows,), of the same type.
        ignored: a label that is no class but stays as it is: its rows count for nothing; None: there is none.

    Returns:
        The index of each row's class, (rows,), int64, and which labels are no class.
    """
    if not len(known):
        codes, unknown = np.zeros(len(labels), np.int64), np.ones(len(labels), np.bool_)
    else:
        order = known.argsort()
        codes = order[np.searchsorted(known, labels, sorter=order).clip(max=len(known) - 1)]
        unknown = known[codes] != labels
    if ignored is not None:
        skipped = labels == ignored
        codes, unknown = np.where(skipped, ignored, codes), unknown & ~skipped
    return codes.astype(np.int64), unknown


def class_values(names: Sequence[str], labels: Labels) -> Numbers:
    """The classes as what they were before they had names: texts, true and false, or whole numbers, (classes,)."""
    if labels == "texts":
        return np.array(names)
    if labels == "booleans":
        return np.array([name == "true" for name in names])
    return np.array([int(name) for name in names], np.int64)
