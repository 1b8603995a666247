"""Triton's noise against pyflow.noise: the integers are equal, the normals within 2 units in the last place."""

import numpy as np
import pytest

from pyflow import noise

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from pyflow import kernels  # noqa: E402

# Random123's known answers for philox4x32-10: counter, key, words.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def from_hex(column: int) -> np.ndarray:
    return np.array([[int(word, 16) for word in line[column].split()] for line in KNOWN], np.uint32)


def triton_words(counter: np.ndarray, key: np.ndarray, device: str) -> np.ndarray:
    return kernels.words(torch.from_numpy(counter).to(device), torch.from_numpy(key).to(device)).cpu().numpy()


def assert_normals_match(seed: int, first: int, pictures: int, size: int, row: int, device: str):
    actual = kernels.normal(seed, first, pictures, size, row, device=device).cpu().numpy()
    wanted = noise.normal(seed, first, pictures, size, row)
    assert actual.shape == wanted.shape
    assert np.isfinite(actual).all()
    np.testing.assert_array_max_ulp(actual, wanted, maxulp=2)


def test_known_answers(kernel_device):
    np.testing.assert_array_equal(triton_words(from_hex(0), from_hex(1), kernel_device), from_hex(2))


def test_integers(rng, kernel_device):
    counter, key = (rng.integers(0, 2**32, (5000, width), np.uint32) for width in (4, 2))
    np.testing.assert_array_equal(triton_words(counter, key, kernel_device), noise.philox(counter, key))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 1023, 1025, 70_001])
def test_sizes(rng, kernel_device, size):
    assert_normals_match(
        int(rng.integers(2**32)), int(rng.integers(2**31)), 2, size, int(rng.integers(2**31)), kernel_device
    )


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1, 2**31, noise.SEED_LIMIT - 1])
@pytest.mark.parametrize("first", [0, 1, 2**31 - 1, noise.PICTURE_LIMIT - 3])
def test_seeds_and_pictures_are_unsigned(kernel_device, seed, first):
    assert_normals_match(seed, first, 3, 64, 1, kernel_device)


def test_noise_belongs_to_the_picture_not_to_the_batch(rng, kernel_device):
    seed, row = int(rng.integers(2**32)), 7
    batch = kernels.normal(seed, 0, 8, 333, row, device=kernel_device)
    alone = kernels.normal(seed, 3, 1, 333, row, device=kernel_device)
    assert torch.equal(batch[3], alone[0])
    assert not torch.equal(batch[3], batch[4])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_is_the_float32_noise_rounded(rng, kernel_device, dtype):
    seed = int(rng.integers(2**32))
    half = kernels.normal(seed, 0, 2, 1000, 0, device=kernel_device, dtype=dtype)
    full = kernels.normal(seed, 0, 2, 1000, 0, device=kernel_device)
    assert half.dtype == dtype
    # one unit in the last place, for Triton's interpreter truncates when it stores bfloat16
    allowed = 0 if dtype == torch.float16 else torch.finfo(dtype).eps
    torch.testing.assert_close(half.float(), full.to(dtype).float(), rtol=allowed, atol=0)
