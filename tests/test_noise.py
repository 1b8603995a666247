"""The reference noise: published Philox answers, noise that belongs to the picture, and a normal distribution."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyflow.noise import PICTURE_LIMIT, SEED_LIMIT, normal, normals, philox

# kat_vectors of Random123 (Salmon et al. 2011), philox4x32 with 10 rounds: counter, key, words.
KNOWN = {
    "zeros": ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    "ones": ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    "pi": ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
}


def words(text: str) -> np.ndarray:
    return np.array([int(word, 16) for word in text.split()], np.uint32)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN.values(), ids=KNOWN.keys())
def test_philox_gives_the_published_answers(counter, key, expected):
    np.testing.assert_array_equal(philox(words(counter), words(key)), words(expected))


def test_philox_gives_the_published_answers_in_an_array():
    counters, keys, expected = (np.stack([words(row[i]) for row in KNOWN.values()]) for i in range(3))
    np.testing.assert_array_equal(philox(counters, keys), expected)
    assert philox(counters[:, None], keys).shape == (3, 3, 4)  # counters and keys broadcast


def test_the_key_is_seed_and_picture_and_the_counter_element_and_row():
    seed, picture, row = 7, 1000, 3
    for block in (0, 5):
        expected = normals(philox(np.array([block, row, 0, 0], np.uint32), np.array([seed, picture], np.uint32)))
        got = normal(seed, picture, 1, 24, row)[0, 4 * block : 4 * block + 4]
        np.testing.assert_array_equal(got, expected)


# ---- noise belongs to the picture
@given(
    seed=st.integers(0, SEED_LIMIT - 1),
    first=st.integers(0, PICTURE_LIMIT - 9),
    pictures=st.integers(1, 8),
    size=st.integers(1, 70),
    row=st.integers(0, 2**16),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_a_picture_has_its_noise_whatever_the_batch_and_the_size(seed, first, pictures, size, row, data):
    batch = normal(seed, first, pictures, size, row)
    assert batch.shape == (pictures, size)
    assert batch.dtype == np.float32
    i = data.draw(st.integers(0, pictures - 1), label="picture")
    k = data.draw(st.integers(1, size), label="prefix")
    np.testing.assert_array_equal(normal(seed, first + i, 1, size, row)[0], batch[i])
    np.testing.assert_array_equal(normal(seed, first, pictures, k, row), batch[:, :k])


def test_the_last_seed_and_picture_are_usable():
    edge = normal(SEED_LIMIT - 1, PICTURE_LIMIT - 2, 2, 8, 1)
    assert np.all(np.isfinite(edge))
    np.testing.assert_array_equal(edge[1:], normal(SEED_LIMIT - 1, PICTURE_LIMIT - 1, 1, 8, 1))


# ---- a normal distribution
SIZE = 200_000


@pytest.mark.parametrize(("seed", "picture", "row"), [(0, 0, 0), (1, 0, 0), (0, 12345, 7), (2**32 - 1, 2**32 - 1, 4)])
def test_moments_and_distribution_are_normal(seed, picture, row):
    z = normal(seed, picture, 1, SIZE, row)[0].astype(np.float64)
    # Each power's own standard error: Var z^k = E z^2k - (E z^k)^2 = 1, 2, 15, 96. Four of them.
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(z**power) - expected) < 4 * math.sqrt(variance / SIZE)
    # Kolmogorov and Smirnov: sqrt(n) * the largest gap to the normal law stays below 1.95 with probability 0.999.
    ranked = np.sort(z)[:: SIZE // 2000]
    law = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in ranked])
    seen = np.arange(0, SIZE, SIZE // 2000) / SIZE
    assert math.sqrt(SIZE) * np.max(np.abs(law - seen)) < 1.95


def test_tails_are_as_heavy_as_they_should_be():
    z = np.abs(normal(3, 0, 8, SIZE, 0))
    expected = z.size * math.erfc(4 / math.sqrt(2))  # 101 of 1.6 million beyond four deviations
    assert abs(np.sum(z > 4) - expected) < 4 * math.sqrt(expected)


def test_the_largest_magnitude():
    # The smallest uniform is half a 2**-32: the radius is sqrt(2 * 33 * ln 2) = 6.7637 and no word goes beyond it.
    bound = math.sqrt(66 * math.log(2))
    cells = np.array([0, 1, 2**8 - 1, 2**8, 2**31, 2**32 - 1], np.uint32)
    corners = np.stack(np.meshgrid(cells, cells, cells, cells), axis=-1).reshape(-1, 4)
    values = normals(corners)
    assert np.all(np.isfinite(values))
    assert np.all(values != 0.0)  # neither the sine nor the radius is exactly zero
    assert np.max(np.abs(values)) == pytest.approx(bound, rel=1e-6)
    assert np.max(np.abs(values)) <= np.float32(bound)


# ---- nothing is shared
def test_rows_pictures_seeds_and_neighbours_are_uncorrelated():
    base = normal(5, 10, 1, SIZE, 2)[0]
    others = {
        "row": normal(5, 10, 1, SIZE, 3)[0],
        "picture": normal(5, 11, 1, SIZE, 2)[0],
        "seed": normal(6, 10, 1, SIZE, 2)[0],
        "seed and picture exchanged": normal(10, 5, 1, SIZE, 2)[0],
        **{f"element {k} further": np.roll(base, k) for k in (1, 2, 3, 4)},
    }
    for name, other in others.items():
        for left, right in ((base, other), (base**2 - 1, other**2 - 1)):
            correlation = np.corrcoef(left, right)[0, 1]
            assert abs(correlation) < 4 / math.sqrt(SIZE), name  # four standard errors, 0.009


def test_a_batch_is_uncorrelated_picture_by_picture_and_row_by_row():
    batch = np.concatenate([normal(0, 0, 16, 20_000, row) for row in range(4)])
    off = np.corrcoef(batch) - np.eye(64)
    assert np.max(np.abs(off)) < 5 / math.sqrt(20_000)  # 2016 pairs: five standard errors, one chance in a thousand
    assert len(np.unique(batch[:, :8], axis=0)) == 64
