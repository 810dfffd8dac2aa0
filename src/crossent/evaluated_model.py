"""The trained model as it is evaluated: by one process, or by several that share rows and classes."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from crossent import checkpoints, config, devices, losses, runs
from crossent.class_shard import ClassShard
from crossent.confusion import Confusion
from crossent.console import progress, shown
from crossent.custom import again
from crossent.data.facts import DataFacts
from crossent.data.loader import Batch, BatchLoader, evaluation_rows
from crossent.data.standardization import Standardization
from crossent.data.storage import Numbers
from crossent.data.table import Table
from crossent.errors import UserError
from crossent.head import of_all_classes
from crossent.judging import predict
from crossent.losses.base import IGNORED
from crossent.metrics import Evaluation, PerClass
from crossent.processes import shards, together
from crossent.processes.grid import Grid
from crossent.processes.world import World

log = logging.getLogger(__name__)

# So many get a row in the confusion matrix, where all of them are too many.
_WORST_CLASSES = 20


def read(chosen: config.EvaluateConfig, run: runs.StoredRun, grid: Grid) -> checkpoints.Checkpoint:
    """The run's checkpoint; where classes are split, with the weights of this rank's classes alone.

    Every rank calls this, and the first of them alone reads the file.

    Raises:
        UserError: there is none, or it is not whole, or it cannot be split.
    """
    key = f"run={shown(Path(chosen.run))}"
    if grid.class_ranks is None:
        return together.from_first(lambda: checkpoints.read(run, key))
    whole: list[checkpoints.Checkpoint] = []  # on the first rank

    def without_weights() -> checkpoints.Checkpoint:
        read = checkpoints.read(run, key)
        if len(read.weight) != len(read.facts.classes):
            raise UserError(
                f"{key}: has one output for two classes, which accelerator={chosen.accelerator.__struct_config__.tag} "
                "cannot split"
            )
        whole.append(read)
        return replace(read, weight=read.weight[:0], bias=None if read.bias is None else read.bias[:0])

    found = together.from_first(without_weights)
    shard = grid.shard(len(found.facts.classes))
    assert shard is not None

    def own(numbers: Numbers) -> Numbers:
        part: Numbers = shards.scattered(torch.from_numpy(numbers), shard, grid).numpy()
        return part

    weight, bias = (whole[0] if whole else found).weight, (whole[0] if whole else found).bias
    return replace(found, weight=own(weight), bias=None if bias is None else own(bias))


class EvaluatedModel:
    """The trained weights on a device.

    Args:
        checkpoint: that has them.
        chosen: whose cost is wanted, on which device, and in which precision.
        world: the processes that share the work.
        grid: how they share rows and classes.

    Attributes:
        device: that this process works on.
        ignored: the target of rows that count for nothing.
    """

    def __init__(
        self, checkpoint: checkpoints.Checkpoint, chosen: config.EvaluateConfig, world: World, grid: Grid
    ) -> None:
        facts, accelerator = checkpoint.facts, chosen.accelerator
        self._world, self._grid = world, grid
        shard = grid.shard(len(facts.classes))
        self._shard = shard or ClassShard.whole(len(facts.classes))
        loss = _loss(chosen, checkpoint, shard)
        self.device = devices.choose(str(accelerator.__struct_config__.tag), world.local_rank)
        self._facts: DataFacts = facts
        weight = torch.from_numpy(checkpoint.weight)
        dtype = torch.float64 if accelerator.precision == "64-true" else torch.float32
        self._weight = weight.to(self.device, torch.promote_types(dtype, weight.dtype))
        bias = None if checkpoint.bias is None else torch.from_numpy(checkpoint.bias)
        self._bias = None if bias is None else bias.to(self._weight)
        self._temperature = checkpoint.temperature
        self._loss = None if loss is None else loss.to(self._weight)
        self._scale = Standardization(
            torch.from_numpy(facts.mean),
            torch.from_numpy(facts.scale),
            None if facts.fill is None else torch.from_numpy(facts.fill),
        )
        stored = checkpoint.config.get("loss", {}).get("ignore_index", IGNORED)
        self.ignored: int = stored if loss is None else loss.ignore_index

    @torch.inference_mode()
    def evaluate(self, table: Table) -> tuple[Evaluation, Confusion]:
        """Goes through the rows once; and once more through those of the worst classes where there are many."""
        classes, group = len(self._facts.classes), self._grid.of_my_classes
        evaluation = Evaluation(classes, self.ignored, shard=self._shard, group=group).to(self.device)
        evaluation.temperature = self._temperature
        with progress("evaluating", "rows", shown=self._world.is_first) as advance:
            done = 0
            for batch in self._batches(table):
                cost, outputs = self._outputs(batch)
                logits = of_all_classes(outputs, self._shard.classes)
                evaluation.update(cost, logits, batch.targets, batch.weights)
                done += batch.global_rows
                advance(done, done / len(table))
        scores = evaluation.scores.of_all_ranks()
        if len(scores.pairs):
            return evaluation, Confusion.of_all(scores.pairs)
        confusion = self._confusion_of_worst(table, scores.per_class)
        return evaluation, confusion._replace(counts=together.total(confusion.counts, group))

    def _confusion_of_worst(self, table: Table, classes: PerClass) -> Confusion:
        # Told by one rank, since others may have added up weights in another order, and all go through the same rows.
        worst = together.from_first(lambda: classes.most_mistaken[:_WORST_CLASSES].cpu())
        confusion = Confusion.empty(worst, len(self._facts.classes))
        rows = torch.isin(table.targets, worst).nonzero().squeeze(1)
        for batch in self._batches(table.take(rows)) if len(rows) else ():
            outputs = torch.nn.functional.linear(batch.features.to(self._weight.dtype), self._weight, self._bias)
            predicted, _ = predict(of_all_classes(outputs, self._shard.classes), self._shard)
            confusion.add(batch, predicted, self.ignored)
        return confusion

    def _batches(self, table: Table) -> Iterator[Batch]:
        most = -(-len(self._facts.classes) // self._grid.columns)  # of any rank, so that all have the same batches
        loader = BatchLoader(table.standardized(self._scale), evaluation_rows(most, len(self._facts.columns)))
        loader.share(self._grid.row, self._grid.rows)
        loader.place(self.device)
        for batch in loader:
            yield batch.to(self.device)

    def _outputs(self, batch: Batch) -> tuple[losses.Cost | None, Tensor]:
        features = batch.features.to(self._weight.dtype)
        if self._loss is None:
            return None, torch.nn.functional.linear(features, self._weight, self._bias)
        return self._loss.with_outputs(features, self._weight, self._bias, batch.targets, batch.weights)


def _loss(
    chosen: config.EvaluateConfig, checkpoint: checkpoints.Checkpoint, shard: ClassShard | None
) -> losses.Loss | None:
    """The loss whose cost is reported."""
    if chosen.loss is None:
        log.warning(
            "no cost is reported: the run's loss is its user's own class, which is not imported unless it is named "
            "again: %s",
            again("loss", checkpoint.config),
        )
        return None
    facts, outputs = checkpoint.facts, len(checkpoint.weight)
    loss = losses.build(chosen.loss, facts.class_counts, shard)
    if shard is None and loss.outputs(len(facts.classes)) != outputs:
        name = chosen.loss.__struct_config__.tag
        raise UserError(f"loss={name}: does not fit the run, which has {outputs} output{'s' * (outputs != 1)}")
    if loss.learns:
        try:
            loss.load_state_dict({name: torch.from_numpy(each) for name, each in checkpoint.loss.items()})
        except RuntimeError as error:
            raise UserError(f"loss: its parameters are not those of the run: {' '.join(str(error).split())}") from error
    return loss
