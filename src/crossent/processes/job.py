"""What the ranks of a run are given to do, and what they say came of it. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Command = Literal["train", "evaluate"]
#: How long, in seconds, a rank waits for the others, where the configuration does not say; also until all have come.
PATIENCE = 300.0


@dataclass(frozen=True)
class Job:
    """A run, or its evaluation, as the process that has composed the configuration hands it to the ranks.

    Attributes:
        command: ``train`` or ``evaluate``.
        plain: the configuration, plain values, so that every rank has the same, whoever drew them.
        directory: of the run.
    """

    command: Command
    plain: dict[str, Any]
    directory: Path

    @property
    def patience(self) -> float:
        """Seconds that a rank waits for the others."""
        return float(self.plain["accelerator"].get("timeout", PATIENCE))


@dataclass(frozen=True)
class Outcome:
    """What a rank says when it ends.

    Attributes:
        metrics: the last points of the curves; None: it has failed.
        mistake: what the user has to change.
        lost: whether that is only that other ranks do not answer any more.
        signal: that has ended it.
        how: after how many steps that was, and how to go on.
        crash: the traceback of what should not have happened.
    """

    metrics: dict[str, float] | None = None
    mistake: str | None = None
    lost: bool = False
    signal: int | None = None
    how: str = ""
    crash: str | None = None
