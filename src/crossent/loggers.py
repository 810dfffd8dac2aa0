"""Where the curves go: event files for TensorBoard, and the last point of each for metrics.json."""

import contextlib
import math
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import loggers
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from crossent.errors import CannotWriteError
from crossent.writing import write_json

if TYPE_CHECKING:
    from crossent.event_file import Writer


class LastPoints(loggers.Logger):
    """Keeps the last point of every curve.

    Attributes:
        points: step and value by tag.
        before: the points that these have taken the place of.
    """

    def __init__(self) -> None:
        super().__init__()
        self.points: dict[str, tuple[int, float]] = {}
        self.before: dict[str, tuple[int, float]] = {}

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
            if tag in self.points:
                self.before[tag] = self.points[tag]
            self.points[tag] = (step or 0, value)

    def forget(self, tag: str) -> None:
        """Leaves a curve out whose last point says nothing of the weights that there are now."""
        self.points.pop(tag, None)
        self.before.pop(tag, None)

    def newest(self, tag: str, end: float = math.inf) -> tuple[int, float]:
        """The newest point of a curve that is before a step, of the last two; step −1 where there is none."""
        none = (-1, 0.0)
        found = self.points.get(tag, none)
        return found if found[0] < end else self.before.get(tag, none)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml has them."""

    def write(self, path: Path, *, steps: int, seconds: float) -> None:
        """Writes metrics.json: every curve's last value under its tag, ``steps``, and ``seconds`` of fit."""
        values = {tag: value for tag, (_, value) in sorted(self.points.items())}
        write_json(path, {**values, "steps": steps, "seconds": seconds})


# Charts of TensorBoard's CUSTOM SCALARS, each with the curves whose tags its expressions match.
_CHARTS = {
    "cost and accuracy": {
        "cost": ["Multiline", ["^(train|val|test)/cost$"]],
        "accuracy": ["Multiline", ["^(train|val|test)/accuracy$"]],
    },
    "steps": {
        "norm of the gradient": ["Multiline", ["^train/gradient_norm$"]],
        "norm of the weight": ["Multiline", ["^train/weight_norm$"]],
        "learning rate": ["Multiline", ["^train/lr$"]],
    },
}


# Which curves tell how good a run is, by their last points; a run has those of the splits that it has. All of them are
# named in every run, since of several runs HPARAMS shows what the first one names.
_JUDGED_BY = dict.fromkeys(
    (f"{split}/{name}" for split in ("val", "test", "train") for name in ("cost", "accuracy")), 0.0
)


class TensorBoard(loggers.TensorBoardLogger):
    """Event files in the run directory: the curves, which of them go on one chart, and what tells the run from others.

    Args:
        directory: of the run.
        hyperparameters: what the run is known by, beside its directory.
        flush_seconds: how long a point may wait, while others come, before it is on disk.
        start: the step that a resumed run goes on from; readers forget earlier points from there on. None: a new run.
    """

    def __init__(
        self,
        directory: Path,
        *,
        hyperparameters: Mapping[str, str | float | bool],
        flush_seconds: float,
        start: int | None,
    ) -> None:
        super().__init__(
            save_dir=directory,
            name="",
            version="",
            default_hp_metric=False,  # Lightning would add a point hp_metric = -1
        )
        self._directory = directory
        self._hyperparameters = dict(hyperparameters)
        self._start = start
        self._writer: Writer | None = None
        self._flush_seconds = flush_seconds
        self._flushed_at = time.time()
        # Such a point stands at the step of the best weights, which readers need not forget; it is not written twice.
        self._tested = set() if start is None else _test_points(directory, start)

    @property
    @rank_zero_experiment
    def experiment(self) -> "Writer":
        """What writes the event file; the file is there from the first call on."""
        if self._writer is None:
            from crossent.event_file import Writer  # half a second of imports

            self._writer = Writer(self._directory, self._start)
            self._writer.add_custom_scalars(_CHARTS)
            self._writer.describe(self._hyperparameters, _JUDGED_BY)
        return self._writer

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Takes in a point of each curve."""
        now, writer = time.time(), self.experiment
        points = {tag: value for tag, value in metrics.items() if (tag, step) not in self._tested}
        if points:
            writer.add_points(points, step or 0)
        if now - self._flushed_at >= self._flush_seconds:
            writer.flush()
            self._flushed_at = now

    @override
    @rank_zero_only
    def save(self) -> None:
        """Brings the points to disk; Lightning's own also writes hparams.yaml."""
        self.experiment.sync()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Brings the points to disk, and keeps the file open: testing goes on with it."""
        if self._writer is not None:
            # A run that has failed already may have done so since nothing can be written.
            with contextlib.suppress(*[] if status == "success" else [CannotWriteError]):
                self.save()

    @rank_zero_only
    def close(self, *, well: bool) -> None:
        """Ends the event file, if there is one.

        Args:
            well: whether the run has come to its end, as HPARAMS shows it.
        """
        writer, self._writer = self._writer, None
        if writer is not None:
            if well:
                writer.describe_end()
            writer.close()


def _test_points(directory: Path, start: int) -> set[tuple[str, int | None]]:
    """Tag and step of every point in a run's event files that is of the best weights, from before a step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("test/") or tag.endswith("_calibrated")]
    return {(tag, point.step) for tag in tags for point in events.Scalars(tag) if point.step < start}
