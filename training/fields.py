"""The fields of a recipe as people write them: the names of flags, and YAML that goes out and comes back.

A field has one name everywhere: `steps`, the options' own (`diagonal`), and `network.channels`. In YAML the options and
the network are mappings of their own.
"""

import dataclasses
import reprlib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyflow.errors import BackendUnavailable, InvalidInput
from pyflow.records import KINDS
from pyflow.spec import MLP, NETWORKS, Network, UNet

from .settings import Options, Recipe

SIZE_LIMIT = 2**16
NETWORK, OPTIONS = "network", "options"
KIND = f"{NETWORK}.kind"


def _types(of: type) -> dict[str, Any]:
    hints = typing.get_type_hints(of)
    return {field.name: hints[field.name] for field in dataclasses.fields(of)}


_OWN = {name: kind for name, kind in _types(Recipe).items() if name not in (NETWORK, OPTIONS)}
_OPTIONS = _types(Options)
BUILT: dict[str, type[MLP] | type[UNet]] = {"mlp": MLP, "unet": UNet}  # a network of one's own has its own code
_NETWORK = {f"{NETWORK}.{name}": kind for network in BUILT.values() for name, kind in _types(network).items()}
FIELDS: dict[str, Any] = {**_OWN, **_OPTIONS, KIND: str, **_NETWORK}

_EXPECTED = {
    **KINDS,
    tuple[int, ...]: "whole numbers, such as 1,2,2",
    tuple[float, ...]: "numbers, such as 0.03,0.05",
}


def typed(name: str, given: Any) -> Any:
    """What was written, as its field's type. A flag is text, and YAML 1.1 reads 1e-3 as text."""
    if name not in FIELDS:
        raise InvalidInput(f"a recipe has no field {name}; it has {', '.join(FIELDS)}")
    try:
        return _typed(FIELDS[name], given)
    except (ValueError, OverflowError):
        came, expected = reprlib.repr(given), _EXPECTED[FIELDS[name]]
        raise InvalidInput(f"{name} is {came}; expected {expected}") from None


def _typed(kind: Any, given: Any) -> Any:
    if typing.get_origin(kind) is tuple:
        items = given.split(",") if isinstance(given, str) and given else given or ()
        if isinstance(items, (list, tuple)):
            return tuple(_typed(typing.get_args(kind)[0], item) for item in items)
    elif kind in (int, float) and isinstance(given, str):
        return kind(given)
    elif kind is float and type(given) is int:
        return float(given)
    elif type(given) is kind:
        return given
    raise ValueError


def changed(setting: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with some fields changed; `network` and `options` may also be given whole."""
    unknown = sorted(set(changes) - set(FIELDS) - {NETWORK, OPTIONS})
    if unknown:
        raise InvalidInput(f"a recipe has no field {', '.join(unknown)}; it has {', '.join(FIELDS)}")
    whole = {name: value for name, value in changes.items() if name in (*_OWN, NETWORK, OPTIONS)}
    options = {name: value for name, value in changes.items() if name in _OPTIONS}
    network = {name: value for name, value in changes.items() if name == KIND or name in _NETWORK}
    made = dataclasses.replace(setting, **whole)
    return dataclasses.replace(
        made,
        options=dataclasses.replace(made.options, **options),
        network=_changed_network(made.network, {name.partition(".")[2]: value for name, value in network.items()}),
    )


def _changed_network(network: Network, changes: dict[str, Any]) -> Network:
    if not changes:
        return network
    before = kind_of(network)
    kind = changes.pop("kind", before)
    if kind not in BUILT:
        raise InvalidInput(f"{KIND} is {kind!r}; expected one of {', '.join(BUILT)}")
    known = [field.name for field in dataclasses.fields(BUILT[kind])]
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise InvalidInput(f"a network of the kind {kind} has no {', '.join(unknown)}; it has {', '.join(known)}")
    return dataclasses.replace(network, **changes) if kind == before else BUILT[kind](**changes)


def flags_that_fit(network: Network, shape: tuple[int, ...], classes: int) -> str:
    """What a user types for a network that fits the data: levels that a picture has no room for are left out."""
    kind = "mlp" if len(shape) == 1 else "unet"
    told: dict[str, Any] = {} if kind == kind_of(network) else {"kind": kind, "times": network.times}
    base = BUILT[kind]() if told else network
    told |= {"shape": shape, "classes": classes}
    if isinstance(base, UNet):
        levels = base.multipliers
        while any(side % 2 ** (len(levels) - 1) for side in shape[1:]):
            levels = levels[:-1]
        before, now = ([sides[1] // 2**level for level in range(len(levels))] for sides in (base.shape, shape))
        if levels != base.multipliers:
            told["multipliers"] = levels
        if not {*base.attention} <= {*now}:
            told["attention"] = tuple(high for high, old in zip(now, before) if old in base.attention)
    return " ".join(f"{flag_of(f'{NETWORK}.{name}')} {_said(value)}" for name, value in told.items())


def _said(value: Any) -> str:
    return (",".join(map(str, value)) or "''") if isinstance(value, tuple) else str(value)


def flag_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def kind_of(network: Network) -> str:
    return next(kind for kind, known in NETWORKS.items() if isinstance(network, known))


def to_yaml(setting: Recipe) -> str:
    network = {"kind": kind_of(setting.network), **dataclasses.asdict(setting.network)}
    said: str = _yaml().safe_dump(
        {**dataclasses.asdict(setting), NETWORK: network}, sort_keys=False, allow_unicode=True
    )
    return said


def read_yaml(file: Path) -> dict[str, Any]:
    """The fields that a file names, by their one name each, as their types."""
    yaml = _yaml()
    try:
        with file.open("rb") as opened:
            content = opened.read(SIZE_LIMIT + 1)
        if len(content) > SIZE_LIMIT:
            raise InvalidInput(f"{file} has more than {SIZE_LIMIT} bytes; expected the fields of a recipe")
        said = yaml.safe_load(content)
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read ({error.strerror}); expected a recipe in YAML") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        told = " ".join(str(error).split()) or type(error).__name__
        raise InvalidInput(f"{file} is no YAML ({told}); expected what --print-config prints") from None
    fields: dict[str, Any] = {}
    for name, value in _mapping(str(file), said).items():
        if name == NETWORK:
            fields |= {f"{NETWORK}.{key}": inner for key, inner in _mapping(f"{file}: {name}", value).items()}
        elif name == OPTIONS:
            fields |= _known(file, name, _OPTIONS, _mapping(f"{file}: {name}", value))
        else:
            fields |= _known(file, "a recipe", _OWN, {name: value})
    try:
        return {name: typed(name, value) for name, value in fields.items()}
    except InvalidInput as error:
        raise InvalidInput(f"{file}: {error}") from None


def _mapping(where: str, said: Any) -> dict[str, Any]:
    if not isinstance(said, dict):
        raise InvalidInput(f"{where} holds {reprlib.repr(said)}; expected names and values, as --print-config prints")
    return {str(name): value for name, value in said.items()}


def _known(file: Path, what: str, known: Mapping[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(said) - set(known))
    if unknown:
        raise InvalidInput(f"{file}: {what} has no field {', '.join(unknown)}; it has {', '.join(known)}")
    return said


def _yaml() -> Any:
    try:
        import yaml
    except ImportError:
        raise BackendUnavailable('recipes are written with PyYAML: pip install "pyflow-engine[train]"') from None
    return yaml
