"""The C++ noise: NumPy's integers exactly, NumPy's normals within 2 ulp, whatever the batch or the thread."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pyflow import native, noise
from pyflow.errors import InvalidInput

ISAS = native.supported_isas()


@pytest.fixture
def rng():
    entropy = np.random.SeedSequence().entropy
    print(f"np.random.default_rng({entropy})")  # pytest shows it when the test fails
    return np.random.default_rng(entropy)


# Random123's kat_vectors, philox 4x32, 10 rounds
KNOWN = [
    ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
@pytest.mark.parametrize("isa", ISAS)
def test_known_answers(isa, counter, key, words):
    (got,) = native._C.philox_words(counter, key, 1, isa)
    assert " ".join(f"{word:08x}" for word in got) == words


@pytest.mark.parametrize("isa", ISAS)
def test_integers_equal_numpys(isa, rng):
    for blocks in (1, 2, 15, 16, 17, 240, 241, 255, 256, 257, 5000):
        counter = rng.integers(0, 2**32, 4, dtype=np.uint32)
        counter[0] = rng.choice(np.array([counter[0], 2**32 - 3], np.uint32))  # the count may wrap
        key = rng.integers(0, 2**32, 2, dtype=np.uint32)
        counters = np.tile(counter, (blocks, 1))
        counters[:, 0] += np.arange(blocks, dtype=np.uint32)
        got = native._C.philox_words(counter.tolist(), key.tolist(), blocks, isa)
        np.testing.assert_array_equal(got, noise.philox(counters, key))


def ulps(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """How many floats lie between the two."""
    order = [np.where(bits < 0, -(bits & 0x7FFFFFFF), bits) for bits in (a.view(np.int32) for a in (got, expected))]
    return np.abs(order[0].astype(np.int64) - order[1])


@pytest.mark.parametrize("isa", ISAS)
def test_normals_are_within_two_ulp_of_numpys(isa, rng):
    seed, first, row = (int(value) for value in rng.integers(0, 2**31, 3))
    got = native.normal(seed, first, 8, 200_003, row, isa=isa)
    expected = noise.normal(seed, first, 8, 200_003, row)
    assert np.isfinite(got).all()
    assert got.dtype == np.float32
    assert ulps(got, expected).max() <= 2


def test_every_instruction_set_gives_the_same_bits(rng):
    seed, first = (int(value) for value in rng.integers(0, 2**31, 2))
    scalar, *others = (native.normal(seed, first, 3, 100_001, 7, isa=isa).view(np.uint32) for isa in ISAS)
    for other in others:
        np.testing.assert_array_equal(other, scalar)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 63, 64, 65, 960, 961, 1023, 1024, 1025, 3072])
@pytest.mark.parametrize("isa", ISAS)
def test_a_picture_has_its_noise_whatever_the_batch(isa, size):
    together = native.normal(11, 5, 6, size, 2, isa=isa)
    assert together.shape == (6, size)
    for i in range(6):
        np.testing.assert_array_equal(native.normal(11, 5 + i, 1, size, 2, isa=isa)[0], together[i])
    longer = native.normal(11, 5, 6, size + 9, 2, isa=isa)
    np.testing.assert_array_equal(longer[:, :size], together)


def test_the_last_seed_picture_and_row_are_drawn():
    last = 2**32 - 1
    assert ulps(native.normal(last, last, 1, 40, last), noise.normal(last, last, 1, 40, last)).max() <= 2


def test_threads_do_not_change_the_noise():
    def draw(seed):
        return native.normal(seed, 0, 4, 50_000, 1)

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(draw, range(16)))
    for seed, got in enumerate(together):
        np.testing.assert_array_equal(got, draw(seed))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, "seed is -1; expected 0 to 4294967295"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"seed": 1.5}, "seed is 1.5; expected an integer"),
        ({"first": 2**32 - 1, "pictures": 2}, "first is 4294967295 with 2 pictures; picture numbers end at 4294967295"),
        ({"pictures": -1}, "pictures is -1"),
        ({"size": -1}, "size is -1"),
        ({"row": 2**32}, "row is 4294967296"),
    ],
)
def test_numbers_out_of_range_are_refused(change, message):
    with pytest.raises(InvalidInput, match=message):
        native.normal(**{"seed": 0, "first": 0, "pictures": 1, "size": 4, "row": 0, **change})
