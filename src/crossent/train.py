"""``crossent-train``: trains a softmax classifier, or goes on with a run."""

import gc
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossent import entry, stopping

if TYPE_CHECKING:
    from collections.abc import Callable

    from crossent import cli
    from crossent.config import TrainConfig


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; see ``crossent-train --help``."""
    entry.start(lambda: command(_task), arguments)


def command(task: "Callable[[TrainConfig, dict[str, Any], Path], object]") -> "cli.Command[TrainConfig]":
    """``crossent-train`` with a task: `crossent.training.train`, or another in its place."""
    from crossent import cli, config
    from crossent.processes import choosing

    return cli.Command(
        "train",
        config.TrainConfig,
        task,
        trains=True,
        follow=choosing.follow,
        finish=choosing.finish,
        end_sweep=_end_sweep,
    )


def _end_sweep(directory: Path) -> None:
    from crossent.summarizing import compare_sweep

    compare_sweep(directory)


def _task(config: "TrainConfig", plain: dict[str, Any], directory: Path) -> object:
    from crossent.processes import choosing
    from crossent.processes.job import Job

    if sys.stdout.isatty():
        print("loading PyTorch …", end="\r", flush=True)  # it takes seconds; the header is written over it
    world = choosing.wanted(config.accelerator)
    if world.ranks > 1:
        return choosing.run(Job("train", plain, directory), world)
    # Imports make 400,000 objects that stay. Looking through them for garbage again and again would take a seventh
    # of the time to start, and later some of every step's.
    gc.disable()
    with stopping.postponed():
        from crossent.training import train  # only now: a wrong override need not wait for it
    gc.freeze()
    gc.enable()
    return train(config, plain, directory)


if __name__ == "__main__":
    main()
