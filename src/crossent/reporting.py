"""What the console says of a run: before, after, and what it leaves out."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as lightning

from crossent import config, runs
from crossent.classifier import SoftmaxClassifier
from crossent.console import as_typed, metrics_table, shown
from crossent.data.module import DataModule
from crossent.loggers import LastPoints
from crossent.processes.world import World
from crossent.resuming import Origin
from crossent.solved_classifier import Fit

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
    log.info("loss       %s%s", loss, _penalty(chosen))
    log.info("optimizer  %s%s, %s a step", _name(chosen.optimizer), rate, batch)
    log.info("device     %s, %s", world.described(str(loop.strategy.root_device)), loop.precision)
    log.info("run        %s\n", shown(directory))


def _penalty(chosen: config.TrainConfig) -> str:
    path = chosen.model.l2_path
    if path is not None:
        return f", l2 {', '.join(f'{l2:g}' for l2 in path)}"
    if chosen.model.l2:
        return f", l2 {chosen.model.l2:g}"
    return ", no penalty (model.l2=0)" if isinstance(chosen.optimizer, config.NewtonCg) else ""


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
    fits: Sequence[Fit],
    stopped_early: bool,
    best_accuracy: float | None,
) -> None:
    """Says how the run ended, and how to look at its curves."""
    patience = chosen.callbacks.early_stopping.patience
    why = f"; val/cost had not improved for {patience} validations" if stopped_early else ""
    log.info("\ntrained to step %d in %.2f s%s", steps, seconds, why)
    if isinstance(chosen.optimizer, config.NewtonCg):
        print_fits(chosen, fits)
    for line in metrics_table(last.points):
        log.info("%s", line)
    if best_accuracy is not None:
        log.info("accuracy of the best possible classifier, on average over all rows: %.6f", best_accuracy)
    in_sweep = (directory.parent / runs.SWEEP).exists()  # which ends with such a line itself
    if isinstance(chosen.logger, config.TensorBoardLogger) and last.points and not in_sweep:
        logs = runs.LATEST.parent.absolute()
        kind = next((each for each in directory.parents if each.parent == logs), directory)  # not logs/latest as well
        log.info("\ncurves: %s --logdir %s", as_typed("tensorboard"), shown(kind))


def print_fits(chosen: config.TrainConfig, fits: Sequence[Fit]) -> None:
    """Says how near to the optimum a solver has come, and what came of each penalty where there were several."""
    path, optimizer = chosen.model.l2_path, chosen.optimizer
    assert isinstance(optimizer, config.NewtonCg)
    if path is not None:
        _print_path(fits)
    for fit in fits:
        which = f"model.l2={fit['l2']:g}: " if path is not None else ""
        if fit["end"] != "tolerance":
            log.warning("%s%s", which, _ending(fit, optimizer.tol))
        elif path is None:
            log.info("%s", _ending(fit, optimizer.tol))
    if not fits:
        log.warning("stopped by the run's limit before optimizer.tol=%g was reached", optimizer.tol)
    left = [] if path is None else path[len(fits) :]
    if left:
        log.warning("not fitted, since the run's limit came first (trainer.max_steps): model.l2=%s", left)


def _print_path(fits: Sequence[Fit]) -> None:
    """Prints a row a penalty, and which is best."""
    if not fits:
        return
    log.info("\n%12s  %8s  %12s  %12s  %13s", "model.l2", "step", "train/cost", "val/cost", "suboptimality")
    known = [fit for fit in fits if fit["val_cost"] is not None]
    best = min(known, key=lambda fit: fit["val_cost"] or 0.0, default=None)
    for fit in fits:
        val = "" if fit["val_cost"] is None else f"{fit['val_cost']:.6f}"
        distance = "" if fit["suboptimality"] is None else f"{fit['suboptimality']:.2e}"
        mark = "  <- best" if fit is best else ""
        log.info("%12.6g  %8d  %12.6f  %12s  %13s%s", fit["l2"], fit["steps"], fit["cost"], val, distance, mark)
    if best is not None and best is not fits[-1]:
        log.info(
            "best.ckpt has model.l2=%g (step %d); below, train and val are of the last, model.l2=%g",
            best["l2"],
            best["steps"],
            fits[-1]["l2"],
        )


def _ending(fit: Fit, tol: float) -> str:
    """What is known of the optimum, and what to do where that is not enough."""
    far = fit["suboptimality"]
    about = "at most" if fit["l2"] else "about"  # without a penalty there is no bound, but an estimate
    above = "" if far is None else f"cost + penalty is {about} {far:.1e} above the least possible, relative to it"
    match fit["end"]:
        case "tolerance":
            where = f"{above} (optimizer.tol={tol:g})" if fit["cost"] or fit["l2"] else "no row costs anything"
            return f"optimum reached: {where}, after {fit['passes']} passes through the rows"
        case "endless":
            return (
                f"{above or 'the least possible cost is near'}, but no finite weights have that: some classes can be "
                "told apart without error, and their weights grow for ever; add a penalty, model.l2=1e-4 for one"
            )
        case "separable":
            return (
                "no optimum exists: the training rows can be told apart without error, so the cost falls for ever as "
                f"the weights grow; stopped at step {fit['steps']}, where that became certain, so the weights depend "
                "on the start; add a penalty, model.l2=1e-4 for one"
            )
        case "precision":
            return (
                f"as near as the arithmetic gets{': ' if above else ''}{above}; optimizer.tol={tol:g} is finer than "
                "that (accelerator.precision=64-true keeps more digits of the weights)"
            )
        case None:
            where = above or "too far from the optimum to say how far"
            return f"stopped by the run's limit (trainer.max_steps) before optimizer.tol={tol:g} was reached: {where}"


def _name(section: config.Section) -> str:
    name = str(type(section).__struct_config__.tag)
    class_path = getattr(section, "class_path", None)
    return name if class_path is None else f"{name} ({class_path})"
