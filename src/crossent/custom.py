"""Makes objects of the user's own classes, which ``custom`` names by their import path, and says how to name them."""

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from crossent import config
from crossent.checking import did_you_mean, show
from crossent.errors import UserError

T = TypeVar("T")


def make(group: str, target: str, arguments: Mapping[str, object], expected: type[T], *first: object) -> T:
    """Imports a class and makes an object of it: ``target(*first, **arguments)``.

    Args:
        group: the group whose ``custom`` names the class; messages begin with it.
        target: the class as ``package.module.Class``; modules in the current directory are found too.
        arguments: keyword arguments, as typed by the user.
        expected: what the object has to be an instance of.
        first: positional arguments, which are ours.

    Raises:
        UserError: no such module or class, an exception of theirs, or an object of another kind.
    """
    key = f"{group}._target_={target}"
    kind = _find(key, target)
    try:
        made = kind(*first, **arguments)
    except UserError:
        raise
    except Exception as error:  # it is the user's code
        raise UserError(f"{key}: {gist(error)}") from error
    if not isinstance(made, expected):
        raise UserError(
            f"{key}: has to be a {expected.__module__}.{expected.__qualname__}, not a {type(made).__name__}"
        )
    return made


def _find(key: str, target: str) -> type:
    module_name, _, name = target.rpartition(".")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(f"{key}: no module named '{error.name}'") from error
    except Exception as error:  # it is the user's code
        raise UserError(f"{key}: {module_name} cannot be imported: {gist(error)}") from error
    if not hasattr(module, name):
        raise UserError(f"{key}: {module_name} has no '{name}'{did_you_mean(name, vars(module)).rstrip('.')}")
    found = getattr(module, name)
    if not callable(found):
        raise UserError(f"{key}: not a class, but a {type(found).__name__}")
    return found  # type: ignore[no-any-return]  # whatever can be called to make the object


def again(group: str, stored: Mapping[str, Any]) -> str:
    """What to type to name a class of the user's own again.

    Args:
        group: ``loss`` or ``data``.
        stored: the run's configuration.
    """
    section = dict(stored.get(group, {}))
    typed = [f"{group}=custom", f"{group}._target_={section.pop('_target_', None)}"]
    kind: type[msgspec.Struct] = config.CustomLoss if group == "loss" else config.CustomData
    known = {"name", *(field.name for field in msgspec.structs.fields(kind))}
    typed += [f"+{group}.{key}={show(value)}" for key, value in section.items() if key not in known]
    parts = [f"{group}.{key}={section[key]}" for key in ("val_fraction", "test_fraction") if section.get(key)]
    return " ".join(typed + parts)


def gist(error: Exception) -> str:
    """What an exception of the user's code says, in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, TypeError) else f"{type(error).__name__}: {text}"
