"""`flow.timings.by_op`: where a native engine's time goes."""

import pytest

pytest.importorskip("torch")
from tiny import POINTS, save

from pyflow import load
from pyflow.errors import InvalidInput
from pyflow.export import export
from pyflow.spec import Spec


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("timings")
    save(folder / "checkpoint", Spec(POINTS))
    export(folder / "checkpoint", folder / "engine", "native")
    return folder / "engine"


def test_every_operation_is_timed_and_a_look_starts_anew(engine):
    flow = load(engine, profile=True)
    before = flow.timings.by_op
    output = flow.sample(64, steps=8, label=0)
    spent = flow.timings.by_op
    assert set(before.values()) == {0.0}
    assert spent.keys() == before.keys()
    assert {"load", "condition.waves", "enter", "leave", "store"} <= spent.keys()
    assert all(seconds > 0 for seconds in spent.values())
    assert sum(spent.values()) <= output.denoiser_seconds.sum()
    assert set(flow.timings.by_op.values()) == {0.0}


def test_the_profile_changes_no_bit(engine):
    assert (
        load(engine, profile=True).sample(3, steps=2, label=0).states == load(engine).sample(3, steps=2, label=0).states
    ).all()


def test_a_flow_without_a_profile_says_how_to_get_one(engine):
    with pytest.raises(InvalidInput, match="profile=True"):
        _ = load(engine).timings


def test_others_than_native_engines_have_none(engine, tiny_engine):
    with pytest.raises(InvalidInput, match="onnx engine tells no operations"):
        load(tiny_engine, profile=True)
    with pytest.raises(InvalidInput, match="is a checkpoint"):
        load(engine.parent / "checkpoint", profile=True)
