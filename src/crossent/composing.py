"""What Hydra is asked to compose, also from a stored configuration, and what its complaints mean.

Imports no torch.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from crossent import runs
from crossent.checking import check, did_you_mean, show
from crossent.config import NAMED_GROUPS
from crossent.errors import UserError

#: What a resumed run keeps, so that it stays the run it was.
_KEPT = ("seed", "data", "model", "loss", "optimizer", "scheduler")


@dataclass(frozen=True)
class Request:
    """What Hydra is to compose.

    ``resumed`` is the stored configuration of the run to go on with, or None for a new run.
    """

    config_name: str
    overrides: list[str]
    mode: RunMode
    resumed: dict[str, Any] | None = None

    def check_unchanged(self, composed: dict[str, Any]) -> None:
        """Refuses a resumed run that would be another one than it was.

        Raises:
            UserError: seed, data, model, loss, optimizer or scheduler differ from the stored ones.
        """
        if self.resumed is None:
            return
        for key in _KEPT:
            difference = _difference(key, self.resumed.get(key), composed.get(key))
            if difference is not None:
                changed, old, new = difference
                raise UserError(
                    f"{changed}={show(new)}: a resumed run keeps its {key} (there {changed}={show(old)}); "
                    "to start a new run from that configuration type config= instead of resume="
                )


def conf_directory() -> Path:
    """``conf/``: packed beside this file in a wheel, at the top of the repository otherwise."""
    packed = Path(__file__).parent / "conf"
    return packed if packed.is_dir() else Path(__file__).parents[2] / "conf"


def plain(composed: DictConfig) -> dict[str, Any]:
    """The composed configuration as resolved plain values, without Hydra's own."""
    without_hydra = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    values = OmegaConf.to_container(without_hydra, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def request(config_name: str, overrides: list[str], *, multirun: bool) -> Request:
    """Reads ``config=`` and ``resume=`` from the overrides, as they decide what to compose from.

    Raises:
        UserError: an override that cannot be read, or a run that does not exist.
    """
    mode = RunMode.MULTIRUN if multirun else RunMode.RUN
    typed = _parse(overrides)
    start, resume = _text(typed, "config"), _text(typed, "resume")
    if resume is None:
        if start is None:
            return Request(config_name, overrides, mode)
        stored = runs.find(start, "config").config(f"config={start}")
        return Request(_stored_as_primary(config_name, stored, typed), overrides, mode)
    key = f"resume={resume}"
    if multirun:
        raise UserError(f"{key}: a sweep starts new runs; resume goes on with one")
    if start is not None:
        raise UserError(f"{key}: goes on with that run's configuration; leave config={start} out")
    if any(each.key_or_group == "hydra.run.dir" for each in typed):
        raise UserError(f"{key}: goes on in that run's directory; leave hydra.run.dir out")
    run = runs.find(resume, "resume")
    stored = run.config(key)
    directory = str(run.directory).replace("\\", "\\\\").replace("'", "\\'")
    in_place = [f"hydra.run.dir='{directory}'", "hydra.output_subdir=null"]  # .hydra/ stays as the run began
    return Request(_stored_as_primary(config_name, stored, typed), [*overrides, *in_place], mode, stored)


@contextlib.contextmanager
def explained(hydra: Hydra, request: Request) -> Iterator[None]:
    """Turns Hydra's and OmegaConf's exceptions into one line for the user."""
    try:
        yield
    except MissingConfigException as error:
        raise UserError(_missing_choice(error)) from error
    except (HydraException, OmegaConfBaseException) as error:
        _raise_if_unknown_key(hydra, request)
        raise UserError(_complaint(error)) from error


def _parse(overrides: list[str]) -> list[Override]:
    parser = OverridesParser.create()
    parsed = []
    for override in overrides:
        try:
            parsed += parser.parse_overrides([override])
        except (OverrideParseException, HydraException) as error:
            why = str(error).splitlines()[0]
            if "=" not in override:
                why = "expected key=value, such as optimizer.lr=0.1"
            raise UserError(f"{override}: {why}") from error
        last = parsed[-1]
        group = last.key_or_group
        chooses = not last.is_delete() and not last.is_sweep_override() and _is_group(group)
        if chooses and not isinstance(last.value(), str | list | None):
            raise UserError(
                f"{override}: {group} is a group: choose with {group}=<name>, then set {group}.<key>=<value>"
            )
    return parsed


def _difference(key: str, old: object, new: object) -> tuple[str, object, object] | None:
    """The first key at or below ``key`` in which two configurations differ, and its two values."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return None if old == new else (key, old, new)
    for below in sorted({**old, **new}, key=lambda name: (name != "name", name)):  # another choice is said first
        found = _difference(f"{key}.{below}", old.get(below), new.get(below))
        if found is not None:
            return found
    return None


def _text(typed: list[Override], key: str) -> str | None:
    """The text that was typed for a key, if it was."""
    for override in reversed(typed):
        if override.key_or_group == key and not override.is_delete():
            if override.is_sweep_override():
                raise UserError(f"{override.input_line}: takes one value, in a sweep as well")
            value = override.value()
            return None if value is None else str(value)
    return None


def _stored_as_primary(config_name: str, stored: dict[str, Any], typed: list[Override]) -> str:
    """Stores a primary configuration for Hydra that starts from ``stored``, and returns its name.

    The stored values come after the groups' files, so they win over today's defaults, while keys that have come
    since get theirs; a group that is typed now leaves its stored section out.
    """
    choices = {each.key_or_group: each.value() for each in typed if isinstance(each.value(), str)}
    if "experiment" in choices:
        raise UserError(
            f"experiment={choices['experiment']}: starts from a configuration of its own; "
            "leave it out with config= or resume="
        )
    stored = {**stored, "config": None, "resume": None}
    primary = yaml.safe_load((conf_directory() / f"{config_name}.yaml").read_text())
    defaults: list[Any] = []
    for entry in primary["defaults"]:
        if not isinstance(entry, dict):
            continue
        (group, choice), *_ = entry.items()
        section = stored.get(group)
        if group in NAMED_GROUPS and isinstance(section, dict) and isinstance(section.get("name"), str):
            choice = section["name"]
            if choices.get(group, choice) != choice:
                del stored[group]
        defaults.append({group: choice})
    name = f"{config_name}_from_stored"
    ConfigStore.instance().store(name, OmegaConf.create({"defaults": [*defaults, "_self_"], **stored}))
    return name


def _missing_choice(error: MissingConfigException) -> str:
    missing = error.missing_cfg_file or "?"
    group, _, choice = missing.rpartition("/")
    if not group:
        return f"--config-name={missing}: no such configuration"
    options = sorted(error.options or [])
    return f"{group}={choice}: no such {group}{did_you_mean(choice, options)} One of: {', '.join(options)}"


def _raise_if_unknown_key(hydra: Hydra, request: Request) -> None:
    """Lets the check word what Hydra refused: composes again with every value let through."""
    through = [
        line
        if line[0] in "+~" or each.key_or_group.startswith("hydra") or _is_group(each.key_or_group)
        else f"++{line}"
        for line, each in zip(request.overrides, _parse(request.overrides), strict=True)
    ]
    with contextlib.suppress(HydraException, OmegaConfBaseException):
        check(plain(hydra.compose_config(request.config_name, through, request.mode)))


def _is_group(key: str) -> bool:
    return (conf_directory() / key).is_dir()


def _complaint(error: Exception) -> str:
    """The gist of one of Hydra's messages, which take several lines."""
    lines = [line.strip().rstrip(".") for line in f"{error}\n{error.__cause__ or ''}".splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    if first.startswith(("Ambiguous value for argument", "Sweep parameters")):
        typed = first.split("'")[1]
        return f"{typed}: several values are a sweep: add --multirun (-m); a list is written [a,b]"
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return f"{error.full_key}: {first}"
    return "; ".join(lines[:2])
