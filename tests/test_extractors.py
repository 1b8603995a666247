"""Extractors and their cached references: what sees pictures, offline, damaged, and of other data."""

import sys
import types
import urllib.error
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
import torch
from pyflow.training import classifier
from pyflow.training.data import Dataset
from torch import nn

from pyflow import extractors, references
from pyflow.errors import BackendUnavailable, InvalidInput
from pyflow.extractors import Extractor, Seen, open_extractor
from pyflow.references import figures, reference


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(extractors.CACHE, str(tmp_path / "cache"))
    monkeypatch.delenv(extractors.INCEPTION, raising=False)
    return tmp_path / "cache"


def pictures(rng, count=60, shape=(3, 8, 8), classes=3) -> Dataset:
    images = rng.integers(0, 256, (count, *shape)).astype(np.uint8)
    return Dataset("drawn", torch.from_numpy(images), torch.arange(count) % max(1, classes), classes)


def means(calls: list[int]) -> Extractor:
    """The means of the channels and one pixel: four features."""

    def see(images):
        calls.append(len(images))
        assert images.dtype == np.uint8
        features = np.concatenate([images.mean((1, 2)), images[:, 0, 0, :1]], axis=1)
        return Seen(features.astype(np.float32), None)

    return Extractor("means, 4 features", "means", 4, see)


# ---- references
def test_a_reference_is_looked_at_once(rng, cache):
    data, calls = pictures(rng), []
    first = reference(data, "train", means(calls))
    assert sum(calls) == 60
    again = reference(data, "train", means(calls))
    assert sum(calls) == 60
    assert first.sha256 == again.sha256
    np.testing.assert_array_equal(first.kept, again.kept)
    np.testing.assert_array_equal(first.whole.covariance(), again.whole.covariance())
    assert [one.count for one in again.classes] == [20, 20, 20]
    other = pictures(rng)
    assert figures(reference(other, "train", means(calls)), first) == figures(
        reference(other, "train", means(calls)), again
    )


@pytest.mark.parametrize("changed", ["a pixel", "a label", "the extractor"])
def test_a_reference_of_other_content_is_another(changed, rng, cache):
    data, calls = pictures(rng), []
    before = reference(data, "train", means(calls)).sha256
    seen_by = means(calls)
    if changed == "a pixel":
        data.images[7, 0, 0, 0] ^= 1
    elif changed == "a label":
        data.labels[7] = (data.labels[7] + 1) % 3
    else:
        seen_by = Extractor("means, 4 features", "other weights", 4, seen_by.see)
    assert reference(data, "train", seen_by).sha256 != before
    assert sum(calls) == 120


def test_another_device_looks_for_itself_at_the_same_reference(rng, cache):
    data, calls = pictures(rng), []
    seen_by = means(calls)
    first = reference(data, "train", seen_by)
    other = reference(data, "train", replace(seen_by, device="cuda"))
    assert sum(calls) == 120
    assert other.sha256 == first.sha256


@pytest.mark.parametrize("damage", ["flipped", "cut", "no record"])
def test_a_damaged_reference_is_made_again(damage, rng, cache, capsys):
    data, calls = pictures(rng), []
    first = reference(data, "train", means(calls))
    (folder,) = cache.glob("reference-*")
    file = folder / references.ARRAYS
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        (folder / references.RECORD).write_text("{")
    again = reference(data, "train", means(calls))
    assert sum(calls) == 120
    np.testing.assert_array_equal(first.kept, again.kept)
    assert reference(data, "train", means(calls)).sha256 == first.sha256
    assert sum(calls) == 120


def test_what_is_kept_of_a_sorted_folder_is_of_all_its_classes(rng, cache, monkeypatch):
    monkeypatch.setattr(references, "KEPT", 12)
    data = pictures(rng)
    data = Dataset("sorted", data.images, data.labels.sort().values, 3)
    found = reference(data, "train", means([]))
    every = means([]).see(np.ascontiguousarray(data.images.permute(0, 2, 3, 1).numpy())).features
    places = [int(np.flatnonzero((every == row).all(1))[0]) for row in found.kept]
    assert len(places) == 12
    assert np.bincount(data.labels[places]).tolist() == [4, 4, 4]


def test_bad_pictures_are_refused(rng, cache):
    spoiled = torch.rand(60, 1, 8, 8) * 2 - 1
    place = int(rng.integers(60))
    spoiled[place, 0, 3, 3] = float("nan")
    with pytest.raises(InvalidInput, match=rf"train of spoiled, picture {place} holds a NaN or an infinity"):
        reference(Dataset("spoiled", spoiled, torch.zeros(60, dtype=torch.int64), 0), "train", means([]))
    with pytest.raises(InvalidInput, match="train of drawn has 4 pictures; a covariance of 4 features needs 5 or more"):
        reference(pictures(rng, 4), "train", means([]))
    points = Dataset("plane", torch.rand(60, 2), torch.zeros(60, dtype=torch.int64), 0)
    with pytest.raises(InvalidInput, match=r"train of plane has the shape \(2,\); expected pictures, not points"):
        reference(points, "train", means([]))
    assert not list(cache.glob("*"))


# ---- the classifier
def test_the_classifier_sees_what_it_was_trained_on(rng, cache, tmp_path):
    data = pictures(rng)
    classifier.train(tmp_path / "judge", data, steps=2)
    seen_by = open_extractor(f"classifier:{tmp_path / 'judge'}", data)
    assert (seen_by.name, seen_by.size) == ("drawn classifier, 48 features", 48)
    images = np.ascontiguousarray(data.images.permute(0, 2, 3, 1).numpy())
    features, labels = classifier.features_and_labels(classifier.load(tmp_path / "judge", data), data.images)
    seen = seen_by.see(images)
    np.testing.assert_allclose(seen.features, features.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(seen.labels, labels.numpy())
    classifier.train(tmp_path / "other", data, steps=3)
    assert open_extractor(f"classifier:{tmp_path / 'other'}", data).identity != seen_by.identity
    with pytest.raises(InvalidInput, match="is a classifier of 'drawn'; expected one of 'else'"):
        open_extractor(f"classifier:{tmp_path / 'judge'}", Dataset("else", data.images, data.labels, 3))


# ---- Inception
class Layers(nn.Module):
    """Stands for the file's network: 2048 numbers of a picture of 299x299 in -1..1."""

    def forward(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x, 32).flatten(1)[:, :2048]


class Stand(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = Layers()

    def forward(self, x):
        return self.layers(x)


@pytest.fixture
def inception_file(tmp_path):
    pytest.importorskip("cleanfid", reason='needs pip install "pyflow-engine[fid]"')
    torch.jit.script(Stand()).save(str(tmp_path / "copy.pt"))
    return tmp_path / "copy.pt"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("named", ["flag", "environment"])
def test_inception_is_clean_fids(channels, named, rng, cache, inception_file, monkeypatch):
    """Its resize, and its own normalisation of 0..255."""
    if named == "environment":
        monkeypatch.setenv(extractors.INCEPTION, str(inception_file))
    data = pictures(rng, 3, (channels, 8, 8))
    seen_by = open_extractor("inception" if named == "environment" else f"inception:{inception_file}", data)
    assert seen_by.name == "Inception V3 of clean-fid, 2048 features"
    images = np.ascontiguousarray(data.images.permute(0, 2, 3, 1).numpy())
    from cleanfid.resize import build_resizer

    large = np.stack([build_resizer("clean")(np.repeat(image, 3 // channels, axis=2)) for image in images])
    expected = Layers()((torch.from_numpy(large).permute(0, 3, 1, 2) - 128) / 128).numpy()
    np.testing.assert_allclose(seen_by.see(images).features, expected, rtol=1e-5, atol=1e-5)


def test_inception_offline_is_one_sentence_and_leaves_nothing(rng, cache, inception_file, monkeypatch):
    def offline(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(
        BackendUnavailable, match=r"did not come from the network .*PYFLOW_INCEPTION, or use classifier"
    ):
        open_extractor("inception", pictures(rng))
    assert not list(cache.iterdir())


def test_inception_is_fetched_once_and_kept_only_if_it_loads(rng, cache, inception_file, monkeypatch):
    content, asked = inception_file.read_bytes(), []

    class Response:
        def __init__(self, sent):
            self.left = sent

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def read(self, size=-1):
            sent, self.left = self.left[:size], self.left[size:]
            return sent

    def fetched(*_, **__):
        asked.append(len(asked))
        return Response(content[: len(content) // 2] if len(asked) == 1 else content)

    monkeypatch.setattr(urllib.request, "urlopen", fetched)
    with pytest.raises(InvalidInput, match="what was downloaded does not load"):
        open_extractor("inception", pictures(rng))
    assert not list(cache.iterdir())
    assert open_extractor("inception", pictures(rng)).identity == open_extractor("inception", pictures(rng)).identity
    assert len(asked) == 2


def test_what_inception_needs_is_named(rng, cache, tmp_path, inception_file, monkeypatch):
    (tmp_path / "bad.pt").write_bytes(b"no network")
    with pytest.raises(InvalidInput, match=r"bad\.pt does not load"):
        open_extractor(f"inception:{tmp_path / 'bad.pt'}", pictures(rng))
    with pytest.raises(InvalidInput, match=r"none\.pt is no file; expected clean-fid's inception-2015-12-05\.pt"):
        open_extractor(f"inception:{tmp_path / 'none.pt'}", pictures(rng))
    monkeypatch.setitem(sys.modules, "cleanfid.inception_torchscript", None)
    with pytest.raises(BackendUnavailable, match=r'needs clean-fid .*pip install "pyflow-engine\[fid\]"'):
        open_extractor("inception", pictures(rng))


# ---- DINO
def test_dino_is_a_folder_of_transformers(rng, cache, tmp_path, monkeypatch):
    with pytest.raises(InvalidInput, match=r"features is 'dino:'; expected dino:FOLDER"):
        open_extractor("dino", pictures(rng))
    (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BackendUnavailable, match=r'needs transformers .*pip install "pyflow-engine\[dino\]"'):
        open_extractor(f"dino:{tmp_path}", pictures(rng))


class Tokens(nn.Module):
    """Stands for a transformer: two tokens of three numbers, the first the means of the channels."""

    config = types.SimpleNamespace(hidden_size=3)

    def forward(self, pixel_values):
        means = pixel_values.mean((2, 3))
        return types.SimpleNamespace(last_hidden_state=torch.stack([means, means + 1], dim=1))


def test_what_stands_for_a_dino_sees_pictures(rng, cache, tmp_path, monkeypatch):
    """Its normalisation by hand, and an identity of all that it is: its weights and its configuration."""
    model = types.SimpleNamespace(from_pretrained=lambda *_, **__: Tokens())
    monkeypatch.setitem(sys.modules, "transformers", types.SimpleNamespace(AutoModel=model))
    (tmp_path / "model.safetensors").write_bytes(rng.bytes(8))
    (tmp_path / "config.json").write_text("{}")
    seen_by = open_extractor(f"dino:{tmp_path}", pictures(rng))
    images = np.repeat(np.repeat(rng.integers(0, 256, (4, 1, 1, 3)), 32, axis=1), 32, axis=2).astype(np.uint8)
    expected = (images[:, 0, 0] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(seen_by.see(images).features, expected, rtol=1e-4, atol=1e-4)
    assert open_extractor(f"dino:{tmp_path}", pictures(rng)).identity == seen_by.identity
    for name in ("model.safetensors", "config.json"):
        before = open_extractor(f"dino:{tmp_path}", pictures(rng)).identity
        (tmp_path / name).write_bytes(rng.bytes(9))
        assert open_extractor(f"dino:{tmp_path}", pictures(rng)).identity != before


def test_dino_sees_pictures(rng, cache, tmp_path):
    transformers = pytest.importorskip("transformers", reason='needs pip install "pyflow-engine[dino]"')
    config = transformers.Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=224)
    net = transformers.Dinov2Model(config).eval()
    net.save_pretrained(tmp_path / "small")
    seen_by = open_extractor(f"dino:{tmp_path / 'small'}", pictures(rng))
    assert (seen_by.name, seen_by.size) == ("small, 16 features", 16)
    seen = seen_by.see(rng.integers(0, 256, (2, 32, 32, 1)).astype(np.uint8))
    assert seen.features.shape == (2, 16)
    assert np.isfinite(seen.features).all()
