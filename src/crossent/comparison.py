"""Runs compared: what differs between them, and how good those are that differ in nothing but their seed.

Imports no torch.
"""

import math
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from crossent import hyperparameters, runs
from crossent.console import shown
from crossent.hyperparameters import Value
from crossent.run_records import RunRecord

_SPLITS = ("val", "test", "train")  # the first one that runs have says how good they are
_BETTER_IF_HIGHER = ("accuracy", "top5_accuracy", "balanced_accuracy", "macro_f1")


@dataclass(frozen=True)
class Statistic:
    """A metric over the runs of a row.

    Attributes:
        mean: over the runs that have it.
        deviation: the standard deviation, with n − 1 in the divisor; None of a single run.
    """

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Statistic":
        """Of one value a run."""
        finite = all(math.isfinite(value) for value in values)
        mean = statistics.fmean(values) if finite else math.nan
        return cls(mean, statistics.stdev(values) if finite and len(values) > 1 else None)


@dataclass(frozen=True)
class Row:
    """Runs that differ in nothing but their seed.

    Attributes:
        values: by the keys in which it differs from other rows; None: it has no such key.
        runs: in the order of their seeds.
        metrics: by the curves' tags.
    """

    values: dict[str, Value | None]
    runs: list[RunRecord]
    metrics: dict[str, Statistic]


@dataclass(frozen=True)
class Comparison:
    """Runs compared.

    Attributes:
        rows: the best one first; those without the metric last.
        metric: that says which is best; None: no run has any.
        higher: whether more of it is better.
        same: the keys in which no two runs differ, with their value.
    """

    rows: list[Row]
    metric: str | None
    higher: bool
    same: dict[str, Value]

    @property
    def keys(self) -> list[str]:
        """In which the rows differ."""
        return list(self.rows[0].values) if self.rows else []

    @property
    def best(self) -> Row | None:
        """The best row, where the metric is known of any."""
        return self.rows[0] if self.rows and self.metric in self.rows[0].metrics else None


def compare(records: Sequence[RunRecord], metric: str | None = None) -> Comparison:
    """Compares finished runs.

    Args:
        records: of the runs.
        metric: the tag of the curve that says which is best; None: the cost of the val rows, else of the test rows,
            else of the train rows; or the accuracy of those, where runs have different losses, whose costs are no
            measure of one another.
    """
    keys = list(dict.fromkeys(key for record in records for key in hyperparameters.keys(record.overrides)))
    found = [{key: hyperparameters.value(record.config, key) for key in keys} for record in records]
    varied = {key: len({cell(values[key]) for values in found}) > 1 for key in keys}
    groups: dict[tuple[str, ...], list[int]] = {}
    telling = [key for key in keys if varied[key] and key != "seed"]
    for index, values in enumerate(found):
        groups.setdefault(tuple(cell(values[key]) for key in telling), []).append(index)
    rows = []
    for members in groups.values():
        members.sort(key=lambda index: str(found[index].get("seed")).zfill(12))
        own = [records[index] for index in members]
        tags = dict.fromkeys(tag for record in own for tag in record.metrics)
        metrics = {tag: Statistic.of([each.metrics[tag] for each in own if tag in each.metrics]) for tag in tags}
        rows.append(Row({key: found[members[0]][key] for key in telling}, own, metrics))
    metric = metric or _telling_metric(rows, several_losses=any(key.split(".")[0] == "loss" for key in telling))
    higher = metric is not None and is_better_if_higher(metric)

    def order(row: Row) -> tuple[bool, float]:
        mean = row.metrics[metric].mean if metric in row.metrics else math.nan
        return (math.isnan(mean), 0.0 if math.isnan(mean) else -mean if higher else mean)

    same = {key: each for key, each in found[0].items() if not varied[key] and each is not None} if found else {}
    return Comparison(sorted(rows, key=order), metric, higher, same)


def is_better_if_higher(tag: str) -> bool:
    """Whether more of a metric, ``<split>/<metric>``, is better."""
    return tag.partition("/")[2] in _BETTER_IF_HIGHER


def _telling_metric(rows: Sequence[Row], *, several_losses: bool) -> str | None:
    name = "accuracy" if several_losses else "cost"
    known = [f"{split}/{name}" for split in _SPLITS if any(f"{split}/{name}" in row.metrics for row in rows)]
    # Of splits that not all have, the first would leave the others without a place.
    whole = [tag for tag in known if all(tag in row.metrics for row in rows)]
    return next(iter([*whole, *known]), None)


def command(row: Row) -> str:
    """What to type in a shell to repeat the runs of a row."""
    first, seeds = row.runs[0], [str(hyperparameters.value(each.config, "seed")) for each in row.runs]
    words = ["crossent-train"] if len(seeds) == 1 else ["crossent-train", "-m"]
    names = [each.partition("=")[0].lstrip("+") for each in first.overrides]
    if {"experiment", "config", "resume"} & set(names) or not (first.directory / ".hydra").exists():
        # What was typed is not all that it came from.
        words += [f"config={shown((first.directory / runs.CONFIG).resolve())}"]
    else:
        words += [each for each, name in zip(first.overrides, names, strict=True) if name != "seed"]
        if len(seeds) == 1 and "seed" not in names:
            return " ".join(map(shlex.quote, words))
    words.append(f"seed={','.join(dict.fromkeys(seeds))}")
    return " ".join(map(shlex.quote, words))


def cell(value: Value | None) -> str:
    """A value as it is compared and shown; 1 and 1.0 are the same."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:g}" if value != int(value) or abs(value) > 1e15 else str(int(value))
    return "" if value is None else str(value)


def cells(row: Row) -> list[str]:
    """The values by which a row differs from others, as they are shown."""
    return [cell(value) for value in row.values.values()]
