"""The front of the native executor: NumPy's numbers, whose bytes it reads, and refusals that tell why."""

import gc
import mmap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pyflow import core, native
from pyflow.engines.graph import NONE, Buffer, Graph, Kind, Operation
from pyflow.errors import InvalidArtefact, InvalidInput

DIMENSIONS, WIDTH, CLASSES, TIMES = 2, 32, 3, 2
PLAN = core.euler(core.LINEAR, core.VELOCITY, core.uniform_grid(4))


class PointNetwork:
    """silu(x @ enter + silu(waves @ told) + table[label]) @ leave, as a native network and in NumPy."""

    def __init__(self, seed):
        draw = np.random.default_rng(seed).normal
        self.waves, self.phases = draw(0, 5, 64).astype(np.float32), draw(0, 1, 64).astype(np.float32)
        sizes = {"told": (64 * TIMES, WIDTH), "enter": (DIMENSIONS, WIDTH), "leave": (WIDTH, DIMENSIONS)}
        self.layers = {
            name: (draw(0, 0.3, size).astype(np.float32), draw(0, 0.3, size[1]).astype(np.float32))
            for name, size in sizes.items()
        }
        self.table = draw(0, 0.3, (CLASSES + 1, WIDTH)).astype(np.float32)
        self.graph = Graph((DIMENSIONS,), TIMES, CLASSES)
        self.content = self.build()

    def build(self):
        graph, vector = self.graph, lambda channels: self.graph.whole(Buffer(1, 1, channels))
        x = graph.add(Operation(Kind.LOAD, "load", output=vector(DIMENSIONS)))
        waves, phases = graph.keep(self.waves), graph.keep(self.phases)
        told = graph.add(Operation(Kind.WAVES, "waves", output=vector(64 * TIMES), weights=waves, bias=phases))
        label = graph.add(Operation(Kind.LABEL, "label", output=vector(WIDTH), weights=graph.keep(self.table)))
        h = self.layer("enter", x, other=self.layer("told", told, other=label), silu=True)
        graph.add(Operation(Kind.STORE, "store", input=self.layer("leave", h)))
        return graph.to_bytes()

    def layer(self, name, source, other=NONE, silu=False):
        matrix, bias = self.layers[name]
        inputs, outputs = matrix.shape
        width = 32 if outputs > 16 else 16  # one panel, padded with zeros
        packed, spread = np.zeros((inputs, width), np.float32), np.zeros(width, np.float32)
        packed[:, :outputs], spread[:outputs] = matrix, bias
        output, kept = self.graph.whole(Buffer(1, 1, outputs)), (self.graph.keep(packed), self.graph.keep(spread))
        made = Operation(Kind.CONVOLVE, name, source, other, output, silu=silu, weights=kept[0], bias=kept[1])
        return self.graph.add(made)

    def __call__(self, x, s, t, label):
        def apply(name, values):
            matrix, bias = self.layers[name]
            return values @ matrix.astype(np.float64) + bias

        angles = [time[:, None].astype(np.float64) * self.waves + self.phases for time in (s, t)]
        told = apply("told", np.sin(np.concatenate(angles, axis=1)))
        h = apply("enter", x.astype(np.float64)) + told + self.table[label]
        return apply("leave", h / (1 + np.exp(-h)))


@pytest.fixture
def seed(request):
    seed = int(np.random.default_rng().integers(2**31))
    print(f"seed {seed}")
    return seed


@pytest.fixture
def network(seed):
    return PointNetwork(seed)


def states(denoiser, batch=5, label=(0, 1, 2, 3, 0), **options):
    return native.sample(denoiser, PLAN, batch=batch, seed=1, label=label, null_label=CLASSES, **options).states


def test_it_tells_what_it_is(network):
    denoiser = native.network_denoiser(network.content)
    assert denoiser.shape == (DIMENSIONS,)
    assert denoiser.inputs == ("x", "s", "t", "label")
    *lines, total = denoiser.describe().splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["load", "waves", "label", "told", "enter", "leave", "store"]
    assert total.startswith("7 operations")


@pytest.mark.parametrize("isa", native.supported_isas())
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_it_makes_what_numpy_makes(network, isa, guidance):
    def predict(x, s, t, label, out):
        out[...] = network(x, s, t, label)

    made = states(native.network_denoiser(network.content, 1, isa), guidance=guidance)
    expected = states(native.callable_denoiser(predict, (DIMENSIONS,)), guidance=guidance)
    np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threads", [0, 1, 2, 3])
def test_threads_and_callers_change_no_bit(network, threads):
    many = {"batch": 2000, "label": np.arange(2000) % (CLASSES + 1)}  # so many that they are worth several threads
    expected = states(native.network_denoiser(network.content, 1), **many)
    np.testing.assert_array_equal(
        states(native.network_denoiser(network.content, 1), label=(0, 1, 2, 3, 0)), expected[:5]
    )
    shared = native.network_denoiser(network.content, threads)
    with ThreadPoolExecutor(4) as callers:
        for made in callers.map(lambda _: states(shared, **many), range(12)):
            np.testing.assert_array_equal(made, expected)


def test_runs_of_other_batches_and_labels_at_once_change_no_bit(network):
    """How the latest batch was cut is kept for the next."""
    asked = [{"batch": batch, "label": np.arange(batch) % labels} for batch in (1, 2, 5, 600) for labels in (1, 2, 4)]
    expected = [states(native.network_denoiser(network.content, 1), **one) for one in asked]
    shared = native.network_denoiser(network.content, 2)
    with ThreadPoolExecutor(4) as callers:
        made = list(callers.map(lambda one: states(shared, **one), asked * 8))
    for index, came in enumerate(made):
        np.testing.assert_array_equal(came, expected[index % len(asked)], err_msg=f"{asked[index % len(asked)]}")


def test_it_reads_any_buffer_in_place(network, tmp_path):
    expected = states(native.network_denoiser(network.content))
    path = tmp_path / "network.bin"
    path.write_bytes(network.content)
    unaligned = memoryview(b"." + network.content)[1:]
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    for content in (mapped, bytearray(network.content), np.frombuffer(network.content, np.uint8), unaligned):
        np.testing.assert_array_equal(states(native.network_denoiser(content)), expected)


def test_it_keeps_its_buffer_and_lets_it_go(network):
    content = bytearray(network.content)
    denoiser = native.network_denoiser(content)
    expected = states(denoiser)
    with pytest.raises(BufferError):
        content.clear()
    content_of_denoiser, content = content, None
    gc.collect()
    np.testing.assert_array_equal(states(denoiser), expected)
    del denoiser
    gc.collect()
    content_of_denoiser.clear()

    denoiser = native.network_denoiser(bytes(bytearray(network.content)))  # nobody else holds these bytes
    gc.collect()
    rubbish = [bytes(len(network.content)) for _ in range(64)]
    np.testing.assert_array_equal(states(denoiser), expected)
    del rubbish


def test_the_profile(network):
    denoiser = native.network_denoiser(network.content, 1, profile=True)
    states(denoiser)
    rows = denoiser.take_profile()
    names = [(name, kind, algorithm) for name, kind, algorithm, _, _ in rows]
    assert names[:4] == [
        ("load", "load", ""),
        ("waves", "waves", ""),
        ("label", "label", ""),
        ("told", "convolve", "direct"),
    ]
    assert all(calls == len(PLAN) and 0 < seconds < 1 for *_, seconds, calls in rows)
    assert all(calls == seconds == 0 for *_, seconds, calls in denoiser.take_profile())
    assert native.network_denoiser(network.content).take_profile() == []


def test_the_workspace_of_a_batch(network):
    one, two = (native.network_denoiser(network.content, threads) for threads in (1, 2))
    sizes = [one.workspace_bytes(batch) for batch in (1, 100, 1000, 100000)]
    assert 0 < sizes[0] < sizes[1] < sizes[2]
    assert sizes[3] < 1.1 * sizes[2], "a large batch runs in groups"
    assert two.workspace_bytes(100) == sizes[1], "a thread would cost more than it takes off"
    assert sizes[2] < two.workspace_bytes(1000) <= 2 * sizes[2]
    with pytest.raises(InvalidInput, match="batch is 0; expected 1 or more"):
        one.workspace_bytes(0)


def test_it_refuses_labels_that_it_does_not_know(network):
    denoiser = native.network_denoiser(network.content)
    states(denoiser, label=CLASSES)
    with pytest.raises(InvalidInput, match="a label is 4; expected 0 to 3, the last of them no label"):
        states(denoiser, label=CLASSES + 1)


@pytest.mark.parametrize("length", [0, 1, 63, 64, 200, -1])
def test_it_refuses_files_cut_short(network, length):
    with pytest.raises(InvalidArtefact, match=r"network.bin.*export it again"):
        native.network_denoiser(network.content[:length])


def test_it_refuses_what_is_no_network(network):
    with pytest.raises(InvalidArtefact, match="export it again"):
        native.network_denoiser(b"\x7fELF" + network.content[4:])
    for content in (7, "text", None):
        with pytest.raises(InvalidInput, match=f"content is a {type(content).__name__}; expected bytes"):
            native.network_denoiser(content)
    strided = np.frombuffer(network.content, np.uint8)[::2]
    with pytest.raises(InvalidInput, match=r"strides \(2,\); expected a contiguous one"):
        native.network_denoiser(strided)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"threads": -1}, "threads is -1; expected 0 to 32767"),
        ({"threads": 2**15}, "threads is 32768"),
        ({"threads": 1.5}, "threads is 1.5; expected an integer"),
        ({"isa": "sse9"}, "isa is 'sse9'; expected one of scalar"),
        ({"isa": 2}, "isa is 2; expected None or one of scalar"),
    ],
)
def test_it_refuses_options(network, options, said):
    with pytest.raises(InvalidInput, match=said):
        native.network_denoiser(network.content, **options)
