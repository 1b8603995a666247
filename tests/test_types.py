"""A setting holds each field to the type that it declares: what is spelled as text is no number, and no truth."""

import dataclasses
import typing

import pytest
from pyflow.training.pairs import PairsSpec
from pyflow.training.recipes import Options, recipe
from tiny import POINTS, save

from pyflow import checkpoint, commands
from pyflow.errors import InvalidInput
from pyflow.spec import MLP, Own, Spec, UNet

PAIRS = PairsSpec("abc", (2,), 3, count=10, seed=5, solver="euler", steps=2, guidance=1.0)
MADE = (recipe("cfm"), Options(), MLP(), UNet(), Own("Mine", (2,)), Spec(POINTS), PAIRS)
STRANGE = (
    "False",
    "7",
    "no",
    7,
    7.5,
    True,
    None,
    0.1,
    (0.1,),
    (1, "2"),
    ("1",),
    (True,),
    [1, 2],
    {"a": 1},
    b"cfm",
    object(),
)


def fits(value: object, hint: object) -> bool:
    """What the annotation says, spelled out for each that there is."""
    kind = type(value)
    scalars = {int: {int}, float: {int, float}, bool: {bool}, str: {str}, type(None): {type(None)}}
    if typing.get_origin(hint) is tuple:
        return kind is tuple and all(fits(item, typing.get_args(hint)[0]) for item in value)
    if typing.get_origin(hint) is dict:
        return kind is dict
    one_of = typing.get_args(hint) or (hint,)
    return any(kind in scalars.get(each, {each}) for each in one_of)


FIELDS = [(made, field.name) for made in MADE for field in dataclasses.fields(made)]


@pytest.mark.parametrize(("made", "name"), FIELDS, ids=[f"{type(made).__name__}.{name}" for made, name in FIELDS])
def test_every_field_is_held_to_its_type(made, name):
    hint = typing.get_type_hints(type(made))[name]
    refused = 0
    for value in STRANGE:
        if fits(value, hint):
            continue
        with pytest.raises(InvalidInput, match=rf"^{name} is .*; expected ") as told:
            dataclasses.replace(made, **{name: value})
        assert "\n" not in str(told.value)
        refused += 1
    assert refused > len(STRANGE) // 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"compile": "False"}, "compile is 'False'; expected true or false"),
        ({"flip": "no"}, "flip is 'no'; expected true or false"),
        ({"learned_weight": "False"}, "learned_weight is 'False'; expected true or false"),
        ({"steps": 7.5}, "steps is 7.5; expected a whole number"),
        ({"steps": "7"}, "steps is '7'; expected a whole number"),
        ({"steps": True}, "steps is True; expected a whole number"),
        ({"seed": 1.5}, "seed is 1.5; expected a whole number"),
        ({"half_lives": 0.1}, "half_lives is 0.1; expected a tuple of numbers"),
        ({"path": 3}, "path is 3; expected a word"),
        ({"options": {"gap": 0.1}}, "options is {'gap': 0.1}; expected Options"),
        ({"network": "unet"}, "network is 'unet'; expected MLP or UNet or Own"),
        ({"network.shape": 16}, "shape is 16; expected a tuple of whole numbers"),
        ({"network.dropout": "0.1"}, "dropout is '0.1'; expected a number"),
    ],
)
def test_a_caller_is_told_the_field_the_value_and_the_type(change, said, tmp_path):
    with pytest.raises(InvalidInput) as told:
        commands.train_teacher("cfm", "digits", tmp_path / "run", **change)
    assert str(told.value) == said
    assert not list(tmp_path.iterdir())


def test_a_whole_number_is_a_number(tmp_path):
    setting = recipe("cfm", clip=1, half_lives=(0, 1), huber=0)
    assert (setting.clip, setting.half_lives, setting.options.huber) == (1, (0, 1), 0)
    spec = Spec(dataclasses.replace(POINTS, fastest_wave=100))
    assert checkpoint.load_spec(save(tmp_path / "one", spec)) == spec
