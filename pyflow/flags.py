"""The flags of `pyflow train` and `pyflow distill`: each field of a recipe has one, under its own name."""

import argparse
import difflib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from .errors import InvalidInput
from .training.fields import FIELDS, flag_of, to_yaml, typed
from .training.recipes import SIZES, Recipe

NAMED_OTHERWISE = ("name", "data")
_WORDS = {int: "INT", float: "FLOAT", str: "NAME"}


def add_recipe(made: argparse.ArgumentParser) -> None:
    made.add_argument("--size", default=None, help=f"of a picture network: {', '.join(SIZES)} parameters (default: 1m)")
    made.add_argument("--config", type=Path, default=None, help="a YAML file with fields of the recipe")
    made.add_argument("--print-config", action="store_true", help="print the recipe as YAML and do nothing else")
    made.add_argument("--device", default="cpu", help="cpu or cuda")
    made.add_argument("--watch", type=int, default=500, help="steps between samples and signs of health; 0: none")
    made.add_argument("--logs", default="", help="tensorboard, wandb, or both with a comma, beside log.jsonl")
    made.add_argument("--judge", type=Path, default=None, help="the classifier's folder for these signs")
    group = made.add_argument_group("fields of the recipe, over its own and those of --config")
    for name, kind in FIELDS.items():
        if name in NAMED_OTHERWISE:
            continue
        flag = flag_of(name)
        if kind is bool:
            group.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, default=None)
        else:
            word = _WORDS[kind] if kind in _WORDS else f"{_WORDS[get_args(kind)[0]]},..."
            group.add_argument(flag, dest=name, metavar=word, default=None)


def changes(arguments: argparse.Namespace) -> dict[str, Any]:
    """The recipe's fields that were named on the command line."""
    said = vars(arguments)
    return {name: typed(name, said[name]) for name in FIELDS if name not in NAMED_OTHERWISE and said[name] is not None}


def beside(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was said that is no field of the recipe, and is not what stands there where nothing is said."""
    silent = {"device": "cpu", "watch": 500, "logs": "", "print_config": False}
    named = {name: getattr(arguments, name) for name in ("size", "config", "start", "judge", *silent)}
    return {name: value for name, value in named.items() if value != silent.get(name)}


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was said beside the recipe's fields."""
    named = {name: getattr(arguments, name) for name in ("size", "config", "device", "watch", "judge")}
    return named | {"logs": tuple(arguments.logs.split(",")) if arguments.logs else ()}


def show(setting: Recipe, pairs: bool) -> None:
    """Print a recipe that can be trained: on data, or on pairs. Without torch nothing can tell whether it can."""
    if importlib.util.find_spec("torch"):
        from .training.beginnings import refuse_untrainable

        refuse_untrainable(setting, pairs)
    print(to_yaml(setting), end="")


def refuse_unknown(made: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Refuse what a command was told and has no flag for; with the flags that look like it."""
    if not words:
        return
    known = [flag for flag in made._option_string_actions if flag.startswith("--")]
    told = words[0].partition("=")[0]
    near = difflib.get_close_matches(told, known, n=3, cutoff=0.8)
    fields = ", --print-config the recipe's fields" if "--print-config" in known else ""
    what = f"has no flag {told}" if told.startswith("-") else f"was told {told!r}, which belongs to no flag"
    raise InvalidInput(
        f"`{made.prog}` {what}; expected {' or '.join(near) or 'one of its own'}: --help shows all flags{fields}"
    )
