"""Where the curves go: event files for TensorBoard, and the last point of each for metrics.json."""

import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import loggers
from lightning.pytorch.utilities import rank_zero_only

from crossent.writing import write_json


class LastPoints(loggers.Logger):
    """Keeps the last point of every curve.

    Attributes:
        points: step and value by tag.
    """

    def __init__(self) -> None:
        super().__init__()
        self.points: dict[str, tuple[int, float]] = {}

    @property
    def name(self) -> str:
        """Of the logger, not of a file."""
        return "last points"

    @property
    def version(self) -> str:
        """None has been asked for."""
        return ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Takes in a point of each curve."""
        for tag, value in metrics.items():
            self.points[tag] = (step or 0, value)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml has them."""

    def write(self, path: Path, *, steps: int, seconds: float) -> None:
        """Writes metrics.json: every curve's last value under its tag, ``steps``, and ``seconds`` of fit."""
        values = {tag: value for tag, (_, value) in sorted(self.points.items())}
        write_json(path, {**values, "steps": steps, "seconds": seconds})


class TensorBoard(loggers.TensorBoardLogger):
    """Event files in the run directory, with nothing in them but the curves.

    Points are gathered and handed to the writer many at a time: its thread, woken for a single point, takes longer
    than a small step.

    Args:
        directory: of the run.
        flush_seconds: how long a point may wait, while others come, before it is on disk.
        start: the step that a resumed run goes on from; readers forget earlier points from there on. None: a new run.
    """

    _GATHERED = 500

    def __init__(self, directory: Path, *, flush_seconds: float, start: int | None) -> None:
        super().__init__(
            save_dir=directory,
            name="",
            version="",
            default_hp_metric=False,  # Lightning would add a point hp_metric = -1
            purge_step=start,
        )
        self._flush_seconds = flush_seconds
        self._points: list[tuple[str, float, int | None, float]] = []
        self._flushed_at = time.time()
        if start is not None:
            _wait_for_a_later_name(directory)
        # Such a point stands at the step of the best weights, which readers need not forget; it is not written twice.
        self._tested = set() if start is None else _test_points(directory)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Takes in a point of each curve."""
        now = time.time()
        self._points += [(tag, value, step, now) for tag, value in metrics.items() if (tag, step) not in self._tested]
        if now - self._flushed_at >= self._flush_seconds:
            self.save()
        elif len(self._points) >= self._GATHERED:
            self._write_points()

    @rank_zero_only
    def save(self) -> None:
        """Brings the points to disk; Lightning's own also writes hparams.yaml."""
        self._write_points()
        self.experiment.flush()
        self._flushed_at = time.time()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Brings the points to disk, and keeps the file open: testing goes on with it."""
        if self._experiment is not None:
            self.save()

    @rank_zero_only
    def close(self) -> None:
        """Ends the event file."""
        self.save()
        self.experiment.close()
        self._experiment = None

    def _write_points(self) -> None:
        for tag, value, step, at in self._points:
            self.experiment.add_scalar(tag, value, step, walltime=at)
        self._points.clear()


def _wait_for_a_later_name(directory: Path) -> None:
    """Waits, at most a second, until a new event file is read after those that are there.

    Readers take the files in the order of their names, which tell the second they were made in, and then, within one
    second, numbers that do not sort as text (10 before 9).
    """
    made = [int(path.name.split(".")[3]) for path in directory.glob("events.out.tfevents.*")]
    while made and int(time.time()) == max(made):
        time.sleep(0.05)


def _test_points(directory: Path) -> set[tuple[str, int | None]]:
    """Tag and step of every point in a run's event files that is of the best weights."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("test/") or tag.endswith("_calibrated")]
    return {(tag, point.step) for tag in tags for point in events.Scalars(tag)}
