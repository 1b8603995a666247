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


def spoiled(module: ModuleType, within: str, right: str, wrong: str) -> dict:
    """What a copy of the module holds after one change inside one function."""
    function = inspect.getsource(getattr(module, within))
    assert function.count(right) == 1, f"{within} has no {right!r} to spoil"
    source = inspect.getsource(module).replace(function, function.replace(right, wrong))
    copied = {"__name__": module.__name__, "__package__": module.__package__}
    exec(source, copied)
    return copied


def planted(module: ModuleType, mutant: Mutant) -> Loss:
    return spoiled(module, mutant.within, mutant.right, mutant.wrong)[mutant.name.replace("-", "_")]
