"""The LightningModule: a softmax classifier and how one step of its training goes."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from crossent import starting
from crossent.checkpoints import KEY
from crossent.data.loader import Batch
from crossent.details import Details
from crossent.divergence import DivergedError, diverged, grown
from crossent.head import Head, of_all_classes
from crossent.losses import Cost, Loss
from crossent.metrics import Evaluation
from crossent.open_step import OpenStep
from crossent.optim import OptimizerFactory, SchedulerFactory
from crossent.processes import together
from crossent.processes.grid import Grid


class SoftmaxClassifier(lightning.LightningModule):
    """Trains a head by a loss, and records the curves.

    The curves are written here and not with ``self.log``: x is the number of updates that the weights have had, which
    Lightning's own logging misses by one for validation; and ``self.log`` costs more than the step.

    Args:
        head: weight and bias.
        loss: the cost of the rows.
        optimizer: makes the optimiser.
        scheduler: makes the learning-rate schedule, or returns None.
        l2: λ of λ/2 ‖weight‖², which is added to the mean cost; the bias is not penalised.
        record: plain values that go into every checkpoint: the configuration and the facts of the data.
        grid: how the ranks share rows and classes, where there are several.

    Attributes:
        trained: the parameters that the optimiser trains, by their names; known once it is there.
        until: each tells after how many steps, from a step on, something is due that happens between Lightning's calls.
        after_point: each is told how many steps have ended when the last of them has a point in the curves; that may be
            in the middle of a call of Lightning's.
    """

    def __init__(
        self,
        head: Head,
        loss: Loss,
        *,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory = lambda optimizer, steps: None,
        l2: float = 0.0,
        record: Mapping[str, Any] | None = None,
        grid: Grid | None = None,
    ) -> None:
        super().__init__()
        self.head = head
        self.loss = loss
        self.l2 = l2
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._record = dict(record or {})
        self.grid = grid or Grid()
        self.open_step = OpenStep(self._look_at_step, self._regularize, self.grid)
        self._details = Details(head, self.grid, loss.ignore_index)
        self._found: dict[str, float] = {}  # details of the step under way
        self._every = 0  # steps from one point to the next; 0 in Lightning's barebones mode: there are none
        self.until: list[Callable[[int], int]] = []
        self.after_point: list[Callable[[int], object]] = []
        self.trained: dict[str, torch.nn.Parameter] = {}
        self._loaded_steps: int | None = None
        self._first_bad: tuple[Batch, str] | None = None  # validation batch, whose cost is no number
        self.evaluation = Evaluation(head.shard.of, loss.ignore_index, shard=head.shard, group=self.grid.of_my_classes)

    @property
    def superseded_step(self) -> int | None:
        """The step of weights that are not to count as the best once there are newer ones; None: there are none."""
        return None

    @property
    def step(self) -> int:
        """The index of the optimiser step under way."""
        taken: int = self.trainer.global_step
        return taken

    def configure_model(self) -> None:
        """Does nothing: the head is there, and has the weights of this rank's classes alone.

        Lightning asks for this where a model is split.
        """

    def forward(self, features: Tensor) -> Tensor:
        """The logits of the classes that are here, (rows, classes), from features, (rows, columns)."""
        logits: Tensor = self.head(features)
        return logits

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser, and the schedule where there is one, stepped after every optimiser step."""
        # Noted here, since to look for them among the metrics' modules takes longer than a small step.
        self.trained = {name: each for name, each in self.named_parameters() if each.requires_grad}
        self.open_step.parameters = list(self.trained.values())
        self.open_step.sharded = list(self.head.sharded.values())
        optimizer = self._optimizer(self.parameters())
        scheduler = self._scheduler(optimizer, self.trainer.estimated_stepping_batches)
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """What the batch adds to the cost of its optimiser step, penalty included.

        Batches whose gradients are accumulated for one step weigh as much as their rows do, so that the step is that
        of one large batch, also where the batches differ in size or there are fewer of them at the end of an epoch.
        """
        self.open_step.batch = batch
        accumulated: int = self.trainer.accumulate_grad_batches
        last = accumulated == 1 or not self.trainer.fit_loop._should_accumulate()
        cost = self._cost(batch)
        if together.ranks() > 1:
            return cost.mean * self.open_step.share(cost, self._penalty(), batch.global_rows, accumulated)
        if self.open_step.is_first and not math.isfinite(cost.mean.item()):
            raise self._diverged(f"the cost is {cost.mean.item()}")
        return self.open_step.add(cost, self._penalty(), accumulated, last=last)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Takes the step and records its cost, ahead of any callback that may write a checkpoint of it."""
        assert optimizer_closure is not None
        taken: int = self.trainer.global_step
        self._details.begin_step(taken)
        self.open_step.evaluate = optimizer_closure
        super().optimizer_step(epoch, batch_idx, optimizer, self.open_step)
        self._close_step(taken)
        if self._is_last(taken):
            self._end()

    def _close_step(self, taken: int) -> None:
        """Records the cost of the step that has been taken, ahead of any callback that may write a checkpoint of it."""
        if self._every and taken % self._every == 0:
            self.record_metrics("train", taken, self.open_step.metrics() | self._found)
            self._found = {}
            for tell in self.after_point:
                tell(taken + 1)
        self.open_step.clear()

    def on_train_start(self) -> None:
        """From here on the trainer counts the updates, with which a temperature no longer fits."""
        self._every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it from outside
        self._details.begin(self._every, self.trainer.max_steps)
        self._loaded_steps = None
        self.evaluation.temperature = None

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the validation metrics."""
        cost = self._evaluate(batch)
        if self._first_bad is None and not math.isfinite(cost.mean.item()):
            self._first_bad = batch, f"batch {batch_idx} of the val rows"

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the test metrics."""
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Records the validation metrics, and tells them to the callbacks that watch them."""
        metrics = self._evaluated("val")
        bad, self._first_bad = self._first_bad, None
        if self.trainer.state.fn == "fit" and not math.isfinite(metrics["cost"]):  # nothing would be best any more
            batch, where = bad or (Batch.empty(self.head.weight), "the val rows of another rank")
            place = f"step {self.trainer.global_step} ({where})"
            raise diverged(f"the cost is {metrics['cost']}", place, self.head, self.loss, batch, self._lr())
        if not self.trainer.barebones:
            self.log_dict({f"val/{name}": value for name, value in metrics.items()}, logger=False)

    def on_test_epoch_end(self) -> None:
        """Records the test metrics."""
        self._evaluated("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what predicting needs besides the weights, and whether the run ends here."""
        checkpoint[KEY] = self._record | {"ended": bool(self.trainer.should_stop)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes how many updates the loaded weights have had, and how they were calibrated."""
        self._loaded_steps = checkpoint["global_step"]
        self.evaluation.temperature = checkpoint[KEY].get("temperature")
        if self.trainer.state.fn == "fit" and checkpoint[KEY].get("ended"):
            # Lightning forgets that the run was stopped, and would take a step more.
            then, now = checkpoint[KEY].get("config"), self._record.get("config")
            self.trainer.should_stop = bool(then and now and starting.ends_alike(then, now))

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes the name of the running hook here some fifty times a step, and torch.nn.Module's own
        # __setattr__, which looks for parameters, makes that a seventh of a small step's time.
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def _look_at_step(self) -> None:
        """Looks at cost and gradient of a step, before the update."""
        self._check_step()
        if self._details.are_due:
            self._find_details()

    def _find_details(self) -> None:
        batch = self.open_step.batch
        assert batch is not None
        found = self._details.find(batch, self._features(batch), self.open_step.parameters)
        found["gradient_norm"] /= self._gradient_scale
        lr = self._lr()
        self._found = found if lr is None else found | {"lr": lr}

    def _check_step(self) -> None:
        """Stops before an update that would make the weights NaN, which tell no more what has happened.

        The gradient is looked at on the CPU alone: elsewhere the answer would have to be waited for, and scaled
        gradients may be infinite. Nor is it where classes are split, since all ranks have to stop at once: there the
        next cost tells, or the look at the weights before they are stored. A bias has a gradient that is not finite
        where the weight has, and is not looked at.
        """
        if not math.isfinite(self.open_step.shared_cost):
            raise self._diverged(f"the cost is {self.open_step.shared_cost}")
        if self.open_step.sharded:
            return
        for name, parameter in self.trained.items():
            gradient = None if name == "head.bias" else parameter.grad
            if gradient is None or not gradient.is_cpu or math.isfinite(gradient.sum().item()):
                continue
            if not gradient.isfinite().all():  # and not only a sum that is too large
                raise self._diverged(f"the gradient of {name} is not finite")

    def check_weights(self) -> None:
        """Refuses weights that are worth nothing, before they are stored.

        Raises:
            DivergedError: they are not finite.
        """
        names = [name for name, _ in self.named_parameters()]
        bad = [not parameter.isfinite().all() for parameter in self.parameters()]
        for name, is_bad in zip(names, together.any_of(*bad), strict=True):
            if is_bad:
                raise grown(name, self.trainer.global_step, self._lr())

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Keeps the gradient of all classes from being too long, also where each rank has its part of it."""
        is_whole = self.grid.class_ranks is None
        if is_whole or not gradient_clip_val or gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        (norm,) = self._details.norms([(each, each.grad) for each in parameters if each.grad is not None])
        found = torch.tensor(norm, dtype=torch.promote_types(self.head.weight.dtype, torch.float32))
        torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, found.to(self.head.weight.device))

    def _lr(self) -> float | None:
        lr: float | None = self.trainer.optimizers[0].param_groups[0].get("lr")
        return lr

    def _diverged(self, what: str) -> DivergedError:
        batch, index = self.open_step.batch, self.trainer.fit_loop.epoch_loop.batch_idx
        assert batch is not None
        place = f"step {self.trainer.global_step} (batch {index} of epoch {self.trainer.current_epoch})"
        return diverged(what, place, self.head, self.loss, batch, self._lr())

    def _end(self) -> None:
        """Has Lightning validate the final weights, whatever the interval; there is no minimum left to wait for."""
        self.trainer.should_stop = True
        self.trainer.fit_loop.min_epochs = None
        self.trainer.fit_loop.epoch_loop.min_steps = None

    def _is_last(self, taken: int) -> bool:
        """Whether the step after so many steps ends the run."""
        trainer = self.trainer
        if taken + 1 >= trainer.max_steps > 0:
            return True
        epochs = trainer.max_epochs or -1
        return epochs > 0 and trainer.is_last_batch and trainer.current_epoch + 1 >= epochs

    def _cost(self, batch: Batch) -> Cost:
        head = self.head
        cost: Cost = self.loss(self._features(batch), head.weight, head.output_bias, batch.targets, batch.weights)
        return cost

    def _features(self, batch: Batch) -> Tensor:
        """The features in the precision of the weights."""
        features, dtype = batch.features, self.head.weight.dtype
        return features if features.dtype == dtype else features.to(dtype)

    def _penalty(self) -> Tensor | None:
        return self.l2 / 2 * self.head.weight.square().sum() if self.l2 else None

    def _regularize(self) -> None:
        """Adds the penalty's gradient, where the objective to differentiate had none of it."""
        if self.l2 and (gradient := self.head.weight.grad) is not None:
            gradient.add_(self.head.weight.detach(), alpha=self.l2 * self._gradient_scale)

    @property
    def _gradient_scale(self) -> float:
        """What the gradients are multiplied by, in a run in 16 bits."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return 1.0 if scaler is None else float(scaler.get_scale())

    def _evaluate(self, batch: Batch) -> Cost:
        head, features = self.head, self._features(batch)
        cost, outputs = self.loss.with_outputs(features, head.weight, head.output_bias, batch.targets, batch.weights)
        self.evaluation.update(cost, of_all_classes(outputs, head.shard.classes), batch.targets, batch.weights)
        return cost

    def _evaluated(self, split: str) -> dict[str, float]:
        metrics = self.evaluation.metrics()
        self.evaluation.reset()
        if self.grid.class_ranks is not None:  # on other hardware another rank may have rounded otherwise
            metrics = together.from_first(lambda: metrics)
        steps = self.trainer.global_step if self._loaded_steps is None else self._loaded_steps
        self.record_metrics(split, steps, metrics)
        return metrics

    def record_metrics(self, split: str, step: int, metrics: Mapping[str, float]) -> None:
        """Records a point of each metric of a split, by the weights that had so many updates."""
        tagged = {f"{split}/{name}": value for name, value in metrics.items()}
        for logger in self.trainer.loggers:
            logger.log_metrics(tagged, step)


# Lightning works out the arguments of training_step anew at every step, unless they are written down.
SoftmaxClassifier.training_step.__signature__ = inspect.signature(  # type: ignore[attr-defined]
    SoftmaxClassifier.training_step
)
