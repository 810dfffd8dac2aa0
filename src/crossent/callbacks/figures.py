"""Pictures of the validation rows, as the best weights see them."""

import time
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor
from typing_extensions import override

from crossent import plots
from crossent.callbacks.best import Best
from crossent.classifier import SoftmaxClassifier
from crossent.confusion import Confusion
from crossent.data.module import DataModule
from crossent.loggers import TensorBoard
from crossent.metrics import Reliability

# To draw takes a third of a second, which is thousands of small steps. While a run is under way, it may cost this share
# of its time, and it is done ever more rarely, so that the event file stays small however long the run is.
_SHARE = 0.04
_FURTHER = 1.5  # times the step of the last pictures
_FIRST_GUESS = 1.0  # seconds that pictures take, before any have been drawn
_POINTS = 500  # rows in the picture of regions


class Figures(lightning.Callback):
    """Draws pictures when a validation is the best one so far: at once where there is time for it, or else at the end.

    They are the confusion matrix, of few classes; the reliability diagram; and of data with two features the regions.

    Args:
        data: the rows.
        logger: takes the pictures in; None: that of another process does.
    """

    def __init__(self, data: DataModule, logger: TensorBoard | None) -> None:
        self._data = data
        self._logger = logger
        self._best = Best()
        self._due: dict[str, Any] = {}  # what to draw of the best validation; nothing where that has been drawn
        self._drawn_step = 0
        self._spent = 0.0
        self._longest = _FIRST_GUESS
        self._started = 0.0

    @override
    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self._started = time.monotonic()

    @override
    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        assert isinstance(pl_module, SoftmaxClassifier)
        if self._best.improves(trainer, pl_module):
            self._due = _seen(pl_module) | {"step": trainer.global_step}
        allowed = _SHARE * (time.monotonic() - self._started)
        if self._due and self._spent + self._longest <= allowed and self._due["step"] >= _FURTHER * self._drawn_step:
            self.draw()

    def draw(self) -> None:
        """Draws what there is to draw.

        Raises:
            CannotWriteError: the disk is full.
        """
        due, self._due = self._due, {}
        if not due or self._logger is None:
            return
        started = time.monotonic()
        facts, step = self._data.facts, due["step"]
        pictures = {"reliability": plots.reliability({"predictions": Reliability(*due["reliability"])})}
        if len(due["pairs"]):
            pictures["confusion_matrix"] = plots.confusion_matrix(Confusion.of_all(due["pairs"]), facts.classes)
        if "weight" in due:
            pictures["decision_regions"] = self._regions(due["weight"], due["bias"])
        for name, png in pictures.items():
            self._logger.experiment.add_png(f"val/{name}", png, step)
        self._drawn_step = step
        self._longest = time.monotonic() - started
        self._spent += self._longest

    def _regions(self, weight: Tensor, bias: Tensor) -> bytes:
        facts, rows = self._data.facts, self._data.first_rows("val", _POINTS)
        mean, scale = torch.from_numpy(facts.mean), torch.from_numpy(facts.scale)
        weight = weight / scale  # for rows as they are in the data
        features = rows.all_features().cpu().double() * scale + mean
        return plots.decision_regions(
            features, rows.targets.cpu(), weight, bias - weight @ mean, facts.classes, facts.columns
        )

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best.state_dict(), "due": dict(self._due)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best.load_state_dict(state_dict["best"])
        self._due = state_dict["due"]


def _seen(module: SoftmaxClassifier) -> dict[str, Any]:
    """What pictures of the validation that has just ended show; all on the CPU, for a checkpoint."""
    assert module.evaluation.seen is not None
    pairs, reliability = module.evaluation.seen
    seen: dict[str, Any] = {"pairs": pairs.cpu(), "reliability": [each.cpu() for each in reliability]}
    head = module.head
    if head.weight.shape[1] == 2 and module.grid.class_ranks is None:  # or else this process has not all classes
        with torch.inference_mode():
            origin, *axes = head(torch.tensor([[0.0, 0], [1, 0], [0, 1]]).to(head.weight)).cpu().double().clone()
        seen |= {"weight": torch.stack(axes, dim=1) - origin[:, None], "bias": origin}
    return seen
