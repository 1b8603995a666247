"""The file of a native network, and its packed weights: unpacked by definition they are what was packed."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from graph_reference import Reference  # noqa: E402 - after the skip

from pyflow.engines import graph as graphs  # noqa: E402
from pyflow.engines.graph import ALIGNMENT, Algorithm, Buffer, Graph, Kind, Operation, Type  # noqa: E402
from pyflow.errors import InvalidInput  # noqa: E402
from pyflow.export.packing import Range, bfloat16, pack, padded_outputs  # noqa: E402

SHAPES = [(8, 8, 3), (16, 3, 3), (17, 5, 3), (32, 7, 1), (40, 16, 1), (48, 33, 3), (49, 2, 3), (96, 64, 1)]


def one_layer(taps, bias, algorithm, type, range=None, size=4):
    """A network of one convolution between a load and a store, as the bytes of its file."""
    outputs, inputs, side = taps.shape[:3]
    packed = pack(taps, bias, algorithm, type, range)
    lowered = {Type.F32: Type.F32, Type.BF16: Type.BF16, Type.S8: Type.U8}[type]
    graph = Graph((inputs, size, size), times=1, classes=0)
    state = graph.add(Operation(Kind.LOAD, "load", output=graph.whole(Buffer(size, size, inputs))))
    given = graph.whole(Buffer(size, size, inputs, side // 2, lowered if algorithm == Algorithm.DIRECT else Type.F32))
    scale, zero = range or (0.0, 0)
    graph.add(Operation(Kind.PREPARE, "prepare", state, output=given, scale=scale, zero=zero))
    made = graph.add(
        Operation(
            Kind.CONVOLVE,
            "layer",
            given,
            output=graph.whole(Buffer(size, size, outputs)),
            taps=side,
            algorithm=algorithm,
            weights_type=type,
            weights=graph.keep(packed.weights),
            bias=graph.keep(packed.bias),
            **({} if packed.scales is None else {"scales": graph.keep(packed.scales)}),
        )
    )
    graph.add(Operation(Kind.STORE, "store", made))
    return graph.to_bytes()


def run(content, x):
    return Reference(content)(x, np.zeros(len(x)), None, None)


def truth(x, taps, bias):
    x, taps, bias = (torch.from_numpy(array.astype(np.float64)) for array in (x, taps, bias))
    return torch.nn.functional.conv2d(x, taps, bias, padding=taps.shape[2] // 2).numpy()


def draw(rng, shape):
    outputs, inputs, side = shape
    taps = rng.standard_normal((outputs, inputs, side, side)).astype(np.float32) / side / inputs**0.5
    return taps, rng.standard_normal(outputs).astype(np.float32), rng.standard_normal((2, inputs, 4, 4), np.float32)


# ---- the file
def test_the_records_are_those_of_the_header_in_csrc():
    sizes = [layout.itemsize for layout in (graphs.HEADER, graphs.BUFFER, graphs.TENSOR, graphs.OPERATION)]
    assert sizes == [64, 20, 12, 128]


def test_weights_begin_at_multiples_of_their_alignment(rng):
    graph = Graph((2,), times=1, classes=0)
    arrays = [rng.integers(-99, 99, size).astype(np.int8) for size in (1, 64, 65, 200)]
    places = [graph.keep(array) for array in arrays]
    content = graph.to_bytes()
    (header,) = np.frombuffer(content, graphs.HEADER, 1)
    assert header["weights_offset"] % ALIGNMENT == 0
    assert len(content) == header["weights_offset"] + header["weights_bytes"]
    for place, array in zip(places, arrays):
        assert place % ALIGNMENT == 0
        found = np.frombuffer(content, np.int8, len(array), int(header["weights_offset"]) + place)
        np.testing.assert_array_equal(found, array)


def test_a_name_that_would_be_cut_is_refused():
    graph = Graph((2,), times=1, classes=0)
    with pytest.raises(InvalidInput, match=r"a layer is named .a+.; expected 39 bytes or fewer"):
        graph.add(Operation(Kind.STORE, "a" * 40))


# ---- packed weights
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32_weights_lie_in_panels(shape, rng):
    taps, bias, x = draw(rng, shape)
    algorithms = (Algorithm.DIRECT, *(tuple(Algorithm)[1:] if shape[2] == 3 else ()))
    packed = [pack(taps, bias, algorithm, Type.F32) for algorithm in algorithms]
    assert all(one.weights.tobytes() == packed[0].weights.tobytes() for one in packed), "the kernel transforms them"
    came = run(one_layer(taps, bias, Algorithm.DIRECT, Type.F32), x)
    np.testing.assert_allclose(came, truth(x, taps, bias), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("algorithm", Algorithm, ids=lambda a: a.name.lower())
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bfloat16_weights_lie_in_panels(shape, algorithm, rng):
    if algorithm != Algorithm.DIRECT and shape[2] == 1:
        pytest.skip("a 1x1 convolution has no Winograd")
    taps, bias, x = draw(rng, shape)
    expected = truth(x, taps, bias)
    error = np.abs(run(one_layer(taps, bias, algorithm, Type.BF16), x) - expected).max() / np.abs(expected).max()
    assert 1e-5 < error < {Algorithm.WINOGRAD4: 4e-2, Algorithm.WINOGRAD2X4: 2e-2}.get(algorithm, 1e-2), "rounded only"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int8_weights_lie_in_panels_and_the_zero_point_in_the_bias(shape, rng):
    taps, bias, x = draw(rng, shape)
    range = Range(float(x.max() - x.min()) / 255, round(float(-x.min() / (x.max() - x.min()) * 255)))
    levels = np.clip(np.rint(x / range.scale) + range.zero, 0, 255)
    scales = np.abs(taps).max((1, 2, 3), keepdims=True) / 127
    whole = np.rint(taps / scales)
    expected = truth((levels - range.zero) * range.scale, whole * scales, bias)
    came = run(one_layer(taps, bias, Algorithm.DIRECT, Type.S8, range), x)
    np.testing.assert_allclose(came, expected, rtol=1e-5, atol=1e-5)


def test_a_channel_of_zeros_has_a_scale(rng):
    taps, bias, x = draw(rng, (3, 4, 3))
    taps[1] = 0
    came = run(one_layer(taps, bias, Algorithm.DIRECT, Type.S8, Range(0.02, 128)), x)
    np.testing.assert_allclose(came[:, 1], bias[1], rtol=1e-6)


def test_the_last_panel_is_narrow_where_that_is_enough():
    assert [padded_outputs(n) for n in (1, 16, 17, 32, 33, 48, 49, 64)] == [16, 16, 32, 32, 48, 48, 64, 64]


def test_bfloat16_rounds_as_torch_does(rng):
    values = rng.standard_normal(10_000).astype(np.float32) * 10.0 ** rng.integers(-20, 20, 10_000)
    values = np.concatenate([values.astype(np.float32), [0.0, -0.0, 1 + 2**-8, 1 + 3 * 2**-8]]).astype(np.float32)
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(bfloat16(values), expected)


def test_bfloat16_rounds_a_double_once():
    """Just above a tie: by way of float32 it would become the tie, and go to the even one below."""
    assert bfloat16(np.array([1 + 2**-8 + 2**-40])) == bfloat16(np.array([1 + 2**-7]))
