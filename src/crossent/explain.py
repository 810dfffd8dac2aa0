"""``crossent-explain``: shows what a softmax and its losses compute, step by step."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crossent.config import ExplainConfig


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; see ``crossent-explain --help``."""
    try:
        from crossent import cli, config  # here, so that a Ctrl-C while they are imported is answered like any other
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(cli.run(cli.Command("explain", config.ExplainConfig, _task), arguments))


def _task(config: "ExplainConfig", plain: dict[str, Any], directory: Path) -> None:
    import torch  # only now: a wrong override need not wait for it

    from crossent.explaining import explain

    torch.set_num_threads(1)  # what is explained is tiny
    explain(config)


if __name__ == "__main__":
    main()
