"""Specs go to JSON and come back equal; what does not fit is refused: its field, its value, what was expected."""

import json

import pytest
from pyflow.training import recipes

from pyflow.core import PATHS, PREDICTIONS, SOLVERS
from pyflow.errors import InvalidArtefact, InvalidInput
from pyflow.spec import MLP, Spec, UNet

PRESETS = [value for name, value in vars(recipes).items() if name.startswith(("UNET_", "MLP_"))]


def through_json(spec: Spec) -> Spec:
    return Spec.from_json(json.loads(json.dumps(spec.to_json())), "spec.json")


@pytest.mark.parametrize("network", [MLP(), *PRESETS, UNet(times=2, extra=3, dropout=0.1, attention=())], ids=repr)
def test_a_network_comes_back_equal(network):
    assert through_json(Spec(network)) == Spec(network)


def test_a_network_sees_the_mask_with_channels_for_the_kept_picture_and_one_more():
    assert [extra for extra in range(8) if UNet(extra=extra).sees_mask] == [4]
    assert [extra for extra in range(8) if UNet((1, 32, 32), extra=extra).sees_mask] == [2]
    assert not MLP().sees_mask


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_spec_comes_back_equal(path, prediction, rng):
    spec = Spec(
        UNet(classes=int(rng.integers(1, 100))),
        path,
        prediction,
        solver=str(rng.choice(list(SOLVERS))),
        null_label=bool(rng.integers(2)),
        provenance={"name": "é\n", "rate": float(rng.normal()), "deep": {"list": [1, None, True]}},
    )
    assert through_json(spec) == spec
    assert spec.math_path is PATHS[path]


WRONG = {  # arguments, what the message says: the name, the value, what was expected
    "shape of an MLP": (MLP, {"shape": (2, 2)}, r"shape is \(2, 2\); expected one number"),
    "shape of a UNet": (UNet, {"shape": (32, 32)}, r"shape is \(32, 32\); expected \(channels, height, width\)"),
    "zero in a shape": (UNet, {"shape": (3, 0, 32)}, r"shape is \(3, 0, 32\); expected positive sizes"),
    "empty multipliers": (UNet, {"multipliers": ()}, r"multipliers is \(\); expected positive sizes"),
    "a zero multiplier": (UNet, {"multipliers": (1, 0)}, r"multipliers is \(1, 0\); expected positive sizes"),
    "odd sides": (UNet, {"shape": (3, 30, 32)}, r"height and width is \(30, 32\); expected multiples of 4"),
    "groups": (UNet, {"channels": 12}, "channels is 12; expected a multiple of 8"),
    "no channels": (UNet, {"channels": 0}, "channels is 0; expected a multiple of 8"),
    "heads do not divide": (UNet, {"heads": 3}, "channels is 32; expected a multiple of 8 and of heads=3"),
    "no heads": (UNet, {"heads": 0}, "heads is 0; expected 1 or more"),
    "no blocks": (UNet, {"blocks": 0}, "blocks is 0; expected 1 or more"),
    "attention nowhere": (UNet, {"attention": (9,)}, r"attention is \(9,\); expected heights out of \[32, 16, 8\]"),
    "extra": (UNet, {"extra": -1}, "extra is -1; expected 0 or more"),
    "dropout": (UNet, {"dropout": 1.0}, "dropout is 1.0; expected 0 or more and below 1"),
    "a NaN": (UNet, {"dropout": float("nan")}, "dropout is nan; expected 0 or more"),
    "classes": (MLP, {"classes": -1}, "classes is -1; expected 0 or more"),
    "times": (MLP, {"times": 3}, r"times is 3; expected 1 \(an instant\) or 2"),
    "width": (MLP, {"width": 0}, "width is 0; expected 1 or more"),
    "depth": (MLP, {"depth": 0}, "depth is 0; expected 1 or more"),
    "fastest_wave": (MLP, {"fastest_wave": 0.5}, "fastest_wave is 0.5; expected 1 to 1000 radians"),
    "path": (Spec, {"network": MLP(), "path": "circle"}, "path is circle; expected one of linear, vp-cosine"),
    "prediction": (Spec, {"network": MLP(), "prediction": "score"}, "prediction is score; expected one of velocity"),
    "solver": (Spec, {"network": MLP(), "solver": "rk45"}, "solver is rk45; expected one of euler"),
    "null label": (Spec, {"network": MLP(), "null_label": True}, "null_label is True; expected False"),
}


@pytest.mark.parametrize(("kind", "arguments", "sentence"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_value_is_named(kind, arguments, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        kind(**arguments)
    if kind is Spec:
        data = {**Spec(MLP()).to_json(), **{k: v for k, v in arguments.items() if k != "network"}}
    else:
        data = Spec(kind()).to_json()
        data["network"] |= arguments
    with pytest.raises(InvalidArtefact, match=r"here/spec\.json: .*" + sentence):
        Spec.from_json(json.loads(json.dumps(data)), "here/spec.json")


NETWORK_FIELDS = ["shape", "channels", "multipliers", "blocks", "attention", "heads", "classes", "times", "extra"]
SPEC_FIELDS = ["path", "prediction", "solver", "null_label", "provenance"]
OTHER_TYPES = [None, "3", 1.5, [1.5], {"a": 1}, ["a"], [None], [[1]], [True]]


@pytest.mark.parametrize("value", [*OTHER_TYPES, True, 3], ids=repr)
@pytest.mark.parametrize("field", NETWORK_FIELDS + SPEC_FIELDS)
def test_a_wrong_type_is_refused_with_its_field(field, value):
    data = Spec(UNet()).to_json()
    place = data["network"] if field in NETWORK_FIELDS else data
    if type(value) is type(place[field]) and field not in ("path", "prediction", "solver"):
        value = str(value)  # as it came, it would fit
    place[field] = value
    with pytest.raises(InvalidArtefact, match=field):
        Spec.from_json(data, "spec.json")


def test_an_unknown_field_is_named():
    for place in ("network", None):
        data = Spec(UNet()).to_json()
        (data[place] if place else data)["wings"] = 2
        with pytest.raises(InvalidArtefact, match="unknown field wings; a newer pyflow may have written it"):
            Spec.from_json(data, "spec.json")


@pytest.mark.parametrize(
    "data",
    [None, 5, "spec", [], {}, {"network": None}, {"network": "unet"}, {"network": 5}, {"network": []}, {"network": {}}]
    + [{"network": {"kind": kind}} for kind in (None, "gan", [], {}, 5)],
    ids=repr,
)
def test_what_is_no_spec_is_refused(data):
    with pytest.raises(InvalidArtefact, match=r"spec\.json"):
        Spec.from_json(data, "spec.json")
