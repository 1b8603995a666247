"""A copy of a module with one bug planted inside one function: what a test has to refuse."""

import inspect
from types import ModuleType
from typing import NamedTuple

from pyflow.training.objectives import Loss


class Mutant(NamedTuple):
    name: str  # the objective that it spoils
    within: str  # the function
    right: str
    wrong: str
    seen_when_solved: bool = True  # else it stays hidden at the exact map, where a residual is zero


class Change(NamedTuple):
    within: str  # the function
    right: str
    wrong: str


def changed(module: ModuleType, *changes: Change) -> dict:
    """What a copy of the module holds after each change inside its function."""
    functions = {change.within: inspect.getsource(getattr(module, change.within)) for change in changes}
    source = inspect.getsource(module)
    for within, right, wrong in changes:
        before = functions[within]
        assert before.count(right) == 1, f"{within} has no {right!r} to spoil"
        functions[within] = before.replace(right, wrong)
        source = source.replace(before, functions[within])
    copied = {"__name__": module.__name__, "__package__": module.__package__}
    exec(source, copied)
    return copied


def planted(module: ModuleType, mutant: Mutant, *changes: Change) -> Loss:
    """The objective that the mutant spoils, in a module that may be changed elsewhere too."""
    spoiled = changed(module, *changes, Change(mutant.within, mutant.right, mutant.wrong))
    return spoiled[mutant.name.replace("-", "_")]
