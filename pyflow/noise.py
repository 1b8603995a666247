"""Noise that belongs to the picture: Philox4x32-10, key (seed, picture), counter (element, row).

Picture i of seed k has the same noise whatever the batch, the order, the threads or the device. csrc/philox.hpp and
kernels/philox.py are the twins of this file; their integers are equal to these, their normals within 2 ulp.
"""

import math

import numpy as np

SEED_LIMIT = PICTURE_LIMIT = 2**32

_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_STEPS = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
_LOW_WORD, _WORD_BITS = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox(counter: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Philox4x32-10 (Salmon et al. 2011): uint32 (..., 4) counters and (..., 2) keys to (..., 4) words."""
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint32) for i in range(4))
    k0, k1 = (key[..., i].astype(np.uint32) for i in range(2))
    with np.errstate(over="ignore"):
        for _ in range(10):
            product0, product1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
            high0, low0 = (product0 >> _WORD_BITS).astype(np.uint32), (product0 & _LOW_WORD).astype(np.uint32)
            high1, low1 = (product1 >> _WORD_BITS).astype(np.uint32), (product1 & _LOW_WORD).astype(np.uint32)
            c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
            k0, k1 = k0 + _KEY_STEPS[0], k1 + _KEY_STEPS[1]
    return np.stack(np.broadcast_arrays(c0, c1, c2, c3), axis=-1)


def normals(words: np.ndarray) -> np.ndarray:
    """Box-Muller: uint32 (..., 4) to float32 (..., 4) normals; words 0, 1 make the first two, words 2, 3 the others.

    The radius uses 32 bits (so |z| reaches 6.8) and the angle 24, both taken at the middle of their cell: no logarithm
    of zero, no angle whose sine is exactly zero.
    """
    radius = np.sqrt(-2 * np.log((words[..., 0::2] + 0.5) * 2.0**-32))
    angle = ((words[..., 1::2] >> np.uint32(8)) + 0.5) * (2 * math.pi * 2.0**-24)
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return pairs.reshape(words.shape).astype(np.float32)


def normal(seed: int, first: int, pictures: int, size: int, row: int) -> np.ndarray:
    """float32 (pictures, size): the noise of pictures first, first+1, ... of this seed for row `row` (0: the start)."""
    blocks = -(-size // 4)
    counter = np.zeros((1, blocks, 4), np.uint32)
    counter[..., 0] = np.arange(blocks, dtype=np.uint32)
    counter[..., 1] = row
    key = np.empty((pictures, 1, 2), np.uint32)
    key[..., 0] = seed
    key[..., 1] = np.arange(first, first + pictures, dtype=np.uint64)[:, None]
    return normals(philox(counter, key)).reshape(pictures, 4 * blocks)[:, :size]
