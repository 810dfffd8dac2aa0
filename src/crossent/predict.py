"""``crossent-predict``: the classes of new rows, by a trained run."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossent import entry

if TYPE_CHECKING:
    from crossent import cli
    from crossent.config import PredictConfig


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; see ``crossent-predict --help``."""
    entry.start(command, arguments)


def command() -> "cli.Command[PredictConfig]":
    """``crossent-predict``."""
    from crossent import cli, config

    return cli.Command("predict", config.PredictConfig, _task)


def _task(config: "PredictConfig", plain: dict[str, Any], directory: Path) -> object:
    from crossent.predicting import predict  # only now: a wrong override need not wait for it

    return predict(config)


if __name__ == "__main__":
    main()
