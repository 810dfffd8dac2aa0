"""What an evaluation leaves for its reader: a table of the classes, TensorBoard's events, and the console."""

import csv
import logging
from pathlib import Path

import torch
from rich.cells import cell_len

from crossent.console import metrics_table, shown
from crossent.figure_style import shortened
from crossent.metrics import PerClass

log = logging.getLogger(__name__)

_LISTED = 20  # classes on the console
_LONGEST_NAME = 40


def write_classes(path: Path, names: tuple[str, ...], classes: PerClass) -> None:
    """Writes a CSV file with a row a class."""
    columns = (classes.support, classes.predicted, classes.precision, classes.recall, classes.f1)
    with path.open("w", newline="", encoding="utf8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["class", "rows", "predicted", "precision", "recall", "f1"])
        for name, *numbers in zip(names, *(each.tolist() for each in columns), strict=True):
            writer.writerow([name, *(f"{number:.10g}" for number in numbers)])


def write_pictures(folder: Path, pictures: dict[str, bytes]) -> None:
    """Writes a PNG file of each picture, by its name."""
    for name, png in pictures.items():
        (folder / f"{name}.png").write_bytes(png)


def write_events(folder: Path, split: str, metrics: dict[str, float], pictures: dict[str, bytes], steps: int) -> None:
    """Writes an event file with metrics and pictures, by their names."""
    from crossent.event_file import Writer

    with Writer(folder, None) as writer:
        writer.add_points(metrics, steps)
        for name, png in pictures.items():
            writer.add_png(f"{split}/{name}", png, steps)


def report(metrics: dict[str, float], steps: int, names: tuple[str, ...], classes: PerClass, folder: Path) -> None:
    """Prints the metrics, and the classes, those with the most mistakes where there are many."""
    log.info("")
    for line in metrics_table({tag: (steps, value) for tag, value in metrics.items()}):
        log.info("%s", line)
    listed = torch.arange(len(names))
    if len(names) > _LISTED:
        listed = classes.most_mistaken[: _LISTED // 2]
        log.info("\nthe %d classes with the most mistakes, of %d:", len(listed), len(names))
    else:
        log.info("")
    cut = {index: shortened(names[index], _LONGEST_NAME) for index in listed.tolist()}
    width = max(5, *map(cell_len, cut.values()))
    log.info("class%s  %10s  %9s  %6s  %6s", " " * (width - 5), "rows", "precision", "recall", "F1")
    for index, name in cut.items():
        precision, recall, f1 = (float(each[index]) for each in (classes.precision, classes.recall, classes.f1))
        padded = name + " " * (width - cell_len(name))  # some letters take two places
        log.info("%s  %10g  %9.4f  %6.4f  %6.4f", padded, float(classes.support[index]), precision, recall, f1)
    log.info("\nwritten: %s (metrics.json, classes.csv, confusion_matrix.png, reliability.png)", shown(folder))
