"""Sweeps: their jobs, and the names that tell these apart. Imports no torch."""

import importlib.util
import re
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig, OmegaConf

from crossent import runs
from crossent.checking import check
from crossent.composing import parse, quoted
from crossent.config import SearchConfig
from crossent.errors import UserError

#: Optuna's study of a search, in its directory.
STUDY = "study.db"
#: Hydra's key for what jobs are not named after.
SAME_IN_ALL = "hydra.job.config.override_dirname.exclude_keys"

_LONGEST_NAME = 120
_OPTUNA = "OptunaSweeper"


def job_name(number: int, overrides: str) -> str:
    """The name of a job's directory, by which TensorBoard shows it.

    Args:
        number: of the job.
        overrides: that it has and others have not, as Hydra writes them.
    """
    # No sign that an override would need quotes for: run=<directory> is typed.
    rounded = re.sub(r"\d+\.\d{5,}(e-?\d+)?", lambda number: f"{float(number[0]):.4g}", overrides)  # a search's draws
    words = re.sub(r"[^\w.+-]+", "-", rounded).strip("-+")
    return f"{number}_{words}"[:_LONGEST_NAME].rstrip("_")


OmegaConf.register_new_resolver("job_name", job_name, replace=True)


def check_directory(composed: DictConfig) -> None:
    """Refuses a directory that has a sweep already, unless that is a search, which goes on.

    Raises:
        UserError: it has one.
    """
    directory = Path(composed.hydra.sweep.dir)
    goes_on = _is_search(composed) and (directory / STUDY).exists()
    if (directory / runs.SWEEP).exists() and not goes_on:
        raise UserError(f"hydra.sweep.dir={directory}: it holds a sweep; choose another directory")


def jobs(hydra: Hydra, composed: DictConfig) -> list[list[str]]:
    """The overrides of every job of a grid; of a search those of its corners, beyond which no job will be.

    Another sampler draws its jobs one after the other; each of those is checked when it starts.

    Raises:
        UserError: a search that cannot be.
    """
    parser = OverridesParser.create(config_loader=hydra.config_loader)
    overrides = parser.parse_overrides([*parameters(composed), *composed.hydra.overrides.task])
    if _is_search(composed):
        _check_search(composed, overrides)
        return [
            [f"{each.get_key_element()}={_corner(each, last=last)}" for each in overrides] for last in (False, True)
        ]
    if not str(composed.hydra.sweeper._target_).endswith(f".{BasicSweeper.__name__}"):
        return []
    return [list(job) for job in BasicSweeper.split_arguments(overrides, max_batch_size=None)[0]]


def overrides(composed: DictConfig) -> list[str]:
    """What is typed for a sweep by ourselves: that it is one, where it goes, and what jobs are not named after."""
    typed = parse(list(composed.hydra.overrides.task))
    same = sorted(each.key_or_group for each in typed if not each.is_sweep_override())
    ours = ["hydra.mode=MULTIRUN", f"hydra.sweep.dir={quoted(composed.hydra.sweep.dir)}"]
    if not any(each.startswith(SAME_IN_ALL) for each in composed.hydra.overrides.hydra):
        ours.append(f"{SAME_IN_ALL}=[{','.join(quoted(key) for key in same)}]")
    return ours


def parameters(composed: DictConfig) -> list[str]:
    """What a configuration sweeps over, ``hydra.sweeper.params``, but for keys that were typed."""
    typed = {each.key_or_group for each in parse(list(composed.hydra.overrides.task))}
    found = composed.hydra.sweeper.get("params") or {}
    return [f"{key}={value}" for key, value in found.items() if key not in typed]


def _is_search(composed: DictConfig) -> bool:
    return str(composed.hydra.sweeper._target_).endswith(f".{_OPTUNA}")


def _check_search(composed: DictConfig, overrides: list[Override]) -> None:
    if importlib.util.find_spec("optuna") is None:
        raise UserError("hydra/sweeper=optuna: Optuna is not installed: pip install 'crossent[search]'")
    plain = OmegaConf.to_container(composed.hydra.sweeper)
    assert isinstance(plain, dict)
    try:
        check({str(key): value for key, value in plain.items()}, SearchConfig)
    except UserError as error:
        raise UserError(f"hydra.sweeper.{error}") from error
    searched = [each.key_or_group for each in overrides if each.is_sweep_override()]
    if not searched:
        raise UserError(
            "hydra/sweeper=optuna: nothing to search; give a key an interval or choices: "
            "'optimizer.lr=tag(log,interval(1e-3,1))'"
        )
    if "seed" in searched:
        raise UserError("seed: a search would take the luckiest seed for the best; give it one value")


def _corner(override: Override, *, last: bool) -> str:
    """The first or last of the values that an override stands for."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        return str(value.end if last else value.start)
    if not override.is_sweep_override():
        return str(override.get_value_element_as_str())
    return list(override.sweep_string_iterator())[-1 if last else 0]
