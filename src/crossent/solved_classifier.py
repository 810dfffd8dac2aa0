"""The LightningModule of a classifier that a solver trains, which sees all rows at every step and knows the optimum."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from torch import Tensor
from typing_extensions import override

from crossent.checkpoints import KEY
from crossent.classifier import SoftmaxClassifier
from crossent.data.loader import AllRows
from crossent.loggers import LastPoints
from crossent.processes import together
from crossent.solvers import NewtonCG, Objective
from crossent.solvers.memory import End

_NEVER = 2**62  # batches


class Fit(TypedDict):
    """What came of a penalty.

    Attributes:
        l2: λ.
        steps: taken for it and for those before it.
        passes: through the rows, likewise.
        cost: of the training rows, without the penalty.
        suboptimality: the bound on (value − optimum) / optimum; None where none was found.
        end: why the solver went no further; None: the run had no more steps.
        val_cost: of the validation rows; None where there are none.
    """

    l2: float
    steps: int
    passes: int
    cost: float
    suboptimality: float | None
    end: End | None
    val_cost: float | None


class SolvedClassifier(SoftmaxClassifier):
    """Trains a head by `NewtonCG`, until that says that the optimum is there; for each of several penalties, if asked.

    Every step is recorded, since each is worth hundreds of others: cost, gradient norm, inner iterations, and how far
    from the optimum the weights are, where that is known. Cost and distance of the weights that a fit ends with are
    recorded as well.

    Args:
        l2_path: the penalties to fit, one after the other, each from the weights of the last; None: ``l2`` alone.
        arguments: those of `SoftmaxClassifier`.

    Attributes:
        fits: what came of the penalties so far.
    """

    def __init__(self, *arguments: Any, l2_path: Sequence[float] | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._path = tuple(l2_path or ())
        self._superseded: int | None = None
        self.fits: list[Fit] = []

    @property
    @override
    def superseded_step(self) -> int | None:
        return self._superseded

    @override
    def on_train_start(self) -> None:
        super().on_train_start()
        if self.fits and self.fits[-1]["end"] is None and not self.trainer.should_stop:  # the steps had run out
            self._superseded = self.fits.pop()["steps"]
        if self._path:
            self.l2 = self._path[min(len(self.fits), len(self._path) - 1)]
        if self.fits and self.fits[-1]["steps"] == self.trainer.global_step > 0:
            self.trainer.val_check_batch = self.trainer.global_step  # as when the checkpoint was written

    def training_step(self, batch: AllRows, batch_idx: int) -> Tensor:  # type: ignore[override]
        """Has the solver take all rows in, the first time; it finds costs and gradients itself.

        Lightning wants something to go back from, so it gets a number on which nothing depends.
        """
        if self._solver.objective is None:
            head = self.head
            self._solver.objective = Objective(
                self.loss,
                batch.features,
                batch.targets,
                batch.weights,
                outputs=len(head.weight),
                l2=self.l2,
                intercept=head.bias is not None and len(head.bias) == len(head.weight),
                first=batch.first,
            )
        return self.head.weight.new_zeros((), requires_grad=True)

    @override
    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        taken: int = self.trainer.global_step
        solver = self._solver
        self.trainer.val_check_batch = _NEVER  # before a penalty is fitted; what is on the way to there is not compared
        solver.is_last = self._is_last(taken)
        optimizer.step(closure=optimizer_closure)
        step, reached = solver.last, solver.reached
        assert step is not None
        assert reached is not None
        self.open_step.granted = together.any_of(*self.open_step.wishes())
        found = {"gradient_norm": step.gradient_norm, "inner_iterations": float(step.inner)}
        self._record_step(taken, {"cost": step.cost, **found}, step.penalty, step.suboptimality)
        if step.end is None and not solver.is_last:
            return
        known = step.following if math.isfinite(step.following) else None
        if known is None:
            for logger in self.trainer.loggers:
                if isinstance(logger, LastPoints):
                    logger.forget("train/suboptimality")
        self.fits.append(
            Fit(
                l2=self.l2,
                steps=taken + 1,
                passes=solver.passes,
                cost=reached.cost,
                suboptimality=known,
                end=step.end,
                val_cost=None,
            )
        )
        if solver.is_last or len(self.fits) >= len(self._path):
            self._record_step(taken + 1, {"cost": reached.cost}, reached.penalty, step.following)
            self._end()
            return
        self.l2 = self._path[len(self.fits)]
        assert solver.objective is not None
        solver.objective.penalise(self.l2)
        solver.begin_anew()
        self.trainer.val_check_batch = taken + 1  # so that Lightning validates now

    @override
    def record_metrics(self, split: str, step: int, metrics: Mapping[str, float]) -> None:
        super().record_metrics(split, step, metrics)
        if split == "val" and self.fits and self.fits[-1]["steps"] == step:
            self.fits[-1]["val_cost"] = metrics.get("cost", self.fits[-1]["val_cost"])

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint[KEY]["fits"] = [dict(fit) for fit in self.fits]

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.trainer.state.fn == "fit":
            self.fits = checkpoint[KEY].get("fits", [])

    def _record_step(self, step: int, points: dict[str, float], penalty: float, suboptimality: float) -> None:
        """Records what is known of the weights that had so many updates."""
        if self.l2 or self._path:
            points["penalty"] = penalty
        if self._path:
            points["l2"] = self.l2
        if math.isfinite(suboptimality):
            points["suboptimality"] = suboptimality
        self.record_metrics("train", step, points)

    @property
    def _solver(self) -> NewtonCG:
        optimizer = self.trainer.optimizers[0]
        assert isinstance(optimizer, NewtonCG)
        return optimizer


# Lightning works out the arguments of training_step anew at every step, unless they are written down.
SolvedClassifier.training_step.__signature__ = inspect.signature(  # type: ignore[attr-defined]
    SolvedClassifier.training_step
)
