"""``crossent-summarize``: compares the runs in a folder."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossent import entry

if TYPE_CHECKING:
    from crossent import cli
    from crossent.config import SummarizeConfig


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; see ``crossent-summarize --help``."""
    entry.start(command, with_key(sys.argv[1:] if arguments is None else arguments))


def with_key(arguments: list[str]) -> list[str]:
    """The command line with ``folder=`` before a folder that was typed alone."""
    from crossent.composing import quoted

    if not arguments or "=" in arguments[0] or arguments[0].startswith("-"):
        return arguments
    return [f"folder={quoted(arguments[0])}", *arguments[1:]]


def command() -> "cli.Command[SummarizeConfig]":
    """``crossent-summarize``."""
    from crossent import cli, config

    return cli.Command("summarize", config.SummarizeConfig, _task)


def _task(config: "SummarizeConfig", plain: dict[str, Any], directory: Path) -> None:
    from crossent.summarizing import summarize

    summarize(config)


if __name__ == "__main__":
    main()
