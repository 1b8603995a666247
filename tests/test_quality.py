"""Judging an engine: what is refused before anything is built, and what its certificate keeps."""

import pytest
import torch
from pyflow.training import classifier, data
from pyflow.training.data import Dataset
from tiny import POINTS, UNET, flow_of, save

from pyflow import checkpoint, commands, export, quality
from pyflow.engines import manifest as manifests
from pyflow.errors import InvalidInput
from pyflow.export.build import Order
from pyflow.spec import Spec

GUIDED = Spec(UNET, null_label=True)


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """The folder of a judge of a data set of the tiny network's size, so small that it costs nothing."""

    def pictures(part="train"):
        images = torch.randn(64, *UNET.shape, generator=torch.Generator().manual_seed(len(part)))
        return Dataset("tiny", images, torch.arange(64) % UNET.classes, UNET.classes)

    monkeypatch.setitem(data.DATASETS, "tiny", pictures)
    monkeypatch.setattr(quality, "PICTURES", 100)
    train = classifier.train_classifier
    monkeypatch.setattr(classifier, "train_classifier", lambda dataset: train(dataset, steps=2))
    assert commands.train_judge(tmp_path / "judge", "tiny")
    assert not commands.train_judge(tmp_path / "judge", "tiny")
    return tmp_path / "judge"


@pytest.fixture
def nothing_is_built(monkeypatch):
    def built(*_):
        pytest.fail("an engine was built")

    monkeypatch.setitem(export.BUILDERS, "onnx", built)


def ordered(source, folder, judge, name="tiny", **order):
    return commands.export_engine(source, folder, "onnx", Order(**order), judge=judge, data=name)


@pytest.mark.usefixtures("nothing_is_built")
def test_what_cannot_be_judged_is_refused_before_anything_is_built(judged, tiny_checkpoint, tmp_path):
    folder = tmp_path / "a.engine"
    with pytest.raises(InvalidInput, match=r"jugde holds no classifier.json.*pyflow demo"):
        ordered(tiny_checkpoint, folder, tmp_path / "jugde")
    assert not (tmp_path / "jugde").exists()
    with pytest.raises(InvalidInput, match="is a classifier of 'tiny'; expected one of 'checkerboard'"):
        ordered(tiny_checkpoint, folder, judged, name="checkerboard")
    with pytest.raises(InvalidInput, match=r"makes \(2,\) of 3 classes; expected \(1, 8, 8\) of 3"):
        ordered(save(tmp_path / "points", Spec(POINTS, null_label=True)), folder, judged)
    with pytest.raises(InvalidInput, match=r"guidance is 2.0; expected 1, this network knows no null label"):
        ordered(save(tmp_path / "student", Spec(UNET)), folder, judged, guidance=2.0)
    image = save(tmp_path / "image", Spec(UNET, prediction="image", null_label=True))
    with pytest.raises(InvalidInput, match="ab2 expected velocity"):
        ordered(image, folder, judged, solver="ab2")


def test_the_change_is_measured_with_the_plan_that_was_ordered(judged):
    """A sampler engine holds no other: a runner that refuses every other plan stands for one."""
    order, flow = Order(steps=(1, 2), guidance=2.0, solver="heun", grid="cosine"), flow_of(GUIDED)
    wanted = [flow.plan(steps, "heun", "cosine") for steps in order.steps]

    class Whole:
        def run(self, request):
            assert request.plan in wanted
            assert request.guidance == 2.0
            return flow.runner.run(request)

    found = quality.change(quality.Judge.of(judged, "tiny"), flow, order, Whole(), GUIDED)
    assert found["checkpoint"] == found["engine"]
    assert list(found["engine"]) == ["1", "2"]
    assert found["features"] == "tiny classifier, 48 features"
    assert (found["solver"], found["grid"], found["guidance"]) == ("heun", "cosine", 2.0)


def test_an_engine_is_kept_only_if_it_was_judged_as_ordered(judged, tiny_checkpoint, tmp_path):
    folder = tmp_path / "a.engine"
    assert commands.export_engine(tiny_checkpoint, folder, "onnx", Order(steps=(1,)))
    assert ordered(tiny_checkpoint, folder, judged, steps=(1,))
    assert manifests.read(folder).proved.distances["engine"].keys() == {"1"}
    assert not ordered(tiny_checkpoint, folder, judged, steps=(1,))
    assert not commands.export_engine(tiny_checkpoint, folder, "onnx", Order(steps=(1,)))
    assert ordered(tiny_checkpoint, folder, judged, steps=(2,))
    assert checkpoint.weights_sha256(tiny_checkpoint) == manifests.read(folder).weights_sha256
