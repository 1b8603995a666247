"""`pyflow eval`: what it measures against the same by hand, and resuming; the search of a grid."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from pyflow.training import classifier, data
from tiny import UNET, save

from pyflow import eval_rows, evaluation, load, similarity
from pyflow.eval_search import SWEEPS, search, search_grid
from pyflow.eval_setting import Against, Setting
from pyflow.evaluation import evaluate
from pyflow.metrics import frechet_distance, kernel_distance, label_accuracy
from pyflow.neighbours import manifold
from pyflow.spec import Spec

SPEC = Spec(UNET, null_label=True)


def setting_of(judge: Path, **others) -> Setting:
    return Setting("tiny", f"classifier:{judge}", **{"num_samples": 60, "seeds": 2, "batch": 16, **others})


# ---- the figures
def test_each_figure_is_that_of_all_pictures_at_once(judge, tiny_checkpoint, tmp_path):
    """Streamed in batches of 16, beside the functions on one sample of all, seen by the classifier itself."""
    setting = setting_of(judge, guidance=1.5, grid="cosine", solver="heun")
    found = evaluate(tiny_checkpoint, (3,), setting, tmp_path / "a.json", name="Ours")
    row = found["rows"][0]

    shown = data.load_dataset("tiny")
    net, flow = classifier.load(judge, shown), load(tiny_checkpoint)
    whole = ((shown.images + 1) * 127.5).round().to(torch.uint8)
    real = classifier.features_and_labels(net, whole)[0].numpy()
    by_hand: dict[str, list[float]] = {name: [] for name in ("frechet", "kernel", "precision", "label_accuracy")}
    features = []
    for seed in (0, 1):
        labels = np.arange(60) % 3
        plan = {"steps": 3, "guidance": 1.5, "solver": "heun", "grid": "cosine"}
        images = flow.sample(60, label=labels.tolist(), seed=seed, **plan).images
        seen, read = classifier.features_and_labels(net, torch.from_numpy(images).permute(0, 3, 1, 2))
        features.append(seen.numpy())
        by_hand["frechet"].append(frechet_distance(features[-1], real))
        by_hand["kernel"].append(kernel_distance(features[-1], real, seed=seed))
        by_hand["precision"].append(manifold(real, features[-1]).precision)
        by_hand["label_accuracy"].append(label_accuracy(read.numpy(), labels))
    for name, (first, second) in by_hand.items():
        close = {"rel": 1e-3, "abs": 1e-5}  # a pixel at a rounding border may differ by one
        assert row[name]["value"] == pytest.approx((first + second) / 2, **close), name
        half = 12.706204736 * abs(first - second) / 2  # Student's t of one degree; the error of a mean of two
        assert row[name]["high"] - row[name]["value"] == pytest.approx(half, **close), name
        assert row[name]["value"] - row[name]["low"] == pytest.approx(half, **close), name
    assert row["calls"] == 6
    assert row["per_class"] == {}, "40 pictures a class are too few for 48 features"
    assert 0 < row["denoiser_share"] + row["extractor_share"] < 1
    assert row["images_per_second"] * row["ms_per_image"] == pytest.approx(1e3)
    assert found["floor"]["count"] == 60
    assert set(found["floor"]) >= {"frechet", "kernel", "label_accuracy"}
    told = {name: found[name] for name in ("kind", "name", "data", "features", "num_samples", "seeds", "guidance")}
    assert told == {
        "kind": "eval",
        "name": "Ours",
        "data": "tiny",
        "features": "tiny classifier, 48 features",
        "num_samples": 60,
        "seeds": [0, 1],
        "guidance": 1.5,
    }
    assert found["classes"] == ["0", "1", "2"]
    with PIL.Image.open(tmp_path / "a-steps-3.png") as opened:
        (height, width), gap, scale = row["cell"], row["gap"], row["scale"]
        seeds = 8
        assert opened.size == (scale * (seeds * (width + gap) + gap), scale * (3 * (height + gap) + gap))
        rows_of_lines = np.asarray(opened).reshape(opened.height, -1)[:: scale * (height + gap)]
        assert (rows_of_lines == 128).all()


def test_one_seed_has_no_interval(judge, tiny_checkpoint, tmp_path):
    found = evaluate(tiny_checkpoint, (1,), setting_of(judge, seeds=1), tmp_path / "a.json")
    assert found["rows"][0]["frechet"]["low"] is None
    assert found["interval"] == "none, of one seed"


def test_memory_holds_a_batch(judge, tiny_checkpoint, tmp_path, monkeypatch):
    """No list of all features: what waits and what is kept is bounded, whatever the number of pictures."""
    from pyflow import references

    monkeypatch.setattr(references, "FOLDED", 32)
    tally = references.Tally(8, 3, keep=40)
    rng = np.random.default_rng(0)
    everything = rng.normal(size=(500, 8)).astype(np.float32)
    labels = rng.integers(3, size=500)
    for start in range(0, 500, 10):
        tally.add(everything[start : start + 10], labels[start : start + 10], None)
        assert sum(len(features) for features, _ in tally._waiting) < 32
    look = tally.look()
    np.testing.assert_array_equal(look.kept, everything[:40])
    np.testing.assert_allclose(look.whole.covariance(), np.cov(everything.astype(np.float64), rowvar=False), rtol=1e-9)


# ---- what a row has beside its distances
def test_beside_a_teacher_from_the_same_noise(judge, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.delenv("PYFLOW_LPIPS", raising=False)
    student = save(tmp_path / "student", Spec(UNET), seed=1)
    setting = setting_of(judge, against=Against(tiny_checkpoint, steps=4, guidance=2.0))
    rows = evaluate(student, (1, 2), setting, tmp_path / "a.json")["rows"]
    labels = (np.arange(evaluation.COMPARED) % 3).tolist()
    theirs = load(tiny_checkpoint).sample(len(labels), label=labels, steps=4, guidance=2.0).images
    for row in rows:
        made = load(student).sample(len(labels), label=labels, steps=row["steps"]).images
        assert row["against"] == {"name": "checkpoint, 4 steps", "ssim": float(similarity.ssim(theirs, made).mean())}
    itself = evaluate(
        tiny_checkpoint, (2,), setting_of(judge, against=Against(tiny_checkpoint, steps=2)), tmp_path / "b.json"
    )
    assert itself["rows"][0]["against"]["ssim"] == 1
    first, second = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert (first["no_straightness"], second["straightness"] > 0) == (
        "one step is a straight line whatever the network",
        True,
    )
    assert "straightness" not in first
    assert "no_straightness" not in second


def test_a_sheet_has_the_same_noise_and_labels_for_every_plan(tiny_checkpoint):
    flow = load(tiny_checkpoint)
    shown = np.asarray(PIL.Image.open(io.BytesIO(evaluation.sheet(flow, eval_rows.Plan(2)))))[::2, ::2]
    for seed, label in ((0, 0), (5, 2)):
        image = flow.sample(1, seed=seed, first=label, label=label, steps=2).images[0, :, :, 0]
        top, left = 1 + 9 * label, 1 + 9 * seed
        assert np.abs(shown[top : top + 8, left : left + 8].astype(int) - image).max() <= 1


# ---- resuming
def test_finished_rows_are_kept_and_a_killed_run_goes_on(judge, tiny_checkpoint, tmp_path, monkeypatch, sampled):
    out = tmp_path / "a.json"
    setting = setting_of(judge)
    measured = evaluation._measured

    def killed(subject, plan, *others):
        if plan.steps == 2:
            raise KeyboardInterrupt
        return measured(subject, plan, *others)

    monkeypatch.setattr(evaluation, "_measured", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tiny_checkpoint, (1, 2, 4), setting, out)
    first = json.loads(out.read_text())
    assert [row["steps"] for row in first["rows"]] == [1]
    monkeypatch.setattr(evaluation, "_measured", measured)
    sampled.clear()
    found = evaluate(tiny_checkpoint, (1, 2, 4), setting, out)
    assert set(sampled) == {2, 4}
    assert [row["steps"] for row in found["rows"]] == [1, 2, 4]
    assert found["rows"][0] == first["rows"][0]
    on_disk = json.loads(out.read_text())["rows"]
    assert [row["frechet"] for row in on_disk] == [row["frechet"] for row in found["rows"]]


def test_a_file_of_another_request_is_refused(judge, tiny_checkpoint, tmp_path, sampled):
    out = tmp_path / "a.json"
    evaluate(tiny_checkpoint, (1,), setting_of(judge), out)
    sampled.clear()
    for changed, sentence in (
        ({"num_samples": 61}, "whose num_samples is 60, not 61; name another --out"),
        ({"guidance": 2.0}, "whose guidance is 1.0, not 2.0"),
        ({"seeds": 3}, r"whose seeds is \[0, 1\], not \[0, 1, 2\]"),
    ):
        with pytest.raises(ValueError, match=sentence):
            evaluate(tiny_checkpoint, (1,), setting_of(judge, **changed), out)
    other = save(tmp_path / "other", SPEC, seed=5)
    with pytest.raises(ValueError, match="whose subject is"):
        evaluate(other, (1,), setting_of(judge), out)
    assert not sampled
    whole = json.loads(out.read_text())
    broken = [{"request": []}, {"rows": [{}]}, {"rows": [1]}, {"rows": [{"steps": 1}]}, {"format": 2}]
    for content in ([], *({**whole, **changes} for changes in broken)):
        out.write_text(json.dumps(content))
        with pytest.raises(ValueError, match="is no evaluation that pyflow wrote"):
            evaluate(tiny_checkpoint, (1,), setting_of(judge), out)


def test_the_machine_belongs_to_the_request(judge, tiny_checkpoint, tmp_path, monkeypatch, sampled):
    """Times of rows stand beside each other: none are added by other threads, batches or processors."""
    out = tmp_path / "a.json"
    evaluate(tiny_checkpoint, (1,), setting_of(judge, threads=1), out)
    request = json.loads(out.read_text())["request"]
    assert {request[name] for name in ("threads", "device", "batch", "backend")} == {1, "cpu", 16, "eager"}
    sampled.clear()
    with pytest.raises(ValueError, match="whose batch is 16, not 20; name another --out"):
        evaluate(tiny_checkpoint, (2,), setting_of(judge, batch=20, threads=1), out)
    with pytest.raises(ValueError, match="whose threads is 1, not 2; name another --out"):
        evaluate(tiny_checkpoint, (2,), setting_of(judge, threads=2), out)
    torch.set_num_threads(1)
    here = evaluation.machine()
    monkeypatch.setattr(evaluation, "machine", lambda: {**here, "processor": "another"})
    with pytest.raises(ValueError, match='not "another"; name another --out'):
        evaluate(tiny_checkpoint, (2,), setting_of(judge, threads=1), out)
    assert not sampled


def test_two_evaluations_into_one_file_keep_each_others_rows(judge, tiny_checkpoint, tmp_path, monkeypatch):
    out, setting, measured = tmp_path / "a.json", setting_of(judge), evaluation._measured

    def while_another_runs(*asked):
        monkeypatch.setattr(evaluation, "_measured", measured)
        evaluate(tiny_checkpoint, (2,), setting, out)
        return measured(*asked)

    monkeypatch.setattr(evaluation, "_measured", while_another_runs)
    found = evaluate(tiny_checkpoint, (1,), setting, out)
    on_disk = json.loads(out.read_text())["rows"]
    assert [row["steps"] for row in on_disk] == [row["steps"] for row in found["rows"]] == [1, 2]


def test_a_finished_file_takes_another_name(judge, tiny_checkpoint, tmp_path, sampled):
    out, setting = tmp_path / "a.json", setting_of(judge)
    first = evaluate(tiny_checkpoint, (1,), setting, out)
    assert first["name"] == "a"
    sampled.clear()
    evaluate(tiny_checkpoint, (1,), setting, out, name="Ours")
    assert not sampled
    renamed = json.loads(out.read_text())
    assert (renamed["name"], renamed["facts"]) == ("Ours", first["facts"])
    assert evaluate(tiny_checkpoint, (1,), setting, out)["name"] == "Ours"


# ---- the curve of the training
def test_a_training_curve_is_that_of_the_run_and_of_whole_lines(tmp_path):
    for name in ("run", "run-1"):
        (tmp_path / f"{name}.log").mkdir()
        (tmp_path / f"{name}.log" / "log.jsonl").write_text(
            '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": null}\n{"step": 3, "loss": NaN}\n{"step": 4, "norm": 1.0}\n'
            '{"step": 5, "loss": 0.25}\n{"step": 6, "lo'
        )
    expected = [{"step": 1, "loss": 0.5}, {"step": 5, "loss": 0.25}]
    assert evaluation.training_curve(tmp_path / "run") == expected
    assert evaluation.training_curve(tmp_path / "run.engine") == expected
    assert evaluation.training_curve(tmp_path / "run-1.5") == [], "another run"


# ---- the search
def test_the_search_finds_a_grid_that_is_known(rng):
    """A distance with its minimum at times that are drawn here."""
    best = np.sort(rng.uniform(0.1, 0.9, 3))
    asked, measured = [], []

    def distance(times):
        measured.append(times)
        assert times[0] == 0
        assert times[-1] == 1
        assert all(s < t for s, t in zip(times, times[1:]))
        return float(np.square(np.array(times[1:-1]) - best).sum())

    tried = search(distance, 4, lambda: asked.append(True))
    assert tried[0].times == (0, 0.25, 0.5, 0.75, 1)
    assert len(asked) == 2 + SWEEPS * 3 * 5
    assert [one.times for one in tried] == measured
    assert len(set(tried)) == len(tried)
    assert min(one.frechet for one in tried) < 0.3 * min(tried[0].frechet, tried[1].frechet) + 0.02


@pytest.mark.parametrize("kind", ["engine", "checkpoint"])
def test_a_searched_grid_is_kept_and_sampled(kind, judge, tiny_checkpoint, tiny_engine, tmp_path):
    source = tmp_path / "own"
    shutil.copytree({"engine": tiny_engine, "checkpoint": tiny_checkpoint}[kind], source)
    with pytest.raises(ValueError, match="grid is 'searched' for 3 steps; expected steps out of those searched, none"):
        load(source).sample(1, steps=3, label=0, grid="searched")
    before = load(source)
    found = search_grid(source, 3, setting_of(judge, num_samples=50, batch=50), tmp_path / "search.json")
    kept = found["judged"][found["best"]]["grid"]
    assert (
        min(one["frechet"]["value"] for one in found["judged"].values())
        == found["judged"][found["best"]]["frechet"]["value"]
    )
    assert found["fresh_seeds"] == [1, 2]
    assert len(found["tried"]) == 2 + SWEEPS * 2 * 5
    flow = load(source)
    assert flow.identity == before.identity
    assert flow.spec == before.spec, "a grid makes no other network"
    searched = flow.sample(2, steps=3, label=0, grid="searched").states
    np.testing.assert_array_equal(searched, flow.sample(2, label=0, grid=kept).states)
    with pytest.raises(ValueError, match="out of those searched, 3: `pyflow eval SOURCE --search-grid --steps 2`"):
        flow.sample(1, steps=2, label=0, grid="searched")
    row = evaluate(source, (3,), setting_of(judge, grid="searched"), tmp_path / "a.json")["rows"][0]
    assert row["grid"] == "searched"
