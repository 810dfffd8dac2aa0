"""Judges a composed configuration against its schema, and words what is wrong with it in one line."""

import difflib
import importlib.util
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from crossent.config import NAMED_GROUPS, TRAINER_ELSEWHERE, BundledData
from crossent.errors import UserError

_MISSING = "???"  # OmegaConf's mark for a value that has to be given
_UNBOUNDED = 1e300  # bounds beyond this only keep infinity out

Plain = Mapping[str, Any]
Path = list[str]
Config = TypeVar("Config", bound=msgspec.Struct)


def check(composed: Plain, schema: type[Config]) -> Config:
    """Turns a composed, resolved configuration into its typed form, a struct of `crossent.config`.

    Raises:
        UserError: a key that does not exist, a value of another type or out of range, or a package that the
            configuration needs and that is not installed. The message is one line, for the user.
    """
    plain = _without_unset(_with_arguments_apart(composed, schema))
    try:
        config = msgspec.convert(plain, schema)
    except msgspec.ValidationError as error:
        raise UserError(_Finding(schema, plain).explanation(str(error))) from None
    data = getattr(config, "data", None)
    if isinstance(data, BundledData) and importlib.util.find_spec("sklearn") is None:
        raise UserError(f"data={plain['data']['name']}: needs scikit-learn: pip install 'crossent[sklearn]'")
    files = getattr(config if hasattr(config, "files") else data, "files", None)
    if files is not None:
        _check_files(files())
    return config


def _without_unset(plain: Any) -> Any:
    """The same without keys that are still to be given, so that one that does not exist is named before them."""
    if not isinstance(plain, dict):
        return plain
    return {key: _without_unset(value) for key, value in plain.items() if value != _MISSING}


def _check_files(files: Mapping[str, str]) -> None:
    """Refuses paths, given under their keys, at which no file is."""
    for key, name in files.items():
        path = pathlib.Path(name)
        if path.is_dir():
            raise UserError(f"{key}={name}: a directory; expected a file")
        if not path.exists():
            there = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
            near = did_you_mean(path.name, there).rstrip(".")
            raise UserError(f"{key}={name}: no such file{near}")


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """``", did you mean 'x'?"`` for the nearest of the candidates, or nothing where none is near."""
    known = list(candidates)
    near = [each for each in known if each.lower() == word.lower()]
    near = near or difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f", did you mean '{near[0]}'?" if near else "."


def show(value: object) -> str:
    """A value as one types it on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _with_arguments_apart(composed: Plain, schema: type) -> dict[str, Any]:
    """Splits a ``custom`` section into its class and that class's arguments, as `config.Custom` has them."""
    plain = dict(composed)
    for group in NAMED_GROUPS:
        section = plain.get(group)
        if not isinstance(section, dict) or section.get("name") != "custom":
            continue
        known = {"name", *_fields(_Finding(schema, plain).type_at([group]))} - {"class_path", "arguments"}
        plain[group] = {key: value for key, value in section.items() if key in known} | {
            "class_path": section.get("_target_", _MISSING),
            "arguments": {key: value for key, value in section.items() if key not in known | {"_target_"}},
        }
    return plain


class _Finding:
    """What is wrong with a configuration, in the user's terms: the key, what was found, what is allowed.

    Args:
        schema: what the configuration should be.
        plain: what it is.
    """

    def __init__(self, schema: type, plain: Plain) -> None:
        self._schema = schema
        self._plain = plain

    def explanation(self, message: str) -> str:
        """Words msgspec's message."""
        what, _, location = message.partition(" - at `$")
        path = re.findall(r"[^.\[\]`]+", location)
        if unknown := re.search(r"unknown field `(.+)`", what):
            return self._unknown_key(path, unknown[1])
        if missing := re.search(r"missing required field `(.+)`", what):
            path.append(missing[1])
            if len(path) == 2 and path[0] in NAMED_GROUPS and path[1] == "name":
                return f"{path[0]}: choose one first: {path[0]}=<name>, {self._expected(path)}"
            return f"{_key(path)}: not set; expected {self._expected(path)}"
        if not what.startswith(("Expected ", "Invalid ")):
            # A rule over several keys, worded in the schema.
            return f"{_key(path)}{'.' if re.match('[a-z_]+(=|: )', what) else ': '}{what}" if path else what
        found = _value_at(path, self._plain)
        if found == _MISSING:
            return f"{_key(path)}: not set; expected {self._expected(path)}"
        if path and path[-1] == "name":
            choices = _tags(self.type_at(path[:-1]))
            near = did_you_mean(str(found), choices)
            return f"{_key(path)}={show(found)}: no such choice{near} One of: {_list(choices)}"
        return f"{_key(path)}={show(found)}: expected {self._expected(path)}"

    def type_at(self, path: Path) -> inspect.Type:
        """The declared type of the key; of a group's choices, the one that was chosen."""
        kind: inspect.Type = inspect.type_info(self._schema)
        plain: Any = self._plain
        for part in path:
            if isinstance(kind, inspect.UnionType):
                kind = next(each for each in kind.types if isinstance(each, inspect.ListType | inspect.TupleType))
            if isinstance(kind, inspect.StructType):
                kind = next(field.type for field in kind.fields if field.encode_name == part)
            elif isinstance(kind, inspect.TupleType):
                kind = kind.item_types[int(part)]
            elif isinstance(kind, inspect.ListType):
                kind = kind.item_type
            plain = plain.get(part) if isinstance(plain, dict) else None
            if isinstance(kind, inspect.UnionType) and isinstance(plain, dict):
                structs = [each for each in kind.types if isinstance(each, inspect.StructType)]
                kind = next((each for each in structs if each.tag == plain.get("name")), kind)
        return kind

    def _unknown_key(self, path: Path, name: str) -> str:
        rest = _only_path_below(_value_at([*path, name], self._plain))
        key = _key([*path, name, *rest])
        if path == ["trainer"] and name in TRAINER_ELSEWHERE:
            return f"{key}: this is set by {TRAINER_ELSEWHERE[name]}"
        if name == "_target_" and path and path[0] in NAMED_GROUPS:
            return f"{key}: a class of your own goes with {path[0]}=custom"
        known = _fields(self.type_at(path))
        if readers := self._choices_with(path, name):
            chosen = f"{path[0]}={show(_value_at([*path, 'name'], self._plain))}"
            return f"{key}: {chosen} does not read it (but {', '.join(readers)}); {chosen} has: {_list(known)}"
        # Somebody who types lr=0.1 means a key of a section, and is told which.
        elsewhere = [f"{part}.{name}" for part, keys in self._plain.items() if isinstance(keys, dict) and name in keys]
        elsewhere = [full for full in elsewhere if not path and full.split(".")[0] in known]
        hint = f", did you mean '{elsewhere[0]}'?" if elsewhere else did_you_mean(name, known)
        hint = re.sub(r"'(.+)'", lambda near: f"'{_key([*path, near[1], *rest])}'", hint)
        owner = _key(path)
        if path and path[-1] in NAMED_GROUPS:
            owner += f"={show(_value_at([*path, 'name'], self._plain))}"
        return f"{key}: no such key{hint} {f'{owner} has' if path else 'Keys'}: {_list(known) or 'none'}"

    def _choices_with(self, path: Path, name: str) -> list[str]:
        """The group's choices that have a key which the chosen one lacks."""
        if len(path) != 1 or path[0] not in NAMED_GROUPS:
            return []
        (schema,) = _structs(inspect.type_info(self._schema))
        group = next(field.type for field in schema.fields if field.encode_name == path[0])
        return [f"{path[0]}={choice.tag}" for choice in _structs(group) if name in _fields(choice)]

    def _expected(self, path: Path) -> str:
        """The allowed values of a key in words."""
        kind = self.type_at(path[:-1])
        if path[-1] == "name":
            return f"one of {_list(_tags(kind))}"
        if isinstance(kind, inspect.StructType) and path[-1] not in _fields(kind):
            return "a value"
        return _describe(self.type_at(path))


def _only_path_below(value: object) -> Path:
    """``lr`` of ``optimzer.lr``: the keys below an unknown one, as long as there is one way down."""
    path = []
    while isinstance(value, dict) and len(value) == 1:
        ((key, value),) = value.items()
        path.append(str(key))
    return path


def _key(path: Path) -> str:
    """The key as the user types it: the inverse of `_with_arguments_apart` for a class of the user's own."""
    return ".".join("_target_" if part == "class_path" else part for part in path)


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted("_target_" if name == "class_path" else name for name in names if name != "arguments"))


def _value_at(path: Path, plain: Any) -> object:
    for part in path:
        plain = plain[int(part)] if isinstance(plain, list) else plain[part]
    found: object = plain
    return found


def _structs(kind: inspect.Type) -> list[inspect.StructType]:
    """The choices that a type has."""
    kinds = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    return [struct for struct in kinds if isinstance(struct, inspect.StructType)]


def _tags(kind: inspect.Type) -> list[str]:
    """The names of a group's choices."""
    return [str(struct.tag) for struct in _structs(kind)]


def _fields(kind: inspect.Type) -> list[str]:
    return [field.encode_name for field in kind.fields] if isinstance(kind, inspect.StructType) else []


def _describe(kind: inspect.Type) -> str:
    match kind:
        case inspect.Metadata(type=inner, extra_json_schema=extra):
            return str((extra or {}).get("description") or _describe(inner))
        case inspect.UnionType(types=kinds) if tags := _tags(kind):
            return f"one of {_list(tags)}{' or null' if len(tags) < len(kinds) else ''}"
        case inspect.UnionType(types=kinds):
            listed = sorted(kinds, key=lambda each: isinstance(each, inspect.ListType))  # last, having parts of its own
            return " or ".join(_describe(each) for each in listed)
        case inspect.IntType():
            return "an integer" + _range(kind)
        case inspect.FloatType():
            return "a number" + _range(kind)
        case inspect.LiteralType(values=values):
            shown = [each if re.search(r"\w", each) else f"'{each}'" for each in map(show, values)]
            return ("one of " if len(values) > 1 else "") + ", ".join(shown)
        case inspect.NoneType():
            return "null"
        case inspect.BoolType():
            return "true or false"
        case inspect.StrType():
            return "a text"
        case inspect.ListType(item_type=item):
            return f"a list [a,b], each {_describe(item)}"
        case inspect.TupleType(item_types=items):
            return f"a list of {len(items)}, each {_describe(items[0])}"
        case _:
            return f"the keys {_list(_fields(kind))}"


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    named = {">": kind.gt, ">=": kind.ge, "<": kind.lt, "<=": kind.le}
    bounds = [f"{name} {bound}" for name, bound in named.items() if bound is not None and abs(bound) < _UNBOUNDED]
    return f" {' and '.join(bounds)}" if bounds else ""
