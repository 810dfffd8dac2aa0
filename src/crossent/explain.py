"""``crossent-explain``: shows what a softmax and its losses compute, step by step."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossent import entry, stopping

if TYPE_CHECKING:
    from crossent import cli
    from crossent.config import ExplainConfig


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; see ``crossent-explain --help``."""
    entry.start(command, arguments)


def command() -> "cli.Command[ExplainConfig]":
    """``crossent-explain``."""
    from crossent import cli, config

    return cli.Command("explain", config.ExplainConfig, _task)


def _task(config: "ExplainConfig", plain: dict[str, Any], directory: Path) -> None:
    with stopping.postponed():
        import torch  # only now: a wrong override need not wait for it

        from crossent.explaining import explain

    torch.set_num_threads(1)  # what is explained is tiny
    explain(config)


if __name__ == "__main__":
    main()
