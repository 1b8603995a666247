"""The seeds of a row: the distance of each class over all of them with its interval, and a run killed between two."""

import numpy as np
import pytest
import torch
from pyflow.training import classifier, data
from test_eval import setting_of

from pyflow import eval_rows, evaluation, load
from pyflow.eval_seeds import Clock, Seed, Store, frechet_by_class
from pyflow.evaluation import evaluate
from pyflow.metrics import Moments, frechet_distance
from pyflow.references import Look


# ---- distances by class
def test_distances_by_class_are_those_of_the_class_alone(judge, tiny_checkpoint, tmp_path):
    """Over all seeds; the interval is the jackknife's, here from the pictures themselves."""
    setting = setting_of(judge, num_samples=150, seeds=3)
    found = evaluate(tiny_checkpoint, (1,), setting, tmp_path / "a.json")
    assert found["interval_by_class"] == evaluation.JACKKNIFE
    shown, flow = data.load_dataset("tiny"), load(tiny_checkpoint)
    net = classifier.load(judge, shown)
    whole = ((shown.images + 1) * 127.5).round().to(torch.uint8)
    for label in range(3):
        made = [
            flow.sample(150, label=(np.arange(150) % 3).tolist(), seed=seed, steps=1).images[label::3]
            for seed in (0, 1, 2)
        ]
        seen = [torch.from_numpy(images).permute(0, 3, 1, 2) for images in made]
        *seeds, real = (
            classifier.features_and_labels(net, images)[0].numpy() for images in (*seen, whole[shown.labels == label])
        )
        without = [frechet_distance(np.concatenate([s for s in seeds if s is not one]), real) for one in seeds]
        told = found["rows"][0]["per_class"][str(label)]["frechet"]
        assert told["value"] == pytest.approx(frechet_distance(np.concatenate(seeds), real), rel=1e-3)
        half = 4.302652730 * np.sqrt(2 / 3 * np.square(np.array(without) - np.mean(without)).sum())
        assert told["high"] - told["value"] == pytest.approx(half, rel=1e-2)
        assert told["value"] - told["low"] == pytest.approx(half, rel=1e-2)


@pytest.mark.parametrize(
    ("pictures", "seeds", "classes", "sentence"),
    [
        (72, 2, 0, "no distance, of all seeds: 48 pictures a class; a covariance of 48 features needs 49"),
        (75, 2, 3, "no interval, without a seed: 25 pictures a class; a covariance of 48 features needs 49"),
        (150, 1, 3, "none, of one seed"),
    ],
)
def test_too_few_pictures_a_class_are_told(
    pictures, seeds, classes, sentence, judge, tiny_checkpoint, tmp_path, capsys
):
    setting = setting_of(judge, num_samples=pictures, seeds=seeds)
    found = evaluate(tiny_checkpoint, (1,), setting, tmp_path / "a.json")
    assert found["interval_by_class"] == sentence
    assert sentence in capsys.readouterr().out
    per_class = found["rows"][0]["per_class"]
    assert len(per_class) == classes
    assert all(one["frechet"]["low"] is None for one in per_class.values())


def test_intervals_by_class_are_as_wide_as_the_distance_spreads(rng):
    """One feature N(d, 1) against N(0, 1): its distance, d^2, spreads by 2 d / sqrt(pictures), so 0.2 and 0.4 here.

    95% of the intervals hold the distance's mean: 380 of 400, with a deviation of 4. With the normal law's quantile in
    the place of Student's they would be 351, without the seeds' number in the jackknife far fewer.
    """
    shifts, seeds, each, times = np.array([1.0, 2.0]), 5, 20, 400
    real = Look(tuple(Moments(1000, np.zeros(1), 999 * np.ones((1, 1))) for _ in shifts), np.zeros((1, 1)), None)
    values, halves = np.empty((2, times, 2))
    for at in range(times):
        made = [tuple(Moments.of(rng.normal(shift, 1, (each, 1))) for shift in shifts) for _ in range(seeds)]
        found = frechet_by_class(lambda seed, made=made: Seed({}, made[seed], Clock([])), range(seeds), real)
        for label, told in enumerate(one for _, one in sorted(found.items())):
            values[at, label], halves[at, label] = told["value"], told["high"] - told["value"]
    expected = 2 * shifts / np.sqrt(seeds * each)
    np.testing.assert_allclose(values.std(0), expected, rtol=0.15)
    np.testing.assert_allclose(np.sqrt(np.square(halves).mean(0)) / 2.776445105, expected, rtol=0.15)
    held = (abs(values - values.mean(0)) <= halves).sum(0)
    assert ((held >= 360) & (held <= 397)).all(), held


# ---- resuming
def test_a_run_that_is_killed_goes_on_at_its_next_seed(judge, tiny_checkpoint, tmp_path, monkeypatch, sampled):
    """Its figures are those of a run that was not; nothing but the file and its sheet is left of it."""
    setting, looked = setting_of(judge, num_samples=150, seeds=3), eval_rows.look_at
    whole = evaluate(tiny_checkpoint, (2,), setting, tmp_path / "whole.json")["rows"][0]

    def killed(*arguments, seed, **others):
        if seed == 2:
            raise KeyboardInterrupt
        return looked(*arguments, seed=seed, **others)

    out = tmp_path / "killed" / "a.json"
    out.parent.mkdir()
    monkeypatch.setattr(eval_rows, "look_at", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tiny_checkpoint, (2,), setting, out)
    monkeypatch.setattr(eval_rows, "look_at", looked)
    seeds = sorted((out.parent / "a-steps-2.seeds").iterdir())
    assert len(seeds) == 2
    (seeds[1] / "seed.safetensors").write_bytes(b"damaged")
    sampled.clear()
    row = evaluate(tiny_checkpoint, (2,), setting, out)["rows"][0]
    of_the_sheet = 8 * 3
    assert sampled == {2: 2 * 150 + of_the_sheet}, "the damaged seed and the one that had not begun"
    for name in ("frechet", "kernel", "precision", "label_accuracy", "per_class"):
        assert row[name] == whole[name], name
    assert row["seconds"] > 0
    assert sorted(path.name for path in out.parent.iterdir()) == ["a-steps-2.png", "a.json"]


def test_seeds_of_another_request_are_not_taken(tmp_path):
    stores = [Store(tmp_path / "a.seeds", key) for key in ("one", "other")]
    asked: list[int] = []
    for number, store in enumerate(stores):
        made = Seed({"frechet": float(number)}, (), Clock([0.1], 1, 2, 3))
        ask = store.asking(lambda seed, made=made: asked.append(seed) or made)
        assert [ask(seed) for seed in (0, 1, 0, 1)] == [made] * 4
        assert store.count((0, 1, 2)) == 2
    assert asked == [0, 1, 0, 1]
    stores[0].remove((0, 1))
    assert (stores[0].count((0, 1)), stores[1].count((0, 1))) == (0, 2)
    stores[1].remove((0, 1))
    assert not (tmp_path / "a.seeds").exists()
