"""A search by Optuna over what Hydra would sweep over, whose study is kept in the directory of the sweep.

Hydra's own plug-in for Optuna (hydra-optuna-sweeper 1.3.0) wants an Optuna of before 2022, and begins an interrupted
study's trials again from the first draw.
"""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep, Transformer
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from sqlalchemy.engine import URL

from crossent import runs, sweeps
from crossent.comparison import is_better_if_higher
from crossent.console import shown
from crossent.errors import UserError

_STUDY = "search"


def search(arguments: list[str], loader: Any, config: DictConfig, launcher: Launcher) -> list[Sequence[JobReturn]]:
    """Runs the trials that a study lacks, and keeps what came of each at once.

    Args:
        arguments: the overrides that were typed.
        loader: Hydra's, which knows the choices of groups.
        config: the composed configuration, of which ``hydra.sweeper`` is a `crossent.config.SearchConfig`.
        launcher: runs the jobs.

    Returns:
        What the jobs returned, in the batches in which they were drawn.

    Raises:
        UserError: the study in that directory is another one, or a run has no such metric.
    """
    chosen, directory = config.hydra.sweeper, Path(config.hydra.sweep.dir)
    parsed = OverridesParser.create(config_loader=loader).parse_overrides([*sweeps.parameters(config), *arguments])
    space = {each.get_key_element(): _distribution(each) for each in parsed if each.is_sweep_override()}
    fixed = [
        f"{each.get_key_element()}={each.get_value_element_as_str()}" for each in parsed if not each.is_sweep_override()
    ]
    metric = chosen.metric or ("val/accuracy" if any(key.split(".")[0] == "loss" for key in space) else "val/cost")
    directory.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, directory / runs.SWEEP)
    study = _study(directory, metric, fixed, space, seed=chosen.seed)
    returned: list[Sequence[JobReturn]] = []
    try:
        while (left := chosen.n_trials - _done(study)) > 0:
            trials = [study.ask(space) for _ in range(min(left, chosen.n_jobs))]
            jobs = [[*(f"{key}={_written(trial.params[key])}" for key in space), *fixed] for trial in trials]
            results = launcher.launch(jobs, initial_job_idx=trials[0].number)
            returned.append(results)
            for trial, result in zip(trials, results, strict=True):
                _tell(study, trial, result, metric)
    except UserError:
        raise
    except BaseException:  # a signal, for one
        print(f"the search goes on with: {_command(config, directory)}")
        raise
    return returned


def _study(
    directory: Path, metric: str, fixed: list[str], space: dict[str, BaseDistribution], *, seed: int
) -> optuna.Study:
    """The study in a directory, with what was interrupted in it to be done again."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=URL.create("sqlite", database=str(directory / sweeps.STUDY)).render_as_string(),
        study_name=_STUDY,
        direction="maximize" if is_better_if_higher(metric) else "minimize",
        load_if_exists=True,
    )
    about = {
        "metric": metric,
        "fixed values": " ".join(sorted(fixed)),
        "searched": " ".join(f"{key}={each}" for key, each in sorted(space.items())),
    }
    for name, now in about.items():
        before = study.user_attrs.get(name, now)
        if before != now:
            raise UserError(f"hydra.sweep.dir={directory}: the search there was begun with {name} {before}, not {now}")
        study.set_user_attr(name, now)
    interrupted = study.get_trials(states=[TrialState.RUNNING, TrialState.WAITING])
    for trial in interrupted:
        if trial.state == TrialState.RUNNING:
            study.tell(trial.number, state=TrialState.FAIL)
            study.enqueue_trial(trial.params, user_attrs={"again": trial.number})
    # A sampler that began with the same seed would draw the very same trials again.
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
    return study


def _done(study: optuna.Study) -> int:
    """Trials that came to an end, well or not; one that was interrupted counts once it is done again."""
    again = {trial.user_attrs.get("again") for trial in study.trials}
    ended = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.FAIL])
    return sum(trial.number not in again for trial in ended)


def _tell(study: optuna.Study, trial: optuna.Trial, result: JobReturn, metric: str) -> None:
    """Keeps what came of a trial. A run that failed, one that diverged for one, is no end of the search."""
    assert result.hydra_cfg is not None
    path = Path(result.hydra_cfg.hydra.runtime.output_dir) / runs.METRICS
    try:
        metrics = json.loads(path.read_text())
    except (OSError, ValueError):
        study.tell(trial, state=TrialState.FAIL)
        return
    if metric not in metrics:
        study.tell(trial, state=TrialState.FAIL)
        there = ", ".join(sorted(tag for tag in metrics if "/" in tag))
        raise UserError(f"hydra.sweeper.metric={metric}: {shown(path.parent)} has no such curve; there are {there}")
    study.tell(trial, metrics[metric])


def _distribution(override: Override) -> BaseDistribution:
    """What a sweep override means to Optuna."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        assert value.start is not None
        assert value.end is not None
        log = "log" in value.tags
        if isinstance(value.start, int) and isinstance(value.end, int):
            return IntDistribution(value.start, value.end, log=log)
        return FloatDistribution(value.start, value.end, log=log)
    if isinstance(value, RangeSweep) and all(isinstance(each, int) for each in (value.start, value.stop, value.step)):
        found = [int(each) for each in override.sweep_string_iterator()]
        return IntDistribution(min(found), max(found), step=abs(int(value.step)))
    assert isinstance(value, ChoiceSweep | RangeSweep) or override.is_discrete_sweep()
    return CategoricalDistribution([str(each) for each in override.sweep_iterator(transformer=Transformer.encode)])


def _written(value: Any) -> str:
    """A value as Hydra reads it to the last bit."""
    return repr(value) if isinstance(value, float) else str(value)


def _command(config: DictConfig, directory: Path) -> str:
    """What to type in a shell to go on with the search."""
    ours = ("hydra.mode=", "hydra.sweep.dir=", sweeps.SAME_IN_ALL)
    typed = [each for each in config.hydra.overrides.hydra if not each.startswith(ours)]
    words = ["crossent-train", "-m", *config.hydra.overrides.task, *typed, f"hydra.sweep.dir={shown(directory)}"]
    return " ".join(map(shlex.quote, words))
