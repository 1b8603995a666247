"""Frozen dataclasses, each field of the type that it declares, whether it came from a caller or out of JSON."""

import dataclasses
import json
import reprlib
import types
import typing
from typing import Any

from .errors import InvalidArtefact, InvalidInput

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", types.NoneType: "None"}


def refuse_other_types(made: Any) -> None:
    """Refuse a dataclass with a value of another type than its field declares."""
    hints = typing.get_type_hints(type(made))
    for entry in dataclasses.fields(made):
        value, hint = getattr(made, entry.name), hints[entry.name]
        if not _fits(value, hint):
            raise InvalidInput(f"{entry.name} is {reprlib.repr(value)}; expected {_told(hint)}")


def _fits(value: Any, hint: Any) -> bool:
    """A whole number is a number too; true and false are none."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is types.UnionType:
        return any(_fits(value, one) for one in inner)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, inner[0]) for item in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else origin or hint)


def _told(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return " or ".join(_told(one) for one in inner)
    if origin is tuple:
        return f"a tuple of {KINDS[inner[0]].removeprefix('a ')}s"
    return KINDS.get(hint) or (origin or hint).__name__


def from_json(cls: type, data: Any, where: str, **built: Any) -> Any:
    """A `cls` of the fields in `data` and those `built` already; `where` names the file in the errors."""
    if not isinstance(data, dict):
        raise InvalidArtefact(f"{where} is {json.dumps(data)[:80]}; expected the fields of a {cls.__name__}")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise InvalidArtefact(f"{where}: unknown field {', '.join(unknown)}; a newer pyflow may have written it")
    missing = [
        entry.name
        for entry in dataclasses.fields(cls)
        if entry.default is entry.default_factory is dataclasses.MISSING and entry.name not in {**data, **built}
    ]
    if missing:
        raise InvalidArtefact(f"{where} lacks {', '.join(missing)}; it is incomplete, make it again")
    values = {name: _value(value, hints[name], where, name) for name, value in data.items()}
    try:
        return cls(**{**values, **built})
    except InvalidInput as error:
        raise InvalidArtefact(f"{where}: {error}") from error


def _value(value: Any, hint: Any, where: str, name: str) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast(type, hint), value, f"{where}: {name}")
    if hint is Any or (value is None and type(None) in inner):
        return value
    if origin is types.UnionType:
        return _value(value, inner[0], where, name)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_value(item, inner[0], where, name) for item in value)
    if (origin or hint) is dict and isinstance(value, dict):
        return {key: _value(item, inner[1], where, f"{name}.{key}") for key, item in value.items()}
    if _fits(value, hint):
        return value
    raise InvalidArtefact(f"{where}: {name} is {json.dumps(value)}; expected {hint}")
