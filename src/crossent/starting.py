"""What a run starts from: conf/ alone, or a configuration that an earlier run stored. Imports no torch."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import OmegaConf

from crossent import runs
from crossent.checking import show
from crossent.composing import conf_directory, parse, quoted
from crossent.config import NAMED_GROUPS
from crossent.console import shown
from crossent.errors import UserError

#: What a resumed run keeps, so that it stays the run it was.
_KEPT = ("seed", "data", "model", "loss", "optimizer", "scheduler")
#: What says how long a run is.
_LIMITS = ("trainer.max_steps", "trainer.max_epochs", "trainer.max_time")
_INSTEAD = "; to start a new run from that configuration type config= instead of resume="


@dataclass(frozen=True)
class Request:
    """What Hydra is to compose.

    Attributes:
        config_name: the primary configuration.
        overrides: those that were typed, and ours.
        mode: whether one run was asked for or a sweep.
        typed: the keys that were typed.
        resumed: the stored configuration of the run to go on with, or None for a new run.
    """

    config_name: str
    overrides: list[str]
    mode: RunMode
    typed: frozenset[str] = frozenset()
    resumed: dict[str, Any] | None = None

    def check_unchanged(self, composed: dict[str, Any]) -> None:
        """Refuses a resumed run that would be another one than it was.

        Keys that have come since that run was stored have no value there, and count only when typed.

        Raises:
            UserError: seed, data, model, loss, optimizer or scheduler differ from the stored ones, or a schedule over
                the whole run would no longer fit its length.
        """
        if self.resumed is None:
            return
        check_kept(self.resumed, composed, self.typed)
        old, new = runs.leaves(self.resumed), runs.leaves(composed)
        for key in _LIMITS:
            if new.get("scheduler.name") == "cosine" and new["scheduler.steps"] is None and old.get(key) != new[key]:
                raise UserError(
                    f"{key}={show(new[key])}: the run's cosine schedule was laid out for {key}={show(old.get(key))}"
                    + _INSTEAD
                )


def check_kept(stored: dict[str, Any], composed: dict[str, Any], typed: frozenset[str] = frozenset()) -> None:
    """Refuses what would make a resumed run another one than it was.

    Raises:
        UserError: seed, data, model, loss, optimizer or scheduler differ in a key that is stored or was typed.
    """
    old, new = runs.leaves(stored), runs.leaves(composed)
    for key in sorted(new, key=lambda key: (not key.endswith(".name"), key)):  # another choice before what it entails
        section = key.split(".")[0]
        if section in _KEPT and (key in old or key in typed) and old.get(key) != new[key]:
            there = f"there {key}={show(old[key])}" if key in old else "there it is not set"
            raise UserError(f"{key}={show(new[key])}: a resumed run keeps its {section} ({there}){_INSTEAD}")


def ends_alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two configurations of a run end it at the same step."""
    what = [(config["trainer"], config["callbacks"]["early_stopping"]) for config in (one, other)]
    return what[0] == what[1]


def request(config_name: str, overrides: list[str], *, multirun: bool) -> Request:
    """Reads ``config=`` and ``resume=`` from the overrides, as they decide what to compose from.

    Raises:
        UserError: an override that cannot be read, or a run that does not exist.
    """
    mode = RunMode.MULTIRUN if multirun else RunMode.RUN
    typed = parse(overrides)
    start, resume = _text(typed, "config"), _text(typed, "resume")
    warm = None if resume is not None else _text(typed, "model.warm_start")
    if warm is not None:  # found now: `latest` will be the new run itself
        trained = runs.find_trained(warm, "model.warm_start")
        overrides = [*overrides, f"model.warm_start={quoted(trained.checkpoint or trained.directory)}"]
    if resume is None:
        if start is None:
            return Request(config_name, overrides, mode)
        run = runs.find(start, "config")
        stored = run.config(f"config={start}")
        found = f"config={quoted(run.directory / runs.CONFIG)}"
        return Request(_stored_as_primary(config_name, stored, typed), [*overrides, found], mode)
    key = f"resume={resume}"
    if multirun:
        raise UserError(f"{key}: a sweep starts new runs; resume goes on with one")
    if start is not None:
        raise UserError(f"{key}: goes on with that run's configuration; leave config={start} out")
    if any(each.key_or_group == "hydra.run.dir" for each in typed):
        raise UserError(f"{key}: goes on in that run's directory; leave hydra.run.dir out")
    run = runs.find(resume, "resume")
    stored = run.config(key)
    ours = [
        f"resume={quoted(run.checkpoint or run.directory)}",  # found once: `latest` may be another run a second later
        f"hydra.run.dir={quoted(run.directory)}",
        "hydra.output_subdir=null",  # .hydra/ stays as the run began
    ]
    keys = frozenset(each.key_or_group for each in typed)
    return Request(_stored_as_primary(config_name, stored, typed), [*overrides, *ours], mode, keys, stored)


#: What parts a source has, which is nothing that other rows inherit.
_PARTS = ("val_fraction", "test_fraction", "val_path", "test_path", "val_target", "test_target")
#: What does not say that the rows are others.
_SAME_ROWS = ("data.in_memory",)
#: What an evaluation takes from training, whatever data it is of.
_AS_TRAINED = {
    "data.standardize": "features are scaled as they were for training",
    "data.batch_size": "the result does not depend on it",
    "data.max_categories": "the texts that make features are those of training",
}


def evaluation_request(config_name: str, overrides: list[str]) -> Request:
    """Starts from the data and the loss of the run to evaluate, as its checkpoint has them.

    Classes of the user's own are left out: what a checkpoint names is never imported.

    Raises:
        UserError: an override that cannot be read or would have no effect, or no whole checkpoint.
    """
    from crossent import checkpoints  # and with it NumPy, which other commands do without up to here

    typed = parse(overrides)
    for each in typed:
        if each.key_or_group in _AS_TRAINED:
            raise UserError(f"{each.input_line}: {_AS_TRAINED[each.key_or_group]}; leave it out")
    reference = _text(typed, "run") or "latest"
    key = f"run={reference}"
    run = runs.find_trained(reference, "run")
    stored = checkpoints.configuration(run, key)
    sections = {
        name: dict(stored[name])
        for name in ("data", "loss")
        if isinstance(stored.get(name), dict) and stored[name].get("name") != "custom"
    }
    keys = [each for each in typed if each.key_or_group.split(".")[0] == "data"]
    if keys and all(each.key_or_group.removeprefix("data.") in _PARTS for each in keys):
        raise UserError(
            f"{keys[0].input_line}: the run's own rows are split as they were in training; split=train, val, test or "
            "all chooses among them"
        )
    if "data" in sections and any(each.key_or_group not in _SAME_ROWS for each in keys):
        sections["data"] = {name: value for name, value in sections["data"].items() if name not in _PARTS}
    ours = [f"run={quoted(run.checkpoint or run.directory)}"]
    if (_text(typed, "split") or "auto") == "auto" and any(each.key_or_group not in _SAME_ROWS for each in keys):
        # Whoever names rows means all of them, unless he says which of them are for testing.
        ours.append("split=test" if any(each.key_or_group.startswith("data.test_") for each in keys) else "split=all")
    return Request(_stored_as_primary(config_name, sections, typed), [*overrides, *ours], RunMode.RUN)


def how_to_go_on(directory: Path, composed: dict[str, Any], command: str = "crossent-train") -> str:
    """What to do about a run that has ended before its time.

    Args:
        directory: of the run.
        composed: its configuration, as it is now.
        command: that trains, as it was started.
    """
    from crossent import checkpoints  # and with it NumPy, which a run that ends well does without up to here

    why = "begin again, for want of a checkpoint" if checkpoints.newest_step(directory) is None else "go on"
    return f"to {why}: {_command_to_resume(directory, composed, command)}"


def _command_to_resume(directory: Path, composed: dict[str, Any], command: str) -> str:
    """What to type in a shell to go on with the run, as it is configured now."""
    stored = runs.leaves(runs.StoredRun(directory).config("resume"))
    now = runs.leaves(composed)
    changed: list[str] = []
    for group in NAMED_GROUPS:
        name = now.get(f"{group}.name")
        if name != stored.get(f"{group}.name"):
            # Another choice: what is as its file has it comes with it.
            stored = {key: value for key, value in stored.items() if not key.startswith(f"{group}.")}
            chosen = yaml.safe_load((conf_directory() / group / f"{name}.yaml").read_text())
            stored |= runs.leaves(chosen, f"{group}.")
            changed.append(f"{group}={name}")
    changed += [
        f"{key}={show(value)}"
        for key, value in now.items()
        if key not in ("resume", "config") and stored.get(key) != value
    ]
    path = shown(directory)
    resume = f"resume={path}" if re.fullmatch(r"[A-Za-z0-9_./:@-]+", path) else f"resume={quoted(path)}"
    return " ".join([command, *(shlex.quote(override) for override in [resume, *changed])])


def _text(typed: list[Override], key: str) -> str | None:
    """The text that was typed for a key, if it was."""
    for override in reversed(typed):
        if override.key_or_group == key and not override.is_delete():
            if override.is_sweep_override():
                raise UserError(f"{override.input_line}: takes one value, in a sweep as well")
            value = override.value()
            if value == "":
                raise UserError(f"{key}=: empty; give latest, a run directory or a file in one")
            return None if value is None else str(value)
    return None


def _literal(value: Any) -> Any:
    """The same values as OmegaConf has to be told them, lest a text such as ``${oc.env:HOME}`` were worked out."""
    if isinstance(value, dict):
        return {key: _literal(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_literal(each) for each in value]
    return value.replace("${", r"\${") if isinstance(value, str) else value


def _stored_as_primary(config_name: str, stored: dict[str, Any], typed: list[Override]) -> str:
    """Stores a primary configuration for Hydra that starts from ``stored``, and returns its name.

    The stored values come after the groups' files, so they win over today's defaults, while keys that have come
    since get theirs; a group of which another choice is typed now, or several, leaves its stored section out.
    """
    choices = {each.key_or_group: None if each.is_sweep_override() else each.value() for each in typed}
    if "experiment" in choices:
        line = next(each.input_line for each in typed if each.key_or_group == "experiment")
        raise UserError(f"{line}: starts from a configuration of its own; leave it out with config= or resume=")
    primary = yaml.safe_load((conf_directory() / f"{config_name}.yaml").read_text())
    own = {key: value for key, value in primary.items() if key != "defaults"}  # keys may have come since
    stored = {**own, **stored, **{key: None for key in ("config", "resume") if key in own}}
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
    ConfigStore.instance().store(name, OmegaConf.create({"defaults": [*defaults, "_self_"], **_literal(stored)}))
    return name
