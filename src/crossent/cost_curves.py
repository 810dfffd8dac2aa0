"""The curves of compared runs, with bands over their seeds. Imports no torch."""

import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from crossent.comparison import Comparison, Row, cells
from crossent.figure_style import COLOURS, DASHES, label, open_frame, png
from crossent.figure_style import figure as new_figure
from crossent.run_records import RunRecord

#: So many rows have curves, the best ones, and of each row so many runs: an event file takes a thirtieth of a second.
MOST_ROWS, MOST_RUNS = 12, 8

_LONGEST_NAME = 40
_WIDE = 30.0  # from the lowest cost to the highest, from which on the axis is logarithmic

Curve = dict[int, float]  # value by step


def draw(comparison: Comparison) -> bytes | None:
    """Draws how cost and metric of the best rows went, as a PNG file; None where no run has curves.

    A line is the mean over the seeds, its band the standard deviation to both sides, where all have one.
    """
    rows = comparison.rows[:MOST_ROWS]
    wanted = [*("train/cost", "val/cost"), *([] if comparison.metric is None else [comparison.metric])]
    curves = [[_curves(run, wanted) for run in row.runs[:MOST_RUNS]] for row in rows]
    tags = [tag for tag in dict.fromkeys(wanted) if any(len(run.get(tag, ())) > 1 for row in curves for run in row)]
    if not tags:
        return None
    names = [_name(row) for row in rows]
    lines = math.ceil(len(names) / 2) if names != [""] else 0
    figure = new_figure(4.6 * len(tags) + 0.4, 3.6 + 0.22 * lines)
    for axes, tag in zip(figure.subplots(1, len(tags), squeeze=False)[0], tags, strict=True):
        drawn = [_mean([run[tag] for run in row if tag in run]) for row in curves]
        for index, (name, (steps, means, deviations)) in enumerate(zip(names, drawn, strict=True)):
            style = {"color": COLOURS[index % len(COLOURS)]}
            first = axes is figure.axes[0]
            dash = DASHES[(index + index // len(COLOURS)) % len(DASHES)]
            axes.plot(steps, means, label=name if first else None, linewidth=1.6, linestyle=dash, **style)
            low = [mean - deviation for mean, deviation in zip(means, deviations, strict=True)]
            high = [mean + deviation for mean, deviation in zip(means, deviations, strict=True)]
            axes.fill_between(steps, low, high, alpha=0.18, linewidth=0, **style)
        positive = [mean for _, means, _ in drawn for mean in means if mean > 0]
        if tag.endswith("cost") and positive and max(positive) > _WIDE * min(positive):
            axes.set_yscale("log")
        axes.set(title=tag, xlabel="step")
        open_frame(axes)
    if lines:
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return png(figure, dots=130)


def _name(row: Row) -> str:
    pairs = zip(row.values, cells(row), strict=True)
    alone = len(row.values) == 1
    values = [cell if alone else f"{key.rpartition('.')[2]} {cell}" for key, cell in pairs if cell]
    return label(", ".join(values), _LONGEST_NAME)


def _curves(run: RunRecord, tags: Sequence[str]) -> Mapping[str, Curve]:
    """Those curves of a run that its event files have; none where they cannot be read."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of every file that it has read to the end
    events = EventAccumulator(str(run.directory), size_guidance={"scalars": 0, "images": 1})
    try:
        events.Reload()
        there: dict[str, Any] = events.Tags()
    except Exception:  # of a damaged file, whatever TensorBoard makes of that; the table has the run
        return {}
    return {tag: {each.step: each.value for each in events.Scalars(tag)} for tag in tags if tag in there["scalars"]}


def _mean(runs: Sequence[Curve]) -> tuple[list[int], list[float], list[float]]:
    """Steps that all runs have, with mean and standard deviation there."""
    steps = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
    means = [statistics.fmean(run[step] for run in runs) for step in steps]
    deviations = [statistics.stdev(run[step] for run in runs) if len(runs) > 1 else 0.0 for step in steps]
    return steps, means, deviations
