"""Which of the configuration's values tell runs apart, for tables of many runs. Imports no torch."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

#: A value of a hyperparameter, as tables show it.
Value = str | float | bool

# Of every run, where it has them; a group stands for its choice. HPARAMS shows the first five in the order of their
# names, so that there are no more of them than that before the seed.
_ALWAYS = ("data", "loss", "model.l2", "optimizer", "optimizer.lr", "seed")
# What is typed about a run that changes nothing of what it learns.
_NOT_LEARNT = ("hydra", "logger", "resume", "config", "experiment", "trainer.log_every_n_steps", "callbacks.checkpoint")

# A thousand runs are read in a second with it, and in seven without.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it is no text.
        yaml.YAMLError: it is no YAML.
    """
    return yaml.load(path.read_text(), _Loader)  # both loaders are safe ones


def typed(directory: Path) -> list[str]:
    """The overrides that were typed for a run, as Hydra has written them down; none where it has not."""
    path = directory / ".hydra" / "overrides.yaml"
    found = read_yaml(path) if path.exists() else None
    return [str(each) for each in found] if isinstance(found, list) else []


def keys(overrides: Iterable[str]) -> list[str]:
    """The keys that a run is known by: a few that are of every run, and those that were typed for this one."""
    named = [each.partition("=")[0].lstrip("+").partition("@")[0] for each in overrides if not each.startswith("~")]
    return list(dict.fromkeys([*_ALWAYS, *sorted(key for key in named if not _is_beside(key))]))


def value(plain: Mapping[str, Any], key: str) -> Value | None:
    """What a configuration, as plain values, has for a key; None where it has nothing."""
    found: Any = plain
    for part in key.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return None
        found = found[part]
    if isinstance(found, Mapping):
        found = found.get("name")
    return found if found is None or isinstance(found, bool | str | int | float) else str(found)


def of_run(directory: Path, plain: Mapping[str, Any]) -> dict[str, Value]:
    """What a run is known by, by its keys.

    Args:
        directory: of the run.
        plain: its configuration, as plain values.
    """
    found = {key: value(plain, key) for key in keys(typed(directory))}
    known = {key: each for key, each in found.items() if each is not None}
    if "data.batch_size" in known:  # a word in other runs, and HPARAMS wants one kind of value in all of them
        known["data.batch_size"] = str(known["data.batch_size"])
    return known


def _is_beside(key: str) -> bool:
    return any(key == each or key.startswith(f"{each}.") for each in _NOT_LEARNT)
