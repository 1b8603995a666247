"""Without a GPU the Triton kernels run in Triton's interpreter, which has to be asked for before they are imported."""

import importlib.util
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

GPU = False
if importlib.util.find_spec("torch"):
    import torch

    # The tests' networks are tiny: with two threads on a machine that is shared, each operation waits for the scheduler
    # (1.2 s a forward of the tiny UNet against 5 ms).
    torch.set_num_threads(1)
    GPU = torch.cuda.is_available()
    if not GPU:
        os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(
    params=[
        pytest.param("cpu", marks=pytest.mark.skipif(GPU, reason="a GPU is here: the kernels run on it instead")),
        pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not GPU, reason="needs an NVIDIA GPU")]),
    ]
)
def kernel_device(request) -> str:
    """Where the Triton kernels run in this test: in the interpreter, or compiled on the GPU."""
    return request.param


@pytest.fixture
def rng() -> np.random.Generator:
    """New numbers in every run; pytest shows the seed when the test fails."""
    seed = secrets.randbits(32)
    print(f"rng seed: {seed}")
    return np.random.default_rng(seed)


@pytest.fixture
def seed(rng) -> int:
    """Of torch's generator, for messages."""
    seed = int(rng.integers(2**31))
    torch.manual_seed(seed)
    return seed


@pytest.fixture
def refusal(capsys) -> Callable[..., str]:
    """What the command line says to a mistake: one sentence."""

    def told(*words: object) -> str:
        from pyflow.cli import main

        capsys.readouterr()
        assert main([str(word) for word in words]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        return error

    return told


@pytest.fixture
def clean_refusal(refusal, tmp_path, monkeypatch) -> Callable[..., str]:
    """The same in an empty folder, which is empty after it."""

    def told(*words: object) -> str:
        monkeypatch.chdir(tmp_path)
        error = refusal(*words)
        assert not list(tmp_path.iterdir()), "something was left behind"
        return error

    return told


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """A checkpoint of a UNet that knows three classes and the null label; to be read only."""
    from tiny import UNET, save

    from pyflow.spec import Spec

    return save(tmp_path_factory.mktemp("tiny") / "checkpoint", Spec(UNET, null_label=True))


@pytest.fixture(scope="session")
def tiny_engine(tiny_checkpoint) -> Path:
    """The ONNX engine of `tiny_checkpoint`; to be read only."""
    from pyflow.export import export

    export(tiny_checkpoint, tiny_checkpoint.with_name("tiny.engine"))
    return tiny_checkpoint.with_name("tiny.engine")


@pytest.fixture
def no_native(monkeypatch):
    """Fails the test when the C++ loop is reached: what is wrong has to be named before."""
    from pyflow import native

    def called(*_, **__):
        pytest.fail("native code was called")

    monkeypatch.setattr(native, "sample", called)


@pytest.fixture
def judge(tmp_path, monkeypatch):
    """The folder of a classifier of a data set of the tiny network's pictures."""
    from pyflow.training import classifier, data
    from pyflow.training.data import Dataset
    from tiny import UNET

    from pyflow import commands

    def pictures(part="train"):
        drawn = torch.randn(240, *UNET.shape, generator=torch.Generator().manual_seed(len(part)))
        labels = torch.arange(240) % UNET.classes
        return Dataset("tiny", (0.3 * drawn + 0.3 * labels[:, None, None, None]).clamp(-1, 1), labels, UNET.classes)

    monkeypatch.setitem(data.DATASETS, "tiny", pictures)
    monkeypatch.setenv("PYFLOW_CACHE", str(tmp_path / "cache"))
    train = classifier.train_classifier
    monkeypatch.setattr(classifier, "train_classifier", lambda dataset: train(dataset, steps=2))
    commands.train_judge(tmp_path / "judge", "tiny")
    return tmp_path / "judge"


@pytest.fixture
def sampled(monkeypatch):
    """How many pictures each plan was asked for."""
    from pyflow.sampler import Flow

    asked: dict[int, int] = {}
    sample = Flow.sample

    def counted(flow, batch=1, **words):
        asked[words["steps"]] = asked.get(words["steps"], 0) + batch
        return sample(flow, batch, **words)

    monkeypatch.setattr(Flow, "sample", counted)
    return asked
