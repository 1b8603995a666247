"""The loop on a GPU against the C++ loop over torch eager; without a GPU, rehearsed in Triton's interpreter.

What a graph would do is rehearsed too: the CPU does the recorded work again, over the same tensors.
"""

import threading
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from pyflow.kernels import machine  # noqa: E402
from tiny import POINTS, UNET, network  # noqa: E402

from pyflow import core  # noqa: E402
from pyflow.core import IMAGE, LINEAR, NOISE, VELOCITY, VP_COSINE  # noqa: E402
from pyflow.engines import cuda, cuda_graph, eager  # noqa: E402
from pyflow.engines.runner import Request  # noqa: E402
from pyflow.errors import BackendUnavailable, InvalidInput  # noqa: E402
from pyflow.spec import Spec  # noqa: E402

SPEC, NETWORK = Spec(UNET, null_label=True), network(UNET, seed=1)
EULER = core.euler(LINEAR, VELOCITY, core.uniform_grid(2))
PLANS = {
    "euler": core.euler(LINEAR, VELOCITY, core.cosine_grid(3)),
    "heun": core.heun(LINEAR, VELOCITY, core.uniform_grid(2)),
    "ab2": core.ab2(LINEAR, VELOCITY, core.uniform_grid(3)),
    "ddim": core.ddim(VP_COSINE, IMAGE, core.uniform_grid(3)),
    "ddpm": core.ddpm(VP_COSINE, NOISE, core.uniform_grid(3)[1:]),
    "renoise": core.renoise(LINEAR, VELOCITY, core.uniform_grid(3)),
}
# On a GPU cuDNN may take Winograd's convolutions, which sum in another order.
BOUND = {"cpu": 1e-5, "cuda": 1e-4}


def request_of(rng, plan=EULER, *, batch: int = 3, guidance: float = 1.0, masked: bool = False, spec=SPEC) -> Request:
    shape = spec.network.shape
    known = {}
    if masked:
        known["mask"] = rng.integers(0, 2, (1, *shape[1:])).astype(np.float32)
        known["image"] = rng.standard_normal(shape, np.float32)
    return Request(
        plan,
        batch,
        seed=int(rng.integers(2**32)),
        first=int(rng.integers(1, 2**31)),
        guidance=guidance,
        label=rng.integers(0, spec.network.classes, batch),
        null_label=spec.network.classes,
        **known,
    )


def expected(request: Request, model=NETWORK, spec=SPEC) -> np.ndarray:
    return eager.runner(model, spec).run(request).states


def assert_states(actual: np.ndarray, wanted: np.ndarray, bound: float):
    assert actual.shape == wanted.shape
    assert actual.dtype == np.float32
    assert actual.flags.c_contiguous
    error = float(np.abs(actual - wanted).max() / np.abs(wanted).max())
    assert error <= bound, f"relative error {error:.1e}, allowed {bound:.0e}"


def recorder_of(device: str):
    return cuda_graph.capture if device == "cuda" else cuda_graph.repeat


@pytest.fixture
def counted(kernel_device):
    """A runner with the number of its recordings in `recordings`."""
    runner = cuda.CudaRunner(NETWORK, SPEC, kernel_device)
    runner.recordings = 0

    def record(work, device):
        runner.recordings += 1
        return recorder_of(kernel_device)(work, device)

    runner.record = record
    return runner


# ---- parity
@pytest.mark.parametrize("graph", [False, True], ids=["row by row", "recorded"])
@pytest.mark.parametrize("name", PLANS)
def test_every_solver_guided_and_masked(rng, kernel_device, name, graph):
    runner = cuda.CudaRunner(NETWORK, SPEC, kernel_device, graph=graph)
    for guidance in (1.0, 3.0):
        for masked in (False, True):
            request = request_of(rng, PLANS[name], guidance=guidance, masked=masked)
            bound = BOUND[kernel_device] * guidance
            assert_states(runner.run(request).states, expected(request), bound)


@pytest.mark.parametrize("graph", [False, True], ids=["row by row", "recorded"])
def test_points_and_two_times(rng, kernel_device, graph):
    spec, model = Spec(POINTS, null_label=True), network(POINTS, seed=2)
    runner = cuda.CudaRunner(model, spec, kernel_device, graph=graph)
    for guidance in (1.0, 3.0):
        request = request_of(rng, PLANS["heun"], batch=5, guidance=guidance, spec=spec)
        assert_states(runner.run(request).states, expected(request, model, spec), BOUND[kernel_device] * guidance)


@pytest.mark.parametrize("graph", [False, True], ids=["row by row", "recorded"])
def test_a_network_that_sees_the_mask_is_told_each_request_s_own(rng, kernel_device, graph):
    """Two of each key one after the other: what the first was told does not outlive it."""
    spec = Spec(replace(UNET, shape=(2, 8, 8), extra=3), null_label=True)
    model = network(spec.network, seed=3)
    runner = cuda.CudaRunner(model, spec, kernel_device, graph=graph)
    for guidance, masked in ((1.0, True), (3.0, True), (3.0, False), (1.0, False)):
        for _ in range(2):
            request = request_of(rng, guidance=guidance, masked=masked, spec=spec)
            bound = BOUND[kernel_device] * guidance
            assert_states(runner.run(request).states, expected(request, model, spec), bound)


def test_no_label_is_the_null_label(rng, kernel_device):
    request = replace(request_of(rng), label=None)
    assert_states(
        cuda.CudaRunner(NETWORK, SPEC, kernel_device).run(request).states, expected(request), BOUND[kernel_device]
    )


@pytest.mark.parametrize("graph", [False, True], ids=["row by row", "recorded"])
def test_bfloat16_lowers_the_network_and_neither_state_nor_waves(rng, kernel_device, graph):
    runner = cuda.CudaRunner(NETWORK, SPEC, kernel_device, torch.bfloat16, graph=graph)
    assert runner.network.enter.weight.dtype == torch.bfloat16
    assert runner.network.condition.waves.dtype == torch.float32
    request = request_of(rng, PLANS["heun"], guidance=2.0)
    states = runner.run(request).states
    assert_states(states, expected(request), 0.1)
    assert not np.array_equal(states, torch.from_numpy(states).bfloat16().float().numpy())


def test_a_picture_is_the_same_in_a_batch_and_alone(rng, kernel_device):
    request, runner = request_of(rng, PLANS["ddpm"]), cuda.CudaRunner(NETWORK, SPEC, kernel_device)
    alone = replace(request, batch=1, first=request.first + 2, label=request.label[2:])
    assert_states(runner.run(alone).states, runner.run(request).states[2:], BOUND[kernel_device])


def test_the_model_stays_as_and_where_it_was(kernel_device):
    before = {name: (value.dtype, value.device, value.stride()) for name, value in NETWORK.state_dict().items()}
    cuda.CudaRunner(NETWORK, SPEC, kernel_device, torch.bfloat16)
    cuda.CudaRunner(NETWORK, SPEC, kernel_device)
    assert before == {name: (value.dtype, value.device, value.stride()) for name, value in NETWORK.state_dict().items()}


# ---- what a graph holds, and what is copied in and out
def test_requests_of_one_key_are_recorded_once_and_keep_their_pictures(rng, kernel_device, counted):
    """Other seeds, first pictures, labels, masks and images; no result is written over by a later one."""
    requests = [request_of(rng, PLANS["renoise"], guidance=3.0, masked=True) for _ in range(3)]
    results = [counted.run(request).states for request in requests]
    assert counted.recordings == 1
    for request, states in zip(requests, results):
        assert_states(states, expected(request), 3 * BOUND[kernel_device])
    assert np.array_equal(counted.run(requests[0]).states, results[0])


def test_a_label_does_not_outlive_its_request(rng, kernel_device, counted):
    request = request_of(rng)
    counted.run(request)
    unlabelled = replace(request, label=None)
    assert_states(counted.run(unlabelled).states, expected(unlabelled), BOUND[kernel_device])


def test_every_part_of_a_key_separates(rng, kernel_device, counted):
    request = request_of(rng, guidance=2.0)
    others = [
        replace(request, guidance=3.0),
        replace(request, guidance=1.0),
        replace(request, plan=PLANS["euler"]),
        replace(request, batch=2, label=request.label[:2]),
        replace(request_of(rng, guidance=2.0, masked=True)),
    ]
    for asked in (request, *others, *others, request):
        assert_states(counted.run(asked).states, expected(asked), asked.guidance * BOUND[kernel_device])
    assert counted.recordings == 1 + len(others)


def test_the_longest_unused_graph_makes_room(rng, counted, monkeypatch):
    monkeypatch.setattr(cuda, "GRAPHS", 2)
    first, second, third = (request_of(rng, batch=batch) for batch in (1, 2, 3))
    for request in (first, second, first, third):
        counted.run(request)
    assert counted.recordings == 3
    counted.run(first)
    assert counted.recordings == 3
    counted.run(second)
    assert counted.recordings == 4


def test_warm_records_and_a_run_does_not_again(rng, kernel_device, counted):
    request = request_of(rng, guidance=2.0, masked=True)
    assert counted.warm(request) is None
    assert counted.recordings == 1
    assert_states(counted.run(request).states, expected(request), 2 * BOUND[kernel_device])
    assert counted.recordings == 1


def test_a_recording_that_failed_is_not_kept(rng, kernel_device, counted):
    record = counted.record

    def failing(work, device):
        raise RuntimeError("out of memory")

    counted.record = failing
    request = request_of(rng)
    with pytest.raises(RuntimeError, match="out of memory"):
        counted.run(request)
    counted.record = record
    assert_states(counted.run(request).states, expected(request), BOUND[kernel_device])


def test_threads_share_a_runner(rng, kernel_device, counted):
    requests = [request_of(rng, batch=batch) for batch in (1, 2, 1, 2)]
    came = {}
    threads = [threading.Thread(target=lambda i=i: came.update({i: counted.run(requests[i]).states})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted.recordings == 2
    for i, request in enumerate(requests):
        assert_states(came[i], expected(request), BOUND[kernel_device])


# ---- callbacks and clocks
def test_a_callback_runs_row_by_row_and_records_nothing(rng, kernel_device, counted):
    rows = []
    request = replace(request_of(rng, PLANS["heun"]), on_row=rows.append)
    samples = counted.run(request)
    assert rows == [0, 1, 2, 3]
    assert counted.recordings == 0
    assert_states(samples.states, expected(replace(request, on_row=None)), BOUND[kernel_device])
    assert len(samples.row_seconds) == len(samples.denoiser_seconds) == 4
    assert (samples.denoiser_seconds > 0).all()
    assert (samples.denoiser_seconds <= samples.row_seconds).all()


def test_what_a_callback_raises_ends_the_run(rng, counted):
    def stop(row):
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        counted.run(replace(request_of(rng), on_row=stop))
    assert len(counted.run(request_of(rng)).states) == 3


def test_of_a_graph_the_whole_is_timed(rng, counted):
    samples = counted.run(request_of(rng))
    assert samples.row_seconds.shape == samples.denoiser_seconds.shape == (1,)
    assert samples.row_seconds[0] == samples.denoiser_seconds[0] > 0


# ---- compiled
@pytest.mark.slow
def test_compiled(rng, kernel_device):
    spec, model = Spec(POINTS, null_label=True), network(POINTS, seed=2)
    runner = cuda.CudaRunner(model, spec, kernel_device, compile=True)
    request = request_of(rng, batch=4, guidance=2.0, spec=spec)
    runner.warm(request)
    assert_states(runner.run(request).states, expected(request, model, spec), 2 * BOUND[kernel_device])


# ---- refusals
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_the_way_out_is_told():
    with pytest.raises(BackendUnavailable, match=r"^device is 'cuda' and torch .* sees no NVIDIA GPU.*device='cpu'"):
        cuda.CudaRunner(NETWORK, SPEC)


def test_without_the_interpreter_the_cpu_is_refused(monkeypatch):
    monkeypatch.setattr(machine, "INTERPRETED", False)
    monkeypatch.setattr(machine, "_gpu_is_here", lambda: False)
    with pytest.raises(BackendUnavailable, match="need an NVIDIA GPU"):
        cuda.CudaRunner(NETWORK, SPEC, "cpu")


def test_other_dtypes_are_refused(kernel_device):
    with pytest.raises(InvalidInput, match=r"^dtype is torch.float64; expected one of torch.float32, torch.bfloat16"):
        cuda.CudaRunner(NETWORK, SPEC, kernel_device, torch.float64)


def test_a_mask_needs_an_image(rng, counted):
    with pytest.raises(InvalidInput, match="image is None"):
        counted.run(replace(request_of(rng, masked=True), image=None))
