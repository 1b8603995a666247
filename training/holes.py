"""What a pair with a hole keeps: its mask and the picture of the data under it, both told by (seed, index) alone.

The third word of the counter is 2 here, 1 in `pyflow.masks` and 0 in `pyflow.noise`: they share no number.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np

from pyflow import masks
from pyflow.noise import philox

_OF_PAIRS, _COINS, _ORDERS = 2, 0, 1


def _numbers(seed: int, keys: np.ndarray, count: int, row: int, what: int) -> np.ndarray:
    """uint32 (keys, count)."""
    counter = np.zeros((1, count, 4), np.uint32)
    counter[..., 0] = np.arange(count)
    counter[..., 1:] = row, _OF_PAIRS, what
    key = np.empty((len(keys), 1, 2), np.uint32)
    key[..., 0] = seed
    key[..., 1] = keys[:, None]
    return philox(counter, key)[..., 0]


def holes(kind: str, share: float, size: Sequence[int], seed: int, first: int, count: int) -> np.ndarray:
    """float32 (count, 1, *size): a mask of this kind for this share of the pairs, the others have nothing kept."""
    height, width = size
    drawn = masks.draw(kind, height, width, count, seed=seed, first=first)
    coins = _numbers(seed, np.arange(first, first + count), 1, 0, _COINS)[:, 0] * 2.0**-32
    return np.where((coins < share)[:, None, None, None], drawn, np.float32(1))


def pictures(of_label: Sequence[np.ndarray], seed: int, first: int, count: int) -> np.ndarray:
    """int64 (count,): the numbers of the pictures that pairs first, first+1, ... keep.

    `of_label` has the numbers of each label's pictures. Labels come in turn, and a label's pictures in an order that is
    drawn anew each time round.
    """

    @cache  # a class of 5,000 pictures takes a millisecond to shuffle
    def shuffled(label: int, lap: int) -> np.ndarray:
        own = of_label[label]
        drawn = _numbers(seed, np.array([label]), len(own), lap, _ORDERS)[0]
        return own[np.argsort(drawn, kind="stable")]

    chosen = np.empty(count, np.int64)
    for place, index in enumerate(range(first, first + count)):
        turn, label = divmod(index, len(of_label))
        lap, at = divmod(turn, len(of_label[label]))
        chosen[place] = shuffled(label, lap)[at]
    return chosen
