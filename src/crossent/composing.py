"""What Hydra reads, what it makes of it as plain values, and what its complaints mean. Imports no torch."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra._internal.hydra import Hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from msgspec import Struct
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from crossent.checking import check, did_you_mean
from crossent.errors import UserError

_FORM = "expected key=value; --help lists the keys"


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


@contextlib.contextmanager
def explained(
    hydra: Hydra, schema: type[Struct], config_name: str, overrides: list[str], mode: RunMode
) -> Iterator[None]:
    """Turns what Hydra and OmegaConf raise while composing into one line for the user."""
    try:
        yield
    except MissingConfigException as error:
        raise UserError(_missing_choice(error)) from error
    except (HydraException, OmegaConfBaseException) as error:
        _raise_if_unknown_key(hydra, schema, config_name, overrides, mode)
        raise UserError(_complaint(error)) from error


def parse(overrides: list[str]) -> list[Override]:
    """Reads overrides as Hydra does.

    Raises:
        UserError: one that cannot be read, or that gives a group something other than a choice.
    """
    parser = OverridesParser.create()
    parsed = []
    for override in overrides:
        try:
            parsed += parser.parse_overrides([override])
        except (OverrideParseException, HydraException) as error:
            key, equals, _ = override.partition("=")
            why = _FORM
            if key and equals:
                why = f"cannot be read; a value with special characters goes in quotes within quotes: \"{key}='…'\""
            raise UserError(f"{override}: {why}") from error
        last = parsed[-1]
        group = last.key_or_group
        if not group:
            raise UserError(f"{override}: {_FORM}")
        chooses = not last.is_delete() and not last.is_sweep_override() and _is_group(group)
        allowed = str | list | None if group == "experiment" else str
        if chooses and not isinstance(last.value(), allowed):
            raise UserError(
                f"{override}: {group} is a group: choose with {group}=<name>, then set {group}.<key>=<value>"
            )
    return parsed


def quoted(path: Path | str) -> str:
    """A path as a value that Hydra's grammar takes whatever characters it has."""
    escaped = re.sub(r"(\\*)('|$)", lambda end: end[1] * 2 + ("\\'" if end[2] else ""), str(path))
    return f"'{escaped}'"


def _missing_choice(error: MissingConfigException) -> str:
    missing = error.missing_cfg_file or "?"
    group, _, choice = missing.rpartition("/")
    if not group:
        return f"--config-name={missing}: no such configuration"
    options = sorted(error.options or [])
    return f"{group}={choice}: no such {group}{did_you_mean(choice, options)} One of: {', '.join(options)}"


def _raise_if_unknown_key(
    hydra: Hydra, schema: type[Struct], config_name: str, overrides: list[str], mode: RunMode
) -> None:
    """Lets the check word what Hydra refused: composes again with every value let through."""
    through = [
        line
        if line[0] in "+~" or each.key_or_group.startswith("hydra") or _is_group(each.key_or_group)
        else f"++{line}"
        for line, each in zip(overrides, parse(overrides), strict=True)
    ]
    with contextlib.suppress(HydraException, OmegaConfBaseException):
        check(plain(hydra.compose_config(config_name, through, mode)), schema)


def _is_group(key: str) -> bool:
    return bool(key) and (conf_directory() / key).is_dir()


def _complaint(error: Exception) -> str:
    """The gist of one of Hydra's messages, which take several lines."""
    lines = [line.strip().rstrip(".") for line in f"{error}\n{error.__cause__ or ''}".splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    if first.startswith(("Ambiguous value for argument", "Sweep parameters")):
        typed = first.split("'")[1]
        return f"{typed}: several values are a sweep: add --multirun (-m); a list is written [a,b]"
    if group := re.match(r"Could not override '(\w+)'\. No match in the defaults list", first):
        return f"{group[1]}: this command has no such group"
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return f"{error.full_key}: {first}"
    return "; ".join(lines[:2])
