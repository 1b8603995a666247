"""Frozen dataclasses out of JSON, each field of the type that it declares: how specs and manifests are read."""

import dataclasses
import json
import types
import typing
from typing import Any

from .errors import InvalidArtefact, InvalidInput


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
    if hint is float and type(value) in (int, float):
        return value
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise InvalidArtefact(f"{where}: {name} is {json.dumps(value)}; expected {hint}")
