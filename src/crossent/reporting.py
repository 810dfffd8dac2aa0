"""What the console says of a run: before, after, and what it leaves out."""

import logging
import shutil
import sys
import warnings
from pathlib import Path

import lightning.pytorch as lightning

from crossent import config, runs
from crossent.classifier import SoftmaxClassifier
from crossent.console import metrics_table, shown
from crossent.data.module import DataModule
from crossent.loggers import LastPoints
from crossent.processes.world import World
from crossent.resuming import Origin

log = logging.getLogger(__name__)

# What Lightning says in every run and nobody can do anything about.
_SAID_IN_EVERY_RUN = (
    "GPU available",
    "TPU available",
    "HPU available",
    "💡 Tip",
    "`Trainer.fit` stopped",
    "Restor",
    "Detected KeyboardInterrupt",
    "Loaded model weights",
    "Loading `train_dataloader` to estimate",
    "You are using a CUDA device",  # and could round its products more
    "LOCAL_RANK: ",
)


def quieten() -> None:
    """Leaves out Lightning's advertisement, its doubled lines, and warnings that have no remedy."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()  # what the root logger prints would be printed twice
        logger.propagate = True
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_is_news)
    # What TensorBoard finds in the event files that a resumed run reads again.
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    # The curves are written by the steps themselves, whatever the length of an epoch.
    warnings.filterwarnings("ignore", "The number of training batches .* is smaller than the logging interval")
    # Whoever chose the CPU knows.
    warnings.filterwarnings("ignore", "GPU available but not used")
    # Our loader has no workers: its batches are slices of what is in memory.
    warnings.filterwarnings("ignore", "The '.*_dataloader' does not have many workers")
    # No such split is an empty list of loaders, which Lightning asks for; it looks again under overfit_batches.
    warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero")
    # The metrics are those of all ranks when they are logged.
    warnings.filterwarnings("ignore", "It is recommended to use `self.log")
    # A run may go on with other callbacks, when they are typed.
    warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`, callbacks used to create")
    # Lightning's copy of a function of PyTorch's (lightning/pytorch/utilities/_pytree.py).
    warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().lstrip().startswith(_SAID_IN_EVERY_RUN)


def print_header(
    chosen: config.TrainConfig,
    module: DataModule,
    classifier: SoftmaxClassifier,
    loop: lightning.Trainer,
    directory: Path,
    world: World,
) -> None:
    """Says what is about to run."""
    facts = module.facts
    rows = " + ".join(f"{module.rows(split)} {split}" for split in ("train", "val", "test") if module.rows(split))
    loss = _name(chosen.loss)
    if isinstance(chosen.loss, config.AutoLoss):
        loss += f" ({type(classifier.loss).__name__})"
    lr = getattr(chosen.optimizer, "lr", None)
    rate = "" if lr is None else f", lr {lr:g}"
    batch = "all rows" if module.batch_rows == module.rows("train") else f"{module.batch_rows} rows"
    columns, classes = len(facts.columns), len(facts.classes)
    path = f" {chosen.data.path}" if isinstance(chosen.data, config.FileData) else ""
    of = "" if facts.target is None else f" of '{facts.target}'"
    log.info(
        "data       %s%s: %s rows, %d features, %d classes%s", _name(chosen.data), path, rows, columns, classes, of
    )
    log.info("loss       %s", loss)
    log.info("optimizer  %s%s, %s a step", _name(chosen.optimizer), rate, batch)
    log.info("device     %s, %s", world.described(str(loop.strategy.root_device)), loop.precision)
    log.info("run        %s\n", shown(directory))


def print_resume(origin: Origin) -> None:
    """Says where a run goes on, and what it passed over."""
    for damaged in origin.passed_over:
        log.warning("passed over: %s", damaged)
    if origin.checkpoint is None:
        log.info("no %s: starting at step 0\n", "whole checkpoint" if origin.passed_over else "checkpoint yet")
    else:
        log.info("going on from step %d, %s\n", origin.step, shown(origin.found or origin.checkpoint))


def print_results(
    chosen: config.TrainConfig,
    last: LastPoints,
    directory: Path,
    *,
    steps: int,
    seconds: float,
    stopped_early: bool,
    best_accuracy: float | None,
) -> None:
    """Says how the run ended, and how to look at its curves."""
    patience = chosen.callbacks.early_stopping.patience
    why = f"; val/cost had not improved for {patience} validations" if stopped_early else ""
    log.info("\ntrained to step %d in %.2f s%s", steps, seconds, why)
    for line in metrics_table(last.points):
        log.info("%s", line)
    if best_accuracy is not None:
        log.info("accuracy of the best possible classifier, on average over all rows: %.6f", best_accuracy)
    if isinstance(chosen.logger, config.TensorBoardLogger) and last.points:
        logs = runs.LATEST.parent.absolute()
        log.info("\ncurves: %s --logdir %s", _tensorboard(), shown(logs if logs in directory.parents else directory))


def _name(section: config.Section) -> str:
    name = str(type(section).__struct_config__.tag)
    class_path = getattr(section, "class_path", None)
    return name if class_path is None else f"{name} ({class_path})"


def _tensorboard() -> str:
    """The command as it can be typed: the one beside this Python where PATH has none."""
    beside = Path(sys.executable).with_name("tensorboard")
    return "tensorboard" if shutil.which("tensorboard") or not beside.exists() else shown(beside)
