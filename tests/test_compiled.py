"""A checkpoint under torch.compile: the numbers of eager torch, from several threads too."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from tiny import POINTS, network  # noqa: E402 - after the skip

from pyflow import core  # noqa: E402
from pyflow.engines import compiled, eager  # noqa: E402
from pyflow.engines.runner import Request  # noqa: E402
from pyflow.errors import BackendUnavailable  # noqa: E402
from pyflow.spec import Spec  # noqa: E402

PLAN = core.euler(core.LINEAR, core.VELOCITY, core.uniform_grid(3))


def request(rng, batch: int) -> Request:
    label = rng.integers(POINTS.classes + 1, size=batch)
    return Request(PLAN, batch, int(rng.integers(2**32)), label=label, null_label=POINTS.classes)


def test_a_compiled_checkpoint_says_what_it_says_in_eager_torch(rng):
    model, spec = network(POINTS, int(rng.integers(2**31))), Spec(POINTS)
    reference, runner = eager.runner(model, spec), compiled.runner(model, spec)
    with torch.inference_mode():  # a caller's, around the first call
        runner.run(request(rng, 3))
    asked = [request(rng, batch) for batch in (1, 2, 7, 33)]
    expected = [reference.run(each).states for each in asked]
    with ThreadPoolExecutor(2) as pool:
        came = list(pool.map(lambda each: runner.run(each).states, asked * 2))
    for states, truth, each in zip(came, expected * 2, asked * 2):
        assert np.abs(states - truth).max() <= 1e-5 * np.abs(truth).max(), f"{each.batch} of seed {each.seed}"
    assert torch.is_inference(model.leave.weight) is False
    assert model.leave.weight.requires_grad


def test_without_a_compiler_the_way_out_is_named(rng, monkeypatch):
    import torch._inductor.config as config

    monkeypatch.setattr(config, "force_disable_caches", True)
    monkeypatch.setattr(config.cpp, "cxx", (None, "/nowhere/g++"))
    torch._dynamo.reset()  # networks of one shape share what was compiled
    runner = compiled.runner(network(POINTS, 0), Spec(POINTS))
    with pytest.raises(BackendUnavailable, match=r"(?s)torch.compile failed .*nowhere.*backend='eager'"):
        runner.run(request(rng, 2))
