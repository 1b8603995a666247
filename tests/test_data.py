"""Data sets: pictures and labels from parquet files as they were written; one clear sentence for what does not fit."""

import os
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("datasets", reason='needs Hugging Face datasets: pip install "pyflow-engine[data]"')
pa = pytest.importorskip("pyarrow")
PIL_Image = pytest.importorskip("PIL.Image")

from pyflow.training import classifier  # noqa: E402
from pyflow.training.batch import endless, unpaired  # noqa: E402
from pyflow.training.data import CIFAR_NAMES, checkerboard_points, class_names, load_dataset, values  # noqa: E402
from pyflow.training.recipes import TEACHERS, recipe  # noqa: E402

from pyflow import checkpoint, commands  # noqa: E402
from pyflow.errors import BackendUnavailable, InvalidInput  # noqa: E402
from pyflow.pictures import model_values  # noqa: E402
from pyflow.spec import UNet  # noqa: E402

NETWORK = UNet(shape=(3, 8, 8), channels=8, multipliers=(1, 2), blocks=1, attention=(4,), heads=2, classes=10)
REAL = os.environ.get("PYFLOW_CIFAR10", "")


def png(picture: np.ndarray) -> dict[str, object]:
    file = BytesIO()
    PIL_Image.fromarray(picture).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def write(file: Path, images: list, labels: list, **columns: list) -> None:
    import pyarrow.parquet

    file.parent.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pa.table({"img": images, "label": labels, **columns}), file)


def colours(rng, count: int, side: int = 8) -> np.ndarray:
    return rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@pytest.fixture
def faces(rng, tmp_path) -> tuple[Path, np.ndarray, np.ndarray]:
    """A folder of 30 pictures to train on, in two files, and 12 held out; those pictures and labels, in order."""
    folder, pictures, labels = tmp_path / "faces [of] *", colours(rng, 42), rng.integers(0, 10, 42)
    labels[rng.integers(30)] = 9  # the largest label tells how many classes there are
    parts = {"train-00000-of-00002": (0, 20), "train-00001-of-00002": (20, 30), "test-00000-of-00001": (30, 42)}
    for name, (start, end) in parts.items():
        write(folder / f"{name}.parquet", [png(one) for one in pictures[start:end]], labels[start:end].tolist())
    return folder, pictures, labels


def test_pictures_and_labels_come_as_they_were_written(faces):
    folder, pictures, labels = faces
    for part, chosen in (("train", slice(0, 30)), ("test", slice(30, 42))):
        data = load_dataset(str(folder), part)
        assert (data.name, data.shape, data.classes) == ("faces [of] *", (3, 8, 8), 10)
        assert data.images.dtype == torch.uint8
        assert data.labels.dtype == torch.int64
        np.testing.assert_array_equal(data.images.numpy(), pictures[chosen].transpose(0, 3, 1, 2))
        assert data.images.is_contiguous()
        np.testing.assert_array_equal(data.labels.numpy(), labels[chosen])


def test_a_batch_holds_the_values_that_a_network_sees(faces):
    folder, pictures, _ = faces
    data = load_dataset(str(folder))
    batch = unpaired(data.images, data.labels)(16)
    known = [model_values(picture) for picture in pictures[:30]]
    assert batch.image.dtype == torch.float32
    for image, label in zip(batch.image.numpy(), batch.label):
        nearest = min(range(30), key=lambda index: np.abs(known[index] - image).max())
        np.testing.assert_allclose(image, known[nearest], atol=1e-6)
        assert label == data.labels[nearest]
    floats = torch.randn(4, 3, 8, 8)
    assert values(floats) is floats


@pytest.mark.parametrize("name", TEACHERS)
def test_every_method_learns_from_the_folder(name, faces, tmp_path):
    folder, *_ = faces
    network = replace(NETWORK, times=recipe(name).network.times)
    assert commands.train_teacher(name, str(folder), tmp_path / "run", network=network, steps=1, batch=4, watch=1)
    spec = checkpoint.load_spec(tmp_path / "run")
    assert (spec.network, spec.provenance["data"]) == (network, folder.name)


def test_a_judge_learns_from_the_folder(faces, tmp_path, monkeypatch):
    folder, *_ = faces
    train = classifier.train_classifier
    monkeypatch.setattr(classifier, "train_classifier", lambda dataset: train(dataset, steps=2, batch=4))
    assert commands.train_judge(tmp_path / "judge", str(folder))
    held_out = load_dataset(str(folder), "test")
    net = classifier.load(tmp_path / "judge", held_out)
    features, _ = classifier.features_and_labels(net, held_out.images)
    np.testing.assert_array_equal(features, classifier.features_and_labels(net, values(held_out.images))[0])


GOOD = np.zeros((8, 8, 3), np.uint8)
WRONG_ROWS = {
    "grey": (png(GOOD[:, :, 0]), 3, r"train of odd, picture 2 has the mode 'L'; expected 'RGB'"),
    "see-through": (png(np.zeros((8, 8, 4), np.uint8)), 3, r"picture 2 has the mode 'RGBA'; expected 'RGB'"),
    "another size": (png(np.zeros((8, 6, 3), np.uint8)), 3, r"picture 2 has shape \(3, 8, 6\); expected \(3, 8, 8\)"),
    "no picture": ({"bytes": b"GIF89a, but cut", "path": None}, 3, r"picture 2 is no picture that Pillow reads"),
    "cut": ({"bytes": png(GOOD)["bytes"][:45], "path": None}, 3, r"picture 2 is no picture that Pillow reads"),
    "a path alone": ({"bytes": None, "path": "/etc/passwd"}, 3, r"picture 2 is no picture that Pillow reads"),
    "null": (None, 3, r"picture 2 is no picture that Pillow reads"),
    "label too high": (png(GOOD), 70_000, r"train of odd, picture 2 has the label 70000; expected 0 to 65535"),
    "label below 0": (png(GOOD), -1, r"picture 2 has the label -1; expected 0 to 9"),
    "no label": (png(GOOD), None, r"picture 2 has the label None; expected 0 to 9"),
}


@pytest.mark.parametrize("name", WRONG_ROWS)
def test_a_row_that_does_not_fit_is_named(name, tmp_path):
    image, label, sentence = WRONG_ROWS[name]
    write(tmp_path / "odd" / "train-0.parquet", [png(GOOD), png(GOOD), image, png(GOOD)], [0, 9, label, 1])
    with pytest.raises(InvalidInput, match=sentence) as caught:
        load_dataset(str(tmp_path / "odd"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"picture": [png(GOOD)], "label": [1]}, "picture, label"),
        ({"image": [png(GOOD)], "fine_label": [1]}, "image, fine_label"),
        ({"img": [png(GOOD)]}, "img"),
        ({"img": [png(GOOD)], "label": ["cat"]}, "img, label"),
        ({"img": [png(GOOD)], "label": [0.5]}, "img, label"),
        ({"img": ["cat.png"], "label": [1]}, "img, label"),
        ({"img": [{"bytes": b"", "place": ""}], "label": [1]}, "img, label"),
    ],
    ids=["another name", "another label", "no label", "words", "fractions", "names of files", "another struct"],
)
def test_other_columns_are_refused(columns, named, tmp_path):
    import pyarrow.parquet

    (tmp_path / "odd").mkdir()
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "odd" / "test-0.parquet")
    with pytest.raises(InvalidInput, match=rf"test of odd has the columns {named}; expected img or image \(by"):
        load_dataset(str(tmp_path / "odd"), "test")


def hub_rows(rng, names: list[str], column: str, count: int = 24):
    """As the hub gives them: a real data set, whose features tell pictures and named classes."""
    import datasets

    features = datasets.Features({column: datasets.Image(), "label": datasets.ClassLabel(names=names)})
    pictures, labels = colours(rng, count), rng.integers(0, len(names), count)
    rows = {column: [png(one) for one in pictures], "label": labels.tolist()}
    return datasets.Dataset.from_dict(rows, features=features), pictures, labels


@pytest.mark.parametrize("column", ["img", "image"])
def test_named_classes_are_those_that_the_files_tell(column, rng, tmp_path):
    """A hundred of them, of which the rows hold few."""
    names = [f"kind {index}" for index in range(100)]
    (tmp_path / "hundred").mkdir()
    for part in ("train", "test"):
        rows, pictures, labels = hub_rows(rng, names, column)
        rows.to_parquet(tmp_path / "hundred" / f"{part}-00000-of-00001.parquet")
    data = load_dataset(str(tmp_path / "hundred"), "test")
    assert (data.classes, data.labels.tolist()) == (100, labels.tolist())
    np.testing.assert_array_equal(data.images.numpy(), pictures.transpose(0, 3, 1, 2))
    assert class_names(str(tmp_path / "hundred"), 100) == names


def test_classes_without_names_are_counted_by_the_labels_of_train(rng, tmp_path):
    folder = tmp_path / "plain"
    for part, largest in (("train-0", 12), ("train-1", 36), ("test-0", 3)):
        write(folder / f"{part}.parquet", [png(GOOD)] * 3, [0, 1, largest])
    for part in ("train", "test"):
        assert load_dataset(str(folder), part).classes == 37
    assert class_names(str(folder), 37) == [str(label) for label in range(37)]
    (folder / "train-1.parquet").unlink()
    (folder / "train-0.parquet").unlink()
    assert load_dataset(str(folder), "test").classes == 4


def test_files_of_cifar10_have_its_names_and_other_ten_classes_have_not(faces, tmp_path):
    folder, *_ = faces
    assert class_names(str(folder), 10) == [str(label) for label in range(10)]
    folder.rename(tmp_path / "cifar10-jpeg")
    assert class_names(str(tmp_path / "cifar10-jpeg"), 10) == class_names("cifar10", 10) == list(CIFAR_NAMES)


def test_the_hubs_cifar10_is_learnt_from_by_its_name(rng, tmp_path, monkeypatch):
    import datasets

    asked, parts = [], {part: hub_rows(rng, list(CIFAR_NAMES), "img") for part in ("train", "test")}

    def hub(name: str, *, split: str):
        asked.append((name, split))
        return parts[split][0]

    monkeypatch.setattr(datasets, "load_dataset", hub)
    for part, (_, pictures, labels) in parts.items():
        data = load_dataset("cifar10", part)
        assert (data.name, data.classes, data.labels.tolist()) == ("cifar10", 10, labels.tolist())
        np.testing.assert_array_equal(data.images.numpy(), pictures.transpose(0, 3, 1, 2))
    assert asked == [("cifar10", "train"), ("cifar10", "test")]
    assert commands.train_teacher("cfm", "cifar10", tmp_path / "run", network=NETWORK, steps=1, batch=4, watch=0)
    assert checkpoint.load_spec(tmp_path / "run").provenance["data"] == "cifar10"


def test_files_that_are_not_there_or_not_parquet_are_refused(tmp_path):
    nowhere, folder = tmp_path / "nowhere", tmp_path / "odd"
    with pytest.raises(InvalidInput, match=r"nowhere'; expected one of .*cifar10, or a folder .* that is there"):
        load_dataset(str(nowhere))
    folder.mkdir()
    with pytest.raises(
        InvalidInput, match=r"odd holds no pictures for train; expected train/CLASS/\*\.png, .*train-\*.par"
    ):
        load_dataset(str(folder))
    write(folder / "test-0.parquet", [png(GOOD)], [1])
    with pytest.raises(InvalidInput, match=r"odd holds no train-\*.parquet; expected files as of the hub's cifar10"):
        load_dataset(str(folder))
    file = folder / "train-0.parquet"
    for content in (b"", b"nonsense", b"PAR1" + bytes(40) + b"PAR1"):
        file.write_bytes(content)
        with pytest.raises(InvalidInput, match=r"train of odd cannot be read \(.*\); fetch its files again"):
            load_dataset(str(folder))
    write(folder / "train-0.parquet", [png(GOOD)] * 50, [1] * 50, noise=[os.urandom(2000) for _ in range(50)])
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidInput, match="train of odd cannot be read"):
        load_dataset(str(folder))


def save(picture: np.ndarray, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    PIL_Image.fromarray(picture).save(file)


@pytest.fixture
def album(rng, tmp_path) -> tuple[Path, dict[str, np.ndarray]]:
    """A folder of pictures in three classes, the last two of which are held out too; the pictures by their places."""
    folder = tmp_path / "album [of] *"
    places = ("train/a cat", "train/dog", "test/dog", "test/eel")
    names = [f"{place}/{index}.png" for place in places for index in (0, 1)]
    pictures = dict(zip([*names, "train/eel/0.PNG", "train/eel/1.bmp"], colours(rng, 10)))
    for name, picture in pictures.items():
        save(picture, folder / name)
    (folder / "train/dog/metadata.csv").write_text("file_name,label\n0.png,7\n")
    (folder / "train/dog/.hidden.png").write_bytes(b"no picture")
    (folder / "train/nothing").mkdir()
    return folder, pictures


def test_a_folder_of_pictures_is_numbered_by_the_names_of_its_classes(album, monkeypatch):
    folder, pictures = album
    monkeypatch.chdir(folder.parent)
    for part, place in (("train", folder), ("test", Path(folder.name))):  # a relative name is as good
        data = load_dataset(str(place), part)
        assert (data.name, data.shape, data.classes, data.images.dtype) == (folder.name, (3, 8, 8), 3, torch.uint8)
        found = {(image.numpy().tobytes(), int(label)) for image, label in zip(data.images, data.labels)}
        kinds = ["a cat", "dog", "eel"]
        assert found == {
            (picture.transpose(2, 0, 1).tobytes(), kinds.index(name.split("/")[1]))
            for name, picture in pictures.items()
            if name.startswith(part)
        }


@pytest.mark.parametrize("place", ["album", "album/train"])
def test_pictures_without_classes_are_of_none(place, rng, tmp_path):
    pictures = colours(rng, 3)
    for index, picture in enumerate(pictures):
        save(picture, tmp_path / place / f"{index}.png")
    data = load_dataset(str(tmp_path / "album"))
    assert (data.classes, data.labels.tolist()) == (0, [0, 0, 0])
    np.testing.assert_array_equal(data.images.numpy(), pictures.transpose(0, 3, 1, 2))
    with pytest.raises(InvalidInput, match=r"album holds no pictures for test; expected test/CLASS/\*\.png"):
        load_dataset(str(tmp_path / "album"), "test")


def deep() -> bytes:
    """A PNG of 16 bits a colour, which Pillow reads and does not write."""
    rows = zlib.compress(b"".join(b"\0" + bytes(8 * 6) for _ in range(8)))
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def moving(rng) -> bytes:
    file = BytesIO()
    first, second = (PIL_Image.fromarray(picture) for picture in colours(rng, 2))
    first.save(file, "WEBP", save_all=True, append_images=[second], duration=100)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (lambda rng: png(colours(rng, 1)[0, :, :, 0])["bytes"], "has the mode 'L'; expected 'RGB'"),
        (lambda rng: png(colours(rng, 1, 9)[0])["bytes"], r"has shape \(3, 9, 9\); expected \(3, 8, 8\)"),
        (lambda rng: deep(), "has 16 bits a colour; expected 8"),
        (lambda rng: png(np.zeros((8, 8), np.uint16))["bytes"], "has the mode 'I;16'; expected 'RGB'"),
        (moving, "is animated; expected one picture"),
        (lambda rng: b"nonsense", "is no picture that Pillow reads"),
        (lambda rng: b"", "is no picture that Pillow reads"),
    ],
    ids=["grey", "another size", "16 bits", "16 bits, grey", "animated", "unreadable", "empty file"],
)
def test_a_picture_that_does_not_fit_is_named(content, sentence, album, rng):
    folder, _ = album
    (folder / "train/dog/2.png").write_bytes(content(rng))
    with pytest.raises(InvalidInput, match=rf"train of album .*, dog/2\.png, {sentence}") as caught:
        load_dataset(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "part", "sentence"),
    [
        ("test/fox/0.png", "test", "test of album .* has the classes fox; expected a cat, dog, eel alone"),
        ("train/0.png", "train", "train of album .* has pictures beside its classes; expected a cat, dog, eel alone"),
        ("test/0.png", "test", "test of album .* has pictures beside its classes"),
    ],
)
def test_classes_that_do_not_fit_are_named(more, part, sentence, album, rng):
    folder, _ = album
    save(colours(rng, 1)[0], folder / more)
    with pytest.raises(InvalidInput, match=sentence):
        load_dataset(str(folder), part)


def test_the_checkerboard_is_endless_and_even():
    points = checkerboard_points(20_000)
    cells = (points + 2).floor().long()
    assert set(cells.flatten().tolist()) == {0, 1, 2, 3}
    assert (cells.sum(1) % 2 == 0).all()
    shares = torch.bincount(4 * cells[:, 0] + cells[:, 1], minlength=16).float() / len(points)
    assert shares[shares > 0].min() > 0.1, torch.initial_seed()
    assert len(shares.nonzero()) == 8
    draw = endless(checkerboard_points)
    first, second = draw(64), draw(64)
    assert not torch.isin(first.image, second.image).any()
    assert load_dataset("checkerboard").images.shape == (100_000, 2)


def test_the_hub_out_of_reach_is_one_sentence(tmp_path):
    program = "from pyflow.training.data import load_dataset; load_dataset('cifar10')"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("pyflow.errors.BackendUnavailable: cifar10 did not come from the Hugging Face hub"), last
    assert "give --data the folder of its parquet files" in last


@pytest.mark.parametrize("package", ["datasets", "PIL.Image"])
def test_a_missing_package_names_its_extra(package, faces, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    for name in ("cifar10", str(faces[0])):
        with pytest.raises(BackendUnavailable, match=r'pip install "pyflow-engine\[data\]"'):
            load_dataset(name)


@pytest.mark.skipif(not Path(REAL or "nowhere").is_dir(), reason="PYFLOW_CIFAR10 names no folder of its parquet files")
def test_the_real_pictures():
    for part, count in (("train", 50_000), ("test", 10_000)):
        data = load_dataset(REAL, part)
        assert (tuple(data.images.shape), data.images.dtype) == ((count, 3, 32, 32), torch.uint8)
        assert data.labels.bincount().tolist() == [count // 10] * 10
        assert 100 < data.images.float().mean() < 140
