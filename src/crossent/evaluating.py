"""Evaluates a trained run, from its checkpoint and some labelled rows."""

import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from crossent import checkpoints, config, devices, evaluation_report, losses, plots, runs
from crossent.checking import show
from crossent.config.data import DEFAULT_VAL_FRACTION
from crossent.confusion import Confusion
from crossent.console import progress, shown
from crossent.data import aligned
from crossent.data.facts import DataFacts
from crossent.data.loader import Batch, BatchLoader, evaluation_rows
from crossent.data.standardization import Standardization
from crossent.data.table import Table
from crossent.errors import UserError
from crossent.head import of_all_classes
from crossent.losses.base import IGNORED
from crossent.metrics import Evaluation, PerClass, Reliability
from crossent.processes import together
from crossent.processes.world import ALONE, World
from crossent.writing import whole_folder, write_json

log = logging.getLogger(__name__)

# Up to so many classes, all of them get a row in the confusion matrix; else the worst ones do.
_FEW_CLASSES = 30
_WORST_CLASSES = 20
_FILES = (runs.METRICS, "classes.csv", "confusion_matrix.png", "reliability.png")


def evaluate(chosen: config.EvaluateConfig, plain: dict[str, Any], world: World = ALONE) -> dict[str, float]:
    """Evaluates, and writes metrics, a table of the classes, and pictures.

    Every rank calls this, and the first of them alone reads the checkpoint and writes.

    Args:
        chosen: the configuration.
        plain: the same as plain values.
        world: the processes that share the rows.

    Returns:
        Every metric under its tag.

    Raises:
        UserError: something that the user has to change; nothing is left behind.
    """
    started = time.perf_counter()
    if chosen.accelerator.threads != "auto":
        torch.set_num_threads(chosen.accelerator.threads)
    run = together.from_first(lambda: runs.find_trained(chosen.run, "run"))
    checkpoint = together.from_first(lambda: checkpoints.read(run, f"run={shown(Path(chosen.run))}"))
    folder = together.from_first(lambda: _output_folder(chosen, run))
    model = together.agreed(lambda: _Model(checkpoint, _loss(chosen, checkpoint), chosen.accelerator, world))
    rows = together.agreed(lambda: _rows(chosen, plain, checkpoint, model.ignored))
    log.info("run    %s, %d steps", shown(checkpoint.path), checkpoint.steps)
    log.info("rows   %s: %s, %s", _named(chosen), f"{len(rows.table):,}", rows.described)
    evaluation, confusion = model.evaluate(rows.table)
    metrics = {f"{rows.split}/{name}": value for name, value in evaluation.metrics().items()}
    scores, calibrated = evaluation.scores.of_all_ranks(), evaluation.calibrated.of_all_ranks()
    if not scores.sums[-1]:
        raise UserError(f"data: no {rows.split} row counts: all of them are ignored or have the weight 0")
    if not world.is_first:
        return metrics
    names, classes = checkpoint.facts.classes, PerClass(*(each.cpu() for each in scores.per_class))
    with whole_folder(folder, "output", _old_events(folder)) as part:
        plots.save_confusion(
            part / "confusion_matrix.png", confusion.names(names), confusion.shares, confusion.counts, of=len(names)
        )
        curves = {"predictions": scores.reliability}
        if checkpoint.temperature is not None:
            curves = {"calibrated": calibrated.reliability, "before": scores.reliability}
        plots.save_reliability(
            part / "reliability.png", {name: Reliability(*(e.cpu() for e in each)) for name, each in curves.items()}
        )
        evaluation_report.write_classes(part / "classes.csv", names, classes)
        evaluation_report.write_events(part, rows.split, metrics, checkpoint.steps)
        facts = {"steps": checkpoint.steps, "rows": len(rows.table), "checkpoint": str(checkpoint.path)}
        write_json(part / runs.METRICS, {**metrics, **facts, "seconds": time.perf_counter() - started})
    evaluation_report.report(metrics, checkpoint.steps, names, classes, folder)
    return metrics


def _output_folder(chosen: config.EvaluateConfig, run: runs.StoredRun) -> Path:
    """Where the results go, after a look at what is there."""
    if chosen.output is None:
        return runs.folder_in(run, "evaluate")
    folder = Path(chosen.output)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output={folder}: a file; expected a folder")
    if (folder / runs.CONFIG).exists():
        raise UserError(f"output={folder}: holds a training run; choose another folder")
    there = next((name for name in _FILES if (folder / name).exists()), None)
    if there is not None and not chosen.overwrite:
        raise UserError(f"output={folder}: has {there}; overwrite=true replaces an evaluation")
    return folder


def _old_events(folder: Path) -> list[Path]:
    """Event files that readers would see beside the new one."""
    if not (folder / runs.METRICS).exists():
        return []
    return [path for path in folder.glob("events.out.tfevents.*") if re.search(r"tfevents\.\d+\..*\.\d+$", path.name)]


def _loss(chosen: config.EvaluateConfig, checkpoint: checkpoints.Checkpoint) -> losses.Loss | None:
    """The loss whose cost is reported."""
    if chosen.loss is None:
        log.warning(
            "no cost is reported: the run's loss is its user's own class, which is not imported unless it is named "
            "again: %s",
            _again("loss", checkpoint),
        )
        return None
    facts, outputs = checkpoint.facts, len(checkpoint.weight)
    loss = losses.build(chosen.loss, facts.class_counts)
    if loss.outputs(len(facts.classes)) != outputs:
        name = chosen.loss.__struct_config__.tag
        raise UserError(f"loss={name}: does not fit the run, which has {outputs} output{'s' * (outputs != 1)}")
    if loss.learns:
        try:
            loss.load_state_dict({name: torch.from_numpy(each) for name, each in checkpoint.loss.items()})
        except RuntimeError as error:
            raise UserError(f"loss: its parameters are not those of the run: {' '.join(str(error).split())}") from error
    return loss


def _again(group: str, checkpoint: checkpoints.Checkpoint) -> str:
    """What to type to name a class of the user's own again."""
    section = dict(checkpoint.config.get(group, {}))
    typed = [f"{group}=custom", f"{group}._target_={section.pop('_target_', None)}"]
    kind: type[msgspec.Struct] = config.CustomLoss if group == "loss" else config.CustomData
    known = {"name", *(field.name for field in msgspec.structs.fields(kind))}
    typed += [f"+{group}.{key}={show(value)}" for key, value in section.items() if key not in known]
    parts = [f"{group}.{key}={section[key]}" for key in ("val_fraction", "test_fraction") if section.get(key)]
    return " ".join(typed + parts)


def _rows(
    chosen: config.EvaluateConfig, plain: dict[str, Any], checkpoint: checkpoints.Checkpoint, ignored: int
) -> aligned.Chosen:
    stored, before = checkpoint.config, checkpoint.config["data"]
    if chosen.data is None:
        raise UserError(
            "data: the run was trained on rows of its user's own class, which is not imported unless it is named "
            f"again: {_again('data', checkpoint)}; or give a file: data=csv data.path=new.csv"
        )
    unchanged = all(plain["data"].get(key) == value for key, value in before.items() if key != "in_memory")
    val = before.get("val_fraction")
    if val is None:  # as the source itself has it
        val = 0.0 if before.get("val_path") or "val_fraction" not in before else DEFAULT_VAL_FRACTION
    trained = aligned.Trained(checkpoint.facts, float(val), float(before.get("test_fraction") or 0.0), stored["seed"])
    return aligned.load(chosen.data, trained, chosen.split, unchanged=unchanged, ignored=ignored)


class _Model:
    """The trained weights on a device.

    Args:
        checkpoint: that has them.
        loss: whose cost is wanted; None: none is.
        accelerator: which device, and in which precision.
        world: the processes that share the rows.
    """

    def __init__(
        self,
        checkpoint: checkpoints.Checkpoint,
        loss: losses.Loss | None,
        accelerator: config.AnyEvaluationAccelerator,
        world: World,
    ) -> None:
        facts = checkpoint.facts
        self._world = world
        self._device = devices.choose(str(accelerator.__struct_config__.tag), world.local_rank)
        self._facts: DataFacts = facts
        weight = torch.from_numpy(checkpoint.weight)
        dtype = torch.float64 if accelerator.precision == "64-true" else torch.float32
        self._weight = weight.to(self._device, torch.promote_types(dtype, weight.dtype))
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
        classes = len(self._facts.classes)
        evaluation = Evaluation(classes, self.ignored).to(self._device)
        evaluation.temperature = self._temperature
        few = classes <= _FEW_CLASSES
        confusion = Confusion.empty(torch.arange(classes), classes) if few else None
        with progress("evaluating", "rows", shown=self._world.is_first) as advance:
            done = 0
            for batch in self._batches(table):
                cost, outputs = self._outputs(batch)
                logits = of_all_classes(outputs, classes)
                evaluation.update(cost, logits, batch.targets, batch.weights)
                if confusion is not None:
                    confusion.add(batch, logits.argmax(dim=1), self.ignored)
                done += batch.global_rows
                advance(done, done / len(table))
        if confusion is None:
            confusion = self._confusion_of_worst(table, evaluation.scores.of_all_ranks().per_class)
        return evaluation, confusion._replace(counts=together.total(confusion.counts))

    def _confusion_of_worst(self, table: Table, classes: PerClass) -> Confusion:
        worst = classes.most_mistaken[:_WORST_CLASSES].cpu()
        confusion = Confusion.empty(worst, len(self._facts.classes))
        rows = torch.isin(table.targets, worst).nonzero().squeeze(1)
        for batch in self._batches(table.take(rows)) if len(rows) else ():
            logits = of_all_classes(self._outputs(batch)[1], len(self._facts.classes))
            confusion.add(batch, logits.argmax(dim=1), self.ignored)
        return confusion

    def _batches(self, table: Table) -> Iterator[Batch]:
        rows = evaluation_rows(len(self._facts.classes), len(self._facts.columns))
        loader = BatchLoader(table.standardized(self._scale), rows)
        loader.share(self._world.rank, self._world.ranks)
        loader.place(self._device)
        for batch in loader:
            yield batch.to(self._device)

    def _outputs(self, batch: Batch) -> tuple[losses.Cost | None, Tensor]:
        features = batch.features.to(self._weight.dtype)
        if self._loss is None:
            return None, torch.nn.functional.linear(features, self._weight, self._bias)
        return self._loss.with_outputs(features, self._weight, self._bias, batch.targets, batch.weights)


def _named(chosen: config.EvaluateConfig) -> str:
    assert chosen.data is not None
    name = str(chosen.data.__struct_config__.tag)
    return f"{name} {chosen.data.path}" if isinstance(chosen.data, config.FileData) else name
