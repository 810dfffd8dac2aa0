"""Evaluates a trained run, from its checkpoint and some labelled rows."""

import logging
import re
import time
from pathlib import Path
from typing import Any

import torch

from crossent import checkpoints, config, evaluation_report, plots, runs
from crossent.config.data import DEFAULT_VAL_FRACTION
from crossent.console import shown
from crossent.custom import again
from crossent.data import aligned
from crossent.errors import UserError
from crossent.evaluated_model import EvaluatedModel, read
from crossent.metrics import PerClass
from crossent.processes import together
from crossent.processes.grid import Grid
from crossent.processes.world import ALONE, World
from crossent.writing import whole_folder, write_json

log = logging.getLogger(__name__)

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
    grid = Grid.of(world, chosen.accelerator)
    checkpoint = read(chosen, run, grid)
    folder = together.from_first(lambda: _output_folder(chosen, run))
    model = together.agreed(lambda: EvaluatedModel(checkpoint, chosen, world, grid))
    rows = together.agreed(lambda: _rows(chosen, plain, checkpoint, model.ignored))
    log.info("run    %s, %d steps", shown(checkpoint.path), checkpoint.steps)
    log.info("rows   %s: %s, %s", _named(chosen), f"{len(rows.table):,}", rows.described)
    log.info("device %s", world.described(str(model.device)))
    evaluation, confusion = model.evaluate(rows.table)
    metrics = {f"{rows.split}/{name}": value for name, value in evaluation.metrics().items()}
    scores, calibrated = evaluation.scores.of_all_ranks(), evaluation.calibrated.of_all_ranks()
    if not scores.sums[-1]:
        raise UserError(f"data: no {rows.split} row counts: all of them are ignored or have the weight 0")
    if not world.is_first:
        return metrics
    names, classes = checkpoint.facts.classes, PerClass(*(each.cpu() for each in scores.per_class))
    with whole_folder(folder, "output", _old_events(folder)) as part:
        pictures = {"confusion_matrix": plots.confusion_matrix(confusion, names)}
        curves = {"predictions": scores.reliability}
        if checkpoint.temperature is not None:
            curves = {"calibrated": calibrated.reliability, "before": scores.reliability}
        pictures["reliability"] = plots.reliability(curves)
        evaluation_report.write_classes(part / "classes.csv", names, classes)
        evaluation_report.write_pictures(part, pictures)
        evaluation_report.write_events(part, rows.split, metrics, pictures, checkpoint.steps)
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


def _rows(
    chosen: config.EvaluateConfig, plain: dict[str, Any], checkpoint: checkpoints.Checkpoint, ignored: int
) -> aligned.Chosen:
    stored, before = checkpoint.config, checkpoint.config["data"]
    if chosen.data is None:
        raise UserError(
            "data: the run was trained on rows of its user's own class, which is not imported unless it is named "
            f"again: {again('data', checkpoint.config)}; or give a file: data=csv data.path=new.csv"
        )
    unchanged = all(plain["data"].get(key) == value for key, value in before.items() if key != "in_memory")
    val = before.get("val_fraction")
    if val is None:  # as the source itself has it
        val = 0.0 if before.get("val_path") or "val_fraction" not in before else DEFAULT_VAL_FRACTION
    trained = aligned.Trained(checkpoint.facts, float(val), float(before.get("test_fraction") or 0.0), stored["seed"])
    return aligned.load(chosen.data, trained, chosen.split, unchanged=unchanged, ignored=ignored)


def _named(chosen: config.EvaluateConfig) -> str:
    assert chosen.data is not None
    name = str(chosen.data.__struct_config__.tag)
    return f"{name} {chosen.data.path}" if isinstance(chosen.data, config.FileData) else name
