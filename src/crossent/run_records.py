"""What is known of runs from the files that they have left. Imports no torch."""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from crossent import hyperparameters, runs

Status = Literal["finished", "running", "stopped", "broken"]

# One of them is there beside config.yaml in any run's directory, but not in other folders that have such a file.
_OF_RUNS = (".hydra", "train.log", runs.METRICS, runs.CHECKPOINTS)
_LAST_LINES = 4096  # bytes


@dataclass(frozen=True)
class RunRecord:
    """A run as it is known from its files.

    Attributes:
        directory: of the run.
        status: finished; running; stopped, before its end; or broken: its files cannot be read.
        reason: in words, why it is not finished.
        config: its configuration, as plain values.
        overrides: that were typed for it.
        metrics: the last value of each curve, by its tag.
        steps: optimiser steps that it took.
        seconds: that training took.
    """

    directory: Path
    status: Status
    reason: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    seconds: float = math.nan


def find(folder: Path) -> Iterator[RunRecord]:
    """Reads the runs in a folder and below it, in the order of their names, but does not follow links.

    Args:
        folder: that has them, or is one.
    """
    for path, folders, files in os.walk(folder):
        here = {*folders, *files}
        folders.sort(key=_by_number)
        if any(name in here for name in _OF_RUNS):
            folders.clear()
            yield read(Path(path))


def read(directory: Path) -> RunRecord:
    """Reads a run; whatever cannot be read is no error, but what is known of it."""
    try:
        config = hyperparameters.read_yaml(directory / runs.CONFIG)
        overrides = hyperparameters.typed(directory)
    except FileNotFoundError:
        return RunRecord(directory, "broken", f"no {runs.CONFIG}")
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        return RunRecord(directory, "broken", f"its configuration cannot be read: {_gist(error)}")
    if not isinstance(config, dict) or not isinstance(config.get("data"), dict):
        return RunRecord(directory, "broken", f"{runs.CONFIG} holds no configuration of a run")
    if runs.is_held(directory):
        return RunRecord(directory, "running", "running", config, overrides)
    try:
        stored = json.loads((directory / runs.METRICS).read_text())
        steps, seconds = int(stored.pop("steps")), float(stored.pop("seconds"))
        metrics = {str(tag): float(value) for tag, value in stored.items()}
    except FileNotFoundError:
        reason = "a try-out, trainer.fast_dev_run" if _is_try_out(config) else _last_words(directory)
        return RunRecord(directory, "stopped", reason, config, overrides)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return RunRecord(directory, "broken", f"{runs.METRICS} cannot be read: {_gist(error)}", config, overrides)
    return RunRecord(directory, "finished", "", config, overrides, metrics, steps, seconds)


def _is_try_out(config: dict[str, Any]) -> bool:
    trainer = config.get("trainer")
    return isinstance(trainer, dict) and bool(trainer.get("fast_dev_run"))


def _by_number(name: str) -> tuple[int, str]:
    """Jobs of a sweep are in the order of their numbers."""
    digits = name.partition("_")[0]
    return (int(digits), name) if digits.isdecimal() else (-1, name)


def _last_words(directory: Path) -> str:
    """What a run that has not ended well has said last about that."""
    unknown = "ended before its end"
    try:
        with (directory / "train.log").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_LINES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return unknown
    return next((words for line in reversed(lines) if (words := line.partition(" ERROR crossent: ")[2])), unknown)


def _gist(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
