"""``crossent-train``: trains a softmax classifier, or goes on with a run."""

import sys
from pathlib import Path
from typing import Any

from crossent import cli
from crossent.config import TrainConfig


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; see ``crossent-train --help``."""
    sys.exit(cli.run("train", _task, arguments))


def _task(config: TrainConfig, plain: dict[str, Any], directory: Path) -> object:
    from crossent.training import train  # brings torch and Lightning in: seconds that a wrong override need not wait

    return train(config, plain, directory)


if __name__ == "__main__":
    main()
