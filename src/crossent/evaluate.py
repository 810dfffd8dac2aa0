"""``crossent-evaluate``: how good a trained run is."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossent import entry, stopping

if TYPE_CHECKING:
    from crossent import cli
    from crossent.config import EvaluateConfig


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; see ``crossent-evaluate --help``."""
    entry.start(command, arguments)


def command() -> "cli.Command[EvaluateConfig]":
    """``crossent-evaluate``."""
    from crossent import cli, config
    from crossent.processes import choosing

    return cli.Command(
        "evaluate",
        config.EvaluateConfig,
        _task,
        evaluates=True,
        follow=choosing.follow,
        finish=choosing.finish,
    )


def _task(config: "EvaluateConfig", plain: dict[str, Any], directory: Path) -> object:
    from crossent.processes import choosing
    from crossent.processes.job import Job

    world = choosing.wanted(config.accelerator)
    if world.ranks > 1:
        return choosing.run(Job("evaluate", plain, directory), world)
    with stopping.postponed():
        from crossent.evaluating import evaluate  # only now: a wrong override need not wait for it

    return evaluate(config, plain)


if __name__ == "__main__":
    main()
